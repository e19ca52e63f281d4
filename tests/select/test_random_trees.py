"""Random trees, scores and sparsities against the numpy doubles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

import jaxprune as jp
from tests import doubles

# A few kinds of tree, as XLA compiles for each; `None` is a leaf that takes no part.
TREES = [
    [(4, 4)],
    {"a": [(12, 8), (4, 4)], "b": None, "c": (2, 4, 8)},
    ((8, 4), {"x": (3, 3, 4, 4), "y": None}, [(4, 12)]),
]
ODD = [(5,), (1, 1), (), (0, 3), {"k": (7, 3), "j": (1, 6)}]

is_shape = lambda x: isinstance(x, tuple) and all(isinstance(d, int) for d in x)


def bits(rng, shape):
    """Any float32 at all, but NaN and infinity."""
    x = rng.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32)
    return np.where(np.isfinite(x), x, np.float32(1.0))


few = lambda rng, shape: rng.choice(np.float32([-2, -1, -0.0, 0, 1, 1.5]), shape)
whole = lambda rng, shape: rng.integers(-1000, 1000, shape).astype(np.float32)
normal = lambda rng, shape: rng.normal(size=shape).astype(np.float32)
equal = lambda rng, shape: np.full(shape, rng.integers(-1, 2), np.float32)

# name: (selection, double, kinds of scores)
ROWS = {
    "global": (jp.select.lowest, doubles.one_ranking, [bits, few, normal, equal]),
    "layer": (
        lambda **o: jp.select.lowest("layer", **o),
        lambda x, s: doubles.by_leaf(x, [s] * len(x)),
        [bits, few, normal, equal],
    ),
    "output": (
        lambda **o: jp.select.lowest("output", **o),
        doubles.by_output,
        [bits, few, normal, equal],
    ),
    "erk": (lambda **o: jp.select.lowest("erk", **o), doubles.erk, [bits, few, normal, equal]),
    "2:4": (
        lambda **o: jp.select.n_of_m(2, 4, **o),
        lambda x, s: doubles.n_of_m(x, 2, 4, -2),
        [bits, few, normal, equal],
    ),
    "blocks": (  # whole numbers: their sums do not depend on the order
        lambda **o: jp.select.blocks((2, 2), **o),
        lambda x, s: doubles.blocks(x, 2, 2, lambda b: doubles.one_ranking(b, s)),
        [whole, equal],
    ),
}


def filled(draw, tree, kinds):
    """The tree with arrays for shapes, and a counter where there is none."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(kinds))
    none = lambda x: x is None or is_shape(x)
    array = lambda x: np.arange(3) if x is None else np.asarray(kind(rng, x))
    return jax.tree.map(array, tree, is_leaf=none)


def floats(tree, like):
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(like), strict=True)
    return [np.asarray(x) for x, y in pairs if np.asarray(y).dtype == np.float32]


ONLY_FLOATS = {"prunable": lambda name, leaf: leaf.dtype == np.float32}


@st.composite
def cases(draw, names, trees):
    name = draw(st.sampled_from(names))
    return name, filled(draw, draw(st.sampled_from(trees)), ROWS[name][2]), draw(st.floats(0, 0.99))


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
    sizes = [x.size // (4 if name == "blocks" else 1) for x in plain]
    may_go = sum(max(n - 1, 0) for n in sizes)
    if name in ("global", "blocks") and round(sparsity * sum(sizes)) > may_go:
        event("forbidden")
        with pytest.raises(ValueError, match="floor=1 protects"):
            make(**ONLY_FLOATS)(scores, scores, sparsity=sparsity)
        return
    event(f"compared, {name}")
    mask = make(**ONLY_FLOATS)(scores, scores, sparsity=sparsity)
    assert jax.tree.structure(mask) == jax.tree.structure(scores)
    for found, truth in zip(floats(mask, scores), expected, strict=True):
        np.testing.assert_array_equal(found, truth)


@settings(max_examples=12)
@given(cases(list(ROWS), TREES))
def test_selections_of_random_trees_are_their_doubles(case):
    check(case)


@settings(max_examples=15)
@given(cases(["global", "layer", "erk"], [ODD]))
def test_vectors_scalars_and_empty_leaves_take_part_if_asked_to(case):
    name, scores, sparsity = case
    n, leaves = 34, 5  # entries, and leaves that have any: the floor keeps one of each
    if name == "global":
        sparsity = min(sparsity, (n - leaves) / n)
    check((name, scores, sparsity))


_jitted = jax.jit(lambda tree, s: jp.select.lowest(**ONLY_FLOATS)(tree, tree, sparsity=s))


@st.composite
def partly_pruned(draw):
    share, whole_leaves = draw(st.floats(0, 1)), draw(st.booleans())

    def kind(rng, shape):
        gone = rng.random(() if whole_leaves else shape) < share
        return np.where(gone, np.float32(-np.inf), rng.choice([few, bits])(rng, shape))

    scores = filled(draw, draw(st.sampled_from(TREES)), [kind])
    return scores, draw(st.integers(0, 99)) / 100


def check_partly_pruned(case):
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


@settings(max_examples=15)
@given(partly_pruned())
def test_inside_jit_whatever_came_before_no_weight_returns_and_the_count_is_exact(case):
    check_partly_pruned(case)


@pytest.mark.slow
@settings(max_examples=5000, derandomize=False)
@given(cases(list(ROWS), TREES))
def test_thousands_of_random_trees(case):
    check(case)


@pytest.mark.slow
@settings(max_examples=3000, derandomize=False)
@given(partly_pruned())
def test_thousands_of_partly_pruned_trees(case):
    check_partly_pruned(case)
