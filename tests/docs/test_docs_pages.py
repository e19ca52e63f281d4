"""The pages of the docs, without building them: names, links and tables are where they say."""

import importlib.util
import pkgutil
import re
import types
from pathlib import Path

import pytest

import jaxprune as jp
from tests import pages

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
_spec = importlib.util.spec_from_file_location("docs_results", DOCS / "hooks" / "results.py")
results = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(results)


def directives():
    """Every `::: name` of the API pages."""
    texts = [path.read_text() for path in (DOCS / "api").glob("*.md")]
    return [name for text in texts for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)]


def test_every_public_name_has_one_place_in_the_api_pages():
    found = directives()
    assert len(found) == len(set(found))
    assert {f"jaxprune.{name}" for name in jp.__all__} <= set(found)


def test_every_module_has_a_page_of_its_own_that_the_navigation_names():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for name in jp.__all__:
        if isinstance(getattr(jp, name), types.ModuleType):
            assert f"::: jaxprune.{name}\n" in (DOCS / "api" / f"{name}.md").read_text()
            assert f" api/{name}.md\n" in navigation


def test_the_api_pages_name_nothing_that_does_not_exist():
    for name in directives():
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_links_go_to_pages_and_tables_to_results(path):
    name = str(path.relative_to(DOCS))
    text = results.expand(re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S), name)
    assert not results.MARK.search(text)
    known = {results.page_of(file) for file in results.committed()} | {"results/index.md"}
    for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", text):
        there = (path.parent / target).resolve()
        assert there.exists() or str(there.relative_to(DOCS)) in known, f"{name}: {target}"


def test_a_table_is_what_the_committed_file_says():
    path = "benchmarks/results/removing.md"
    text = results.expand(f"Before\n\n<!-- table: {path} -->\n\nAfter", "explain/page.md")
    assert (ROOT / path).read_text().strip() in text
    assert text.endswith("*From [" + path + "](../results/benchmarks/removing.md).*\n\nAfter")


def test_an_excerpt_is_one_paragraph_and_the_table_after_it():
    path = "experiments/results/to_prune_or_not-lm-cbb3ee05f7.md"
    lines = results.excerpt(path, "At equal nonzeros").splitlines()
    assert lines[0].startswith("At equal nonzeros")
    assert lines[2].startswith("| network |")
    assert all(line.startswith("|") for line in lines[2:])
    assert len(lines) > 10


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("benchmarks/results/nowhere.md", None),
        ("README.md", None),
        ("benchmarks/results/removing.md", "No such paragraph"),
        ("experiments/results/minified_models.md", "At equal bytes on disk"),  # five of them
        ("experiments/results/compare_saliencies-mnist-f782608a1f.md", "mnist, MLP 300-100"),
    ],
)
def test_a_table_that_is_not_there_ends_the_build(path, words):
    with pytest.raises(ValueError, match=r"no results|paragraphs|no table"):
        results.excerpt(path, words)


def test_the_commands_of_the_index_are_those_of_the_readme():
    readme = pages.blocks((ROOT / "README.md").read_text(), "bash")[:2]
    assert pages.blocks((DOCS / "index.md").read_text(), "bash")[:2] == readme


def test_what_is_shown_may_be_off_in_a_measured_number_only():
    assert pages.agree("dense: 97.3 % of 297", "dense: 98.1 % of 297")
    assert not pages.agree("dense: 97.3 % of 297", "dense: 80.0 % of 297")
    assert not pages.agree("kept 297 of 300", "kept 296 of 300")
    assert not pages.agree("kept 297", "kept 297 of 300")
    assert pages.agree("took ... ms", "took 3.2 ms")
