"""The site, built as it is published: strictly, without network, with every public name in it."""

import importlib
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import jaxprune as jp

ROOT = Path(__file__).parents[2]
MODULES = [name for name in jp.__all__ if isinstance(getattr(jp, name), types.ModuleType)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="the site needs the extra `docs`")
    folder = tmp_path_factory.mktemp("site")
    proxies = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")  # nobody there
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, **proxies},
        check=True,
        timeout=600,
    )
    return folder


def anchors(page):
    return set(re.findall(r'id="(jaxprune[\w.]*)"', page.read_text()))


def public(name):
    """The names of a module's `__all__`; without one the functions and classes defined in it."""
    module = importlib.import_module(f"jaxprune.{name}")
    if hasattr(module, "__all__"):
        return set(module.__all__)
    return {
        n
        for n, value in vars(module).items()
        if not n.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_of_a_module_is_on_its_page(site, name):
    found = anchors(site / "api" / name / "index.html")
    short = {anchor.rsplit(".", 1)[1] for anchor in found if "." in anchor}
    assert public(name) - short == set()


@pytest.mark.slow
def test_the_names_at_the_top_are_on_the_first_api_page(site):
    found = anchors(site / "api" / "jaxprune" / "index.html")
    assert {f"jaxprune.{name}" for name in jp.__all__ if name not in MODULES} <= found


@pytest.mark.slow
def test_tables_are_in_the_pages_and_no_mark_is_left(site):
    for page in site.rglob("index.html"):
        text = page.read_text()
        assert "<!-- table:" not in text
        assert "](@" not in text
    shown = (site / "which_method" / "index.html").read_text()
    assert re.search(r"<td[^>]*>WRN-16-4</td>", shown)


@pytest.mark.slow
def test_a_page_loads_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        assert not re.findall(r'(?:src|<link[^>]*href)="(?:https?:)?//[^"]*"', page.read_text())
