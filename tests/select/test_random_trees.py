"""Random trees, scores and sparsities against the numpy doubles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import jaxprune as jp
from tests import doubles

# A few kinds of tree, as XLA compiles for each; `None` is a leaf that takes no part.
TREES = [
    [(4, 4)],
    {"a": [(12, 8), (4, 4)], "b": None, "c": (4, 2, 8)},
    ((8, 4), {"x": (4, 4), "y": None}, [(4, 12)]),
    {"z": (3, 3, 4, 4), "y": ((8, 8), None, (4, 8))},
]
ODD = [(5,), (1, 1), (), (0, 3), {"k": (7, 3), "j": (1, 6)}]

is_shape = lambda x: isinstance(x, tuple) and all(isinstance(d, int) for d in x)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
few = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, 1.5])
whole = st.integers(-1000, 1000).map(float)

# name: (selection, double, scores, does the leaf's shape matter?)
ROWS = {
    "global": (jp.select.lowest, doubles.one_ranking, finite | few),
    "layer": (
        lambda **o: jp.select.lowest("layer", **o),
        lambda x, s: doubles.by_leaf(x, [s] * len(x)),
        finite | few,
    ),
    "output": (lambda **o: jp.select.lowest("output", **o), doubles.by_output, finite | few),
    "erk": (lambda **o: jp.select.lowest("erk", **o), doubles.erk, finite | few),
    "2:4": (
        lambda **o: jp.select.n_of_m(2, 4, **o),
        lambda x, s: doubles.n_of_m(x, 2, 4, -2),
        finite | few,
    ),
    "blocks": (  # whole numbers: their sums do not depend on the order
        lambda **o: jp.select.blocks((2, 2), **o),
        lambda x, s: doubles.blocks(x, 2, 2, lambda b: doubles.one_ranking(b, s)),
        whole | few.map(lambda x: 2 * x),
    ),
}


def filled(draw, tree, elements):
    """The tree with arrays for shapes, and a counter where there is none."""
    array = lambda shape: draw(hnp.arrays(np.float32, shape, elements=elements, fill=st.nothing()))
    none = lambda x: x is None or is_shape(x)
    return jax.tree.map(lambda x: np.arange(3) if x is None else array(x), tree, is_leaf=none)


def floats(tree, like):
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(like), strict=True)
    return [np.asarray(x) for x, y in pairs if np.asarray(y).dtype == np.float32]


ONLY_FLOATS = {"prunable": lambda name, leaf: leaf.dtype == np.float32}


@st.composite
def cases(draw, names, trees):
    name = draw(st.sampled_from(names))
    _, _, elements = ROWS[name]
    return name, filled(draw, draw(st.sampled_from(trees)), elements), draw(st.floats(0, 0.99))


def check(case):
    name, scores, sparsity = case
    make, double, _ = ROWS[name]
    sparsity = 0.5 if name == "2:4" else sparsity
    plain = floats(scores, scores)
    expected = double([doubles.flushed(x) for x in plain], sparsity)
    # A leaf that would be emptied: the global ranking keeps its best, the others refuse.
    emptied = any(m.size and not m.any() for m in expected)
    if emptied and name in ("layer", "output", "erk"):
        event("refused")
        with pytest.raises(ValueError, match="fewer than floor=1"):
            make(**ONLY_FLOATS)(scores, scores, sparsity=sparsity)
        return
    goes = sum(int((~m).sum()) for m in expected)
    if (
        name in ("global", "blocks")
        and goes < round(sparsity * sum(x.size for x in plain)) // 4 * 4
    ):
        event("floor forbids")  # fewer entries than asked for could go
        with pytest.raises(ValueError, match="floor=1 protects"):
            make(**ONLY_FLOATS)(scores, scores, sparsity=sparsity)
        return
    mask = make(**ONLY_FLOATS)(scores, scores, sparsity=sparsity)
    assert jax.tree.structure(mask) == jax.tree.structure(scores)
    for found, truth in zip(floats(mask, scores), expected, strict=True):
        np.testing.assert_array_equal(found, truth)


@settings(max_examples=250)
@given(cases(list(ROWS), TREES))
def test_selections_of_random_trees_are_their_doubles(case):
    check(case)


@settings(max_examples=100)
@given(cases(["global", "layer", "erk"], [ODD]))
def test_vectors_scalars_and_empty_leaves_take_part_if_asked_to(case):
    name, scores, sparsity = case
    # The floor keeps one of each of the five leaves that have any.
    limit = 35 - 5
    if name == "global" and round(sparsity * 35) > limit:
        sparsity = limit / 35
    check((name, scores, sparsity))


_jitted = jax.jit(lambda tree, s: jp.select.lowest(**ONLY_FLOATS)(tree, tree, sparsity=s))


@st.composite
def partly_pruned(draw):
    gone = st.just(-np.inf)
    scores = filled(draw, draw(st.sampled_from(TREES)), few | gone | gone | finite)
    return scores, draw(st.integers(0, 99)) / 100


@settings(max_examples=150)
@given(partly_pruned())
def test_inside_jit_whatever_came_before_no_weight_returns_and_the_count_is_exact(case):
    scores, sparsity = case
    plain = [doubles.flushed(x) for x in floats(scores, scores)]
    found = floats(_jitted(jax.tree.map(jnp.asarray, scores), sparsity), scores)
    for mask, truth in zip(found, doubles.one_ranking(plain, sparsity), strict=True):
        np.testing.assert_array_equal(mask, truth)
    n = sum(x.size for x in plain)
    reached = sum(int((x == -np.inf).sum()) for x in plain)
    most = sum(max(x.size - 1, int((x == -np.inf).sum())) for x in plain)
    goes = min(max(round(sparsity * n), reached), most)
    assert sum(int((~m).sum()) for m in found) == goes


@pytest.mark.slow
@settings(max_examples=5000, derandomize=False)
@given(cases(list(ROWS), TREES))
def test_thousands_of_random_trees(case):
    check(case)


@pytest.mark.slow
@settings(max_examples=3000, derandomize=False)
@given(partly_pruned())
def test_thousands_of_partly_pruned_trees(case):
    test_inside_jit_whatever_came_before_no_weight_returns_and_the_count_is_exact.hypothesis.inner_test(
        case
    )
