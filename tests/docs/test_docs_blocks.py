"""Every Python block of the docs is run, page by page, and prints what the page shows."""

import tempfile
from pathlib import Path

import jax
import pytest

import jaxprune as jp
from tests import pages
from tests.transforms.fresh import run_module

DOCS = Path(__file__).parents[2] / "docs"
LONG = (
    "explain/combinatorial_brain_surgeon.md",
    "explain/minified_models.md",
    "explain/nip_it_in_the_bud.md",
    "explain/to_prune_or_not.md",
    "howto/devices.md",
    "howto/latency.md",
    "howto/linen.md",
    "howto/nnx.md",
    "howto/pretrained.md",
)
RUN = sorted(
    str(path.relative_to(DOCS))
    for path in DOCS.rglob("*.md")
    if pages.blocks(path.read_text(), "python")
)


@pytest.fixture(scope="module")
def namespaces(tmp_path_factory):
    before, tempfile.tempdir = tempfile.tempdir, str(tmp_path_factory.mktemp("pages"))
    yield {}
    tempfile.tempdir = before


def run(name, namespaces):
    """The namespace of a page after its blocks ran, once for all tests."""
    if name not in namespaces:
        space = {"__name__": name}
        shown = pages.run_all((DOCS / name).read_text(), space, name)
        namespaces[name] = space, shown
    return namespaces[name]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in RUN]
)
def test_the_blocks_of_a_page_run_and_print_what_it_shows(name, namespaces):
    _, shown = run(name, namespaces)
    for expected, printed in shown:
        assert pages.agree(expected, printed), f"{name} shows\n{expected}\nand prints\n{printed}"


@pytest.mark.slow
def test_the_page_of_several_devices_is_true_on_eight():
    path = DOCS / "howto" / "devices.md"
    assert run_module("tests.pages", str(path), devices=8) == "as shown"


def test_the_tutorial_ends_with_what_it_promises(namespaces):
    space, _ = run("tutorial.md", namespaces)
    mask, tuned = space["pruned"].mask, space["tuned"]
    assert jp.trees.drop(mask) == round(0.9 * 17024)
    dropped = jax.tree.map(lambda w, keep: w[~keep], tuned, mask)
    assert all((x == 0).all() for x in jax.tree.leaves(dropped))
    assert space["accuracy"](tuned) > 90
    assert space["coupling"].flops(space["coupling"].kept(space["thin"].mask)) * 2 <= (
        space["coupling"].flops()
    )
    assert space["same"] < 1e-4


def test_the_long_pages_are_pages_with_code():
    assert set(LONG) <= set(RUN)
    assert {"tutorial.md", "howto/n_of_m.md", "howto/resume.md"} <= set(RUN) - set(LONG)
