"""Selections of random scores against numpy: stable sorts, in every scope, pattern and dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import jaxprune as jp
from tests import doubles
from tests.fuzz.drawing import (
    Row,
    another_leaf,
    each,
    float_specs,
    floats,
    holds,
    is_floating,
    nested,
    spoiled,
)

select = jp.select
ALIGNED = [((4, 8), "float32"), ((2, 4, 4), "bfloat16")]


def wide_score(x):
    """What a selection reads: float32 (or float64), subnormal numbers as XLA compares them."""
    return doubles.flushed(np.asarray(x).astype(np.float64 if x.dtype == np.float64 else "float32"))


def scored(draw, specs, kind=None):
    """A tree of scores, partly -inf at times, with a leaf that takes no part; its names."""
    leaves = []
    share = draw.one([0, 0, 0.2, 1])
    for shape, dtype in specs:
        x = floats(draw, shape, dtype, kind)
        gone = draw.rng().random(shape) < (share if draw.yes() else 0)
        leaves.append(jnp.asarray(np.where(gone, np.asarray(-np.inf, x.dtype), x)))
    if draw.yes():
        leaves.append(another_leaf(draw))
    return nested(draw, leaves)


def taking_part(tree, names):
    pairs = zip(names, jax.tree.leaves(tree), strict=True)
    return zip(*[(n, x) for n, x in pairs if is_floating(n, x)], strict=True)


def asked_sparsity(draw, n):
    """A fraction: any, one that falls on an entry, or nearly none."""
    value = draw(st.floats(0, 0.999) | st.integers(0, max(n - 1, 0)).map(lambda k: k / max(n, 1)))
    kind = draw.one([float, np.float64, np.float32])
    given = kind(value)
    return given, jp.trees.check_sparsity(float(given) if kind is not np.float32 else given)


def compare(chosen, tree, scores, sparsity, expected):
    """The mask of the leaves that take part is `expected`; the others' are True; or an error.

    `expected` is a list of masks, or the text of the message.
    """
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            chosen(tree, scores, sparsity=sparsity)
        return
    mask = chosen(tree, scores, sparsity=sparsity)
    assert jax.tree.structure(mask) == jax.tree.structure(tree)
    truth = iter(expected)
    for leaf, found in zip(jax.tree.leaves(tree), jax.tree.leaves(mask), strict=True):
        assert found.dtype == bool
        want = next(truth) if is_floating("", leaf) else np.ones(leaf.shape, bool)
        np.testing.assert_array_equal(np.asarray(found), want)


def refused_global(scores, sparsity, floor):
    """The message of the global ranking, or None."""
    goes = round(sparsity * sum(s.size for s in scores))
    gone = [int((s == -np.inf).sum()) for s in scores]
    most = sum(max(s.size - min(floor, s.size), g) for s, g in zip(scores, gone, strict=True))
    if goes > most:
        return "protects"
    return "pruned already" if sum(gone) > goes else None


def refused_parts(names, scores, shares, floor, axis=None):
    """The message of a scope by leaves, or None: floors come first, then what is pruned."""
    found = []
    for name, s, share in zip(names, scores, shares, strict=True):
        if axis is None or not s.ndim:
            parts = s.reshape(1, -1)
        else:
            each_part = s.size // max(s.shape[axis], 1)
            parts = np.moveaxis(s, axis, 0).reshape(s.shape[axis], each_part)
        k = round(share * parts.shape[1])
        if (parts.shape[1] - k) * (len(parts) if parts.size else 0) < min(floor, s.size):
            return "fewer than floor"
        if ((parts == -np.inf).sum(1) > k).any():
            found.append(f"{jp.trees.label(name)} are pruned already")
    return found[0] if found else None


def ranked(draw):
    scope = draw.one(["global", "layer", "output", "erk", "mapping"])
    tree, all_names = scored(draw, float_specs(draw))
    names, leaves = taking_part(tree, all_names)
    scores = [wide_score(x) for x in leaves]
    floor = draw.number(0, 2)
    given, sparsity = asked_sparsity(draw, sum(s.size for s in scores))
    options = {"prunable": is_floating, "floor": floor}
    if scope == "global":
        expected = refused_global(scores, sparsity, floor)
        expected = expected or doubles.one_ranking(scores, sparsity, floor)
        compare(select.lowest(**options), tree, tree, given, expected)
        return
    shares = [sparsity] * len(scores)
    if scope == "erk":
        some = [i for i, s in enumerate(scores) if s.size]
        spread = doubles.erk_sparsities([scores[i].shape for i in some], sparsity) if some else []
        shares = [0.0] * len(scores)
        for i, share in zip(some, spread, strict=True):
            shares[i] = share
        near = [share * s.size % 1 for share, s in zip(shares, scores, strict=True)]
        if any(abs(x - 0.5) < 1e-6 for x in near):
            return  # the double bisects: it cannot tell to which side a half falls
    if scope == "mapping":
        own = {name: draw.one([0.25, 0.0, lambda s: s / 2]) for name in names if draw.yes()}
        shares = [
            o(sparsity) if callable(o := own.get(name, sparsity)) else o for name in names
        ]  # fmt: skip
        scope = own
    axis = -1 if scope == "output" else None
    expected = refused_parts(names, scores, shares, floor, axis)
    if expected is None and axis is not None:
        one_part = [s.reshape(s.shape or (1,)) if s.ndim else s.reshape(1, 1) for s in scores]
        masks = [
            doubles.by_output([flat], sparsity)[0].reshape(s.shape)
            for flat, s in zip(one_part, scores, strict=True)
        ]
        expected = masks
    expected = expected or doubles.by_leaf(scores, shares)
    compare(select.lowest(scope, **options), tree, tree, given, expected)


def patterned(draw):
    some = [(1, 4), (1, 3)]
    n, m = draw.one([*some, (1, 2), (2, 4), (3, 4), (4, 4)] if draw.wide else some)
    axis = draw.one([-2, -1, 0])
    specs = float_specs(draw) if draw.wide else ALIGNED
    tree, all_names = scored(draw, specs)
    names, leaves = taking_part(tree, all_names)
    bad = [
        jp.trees.label(name) for name, x in zip(names, leaves, strict=True)
        if not -x.ndim <= axis < x.ndim or x.shape[axis] % m
    ]  # fmt: skip
    unique = len(set(all_names)) == len(all_names)  # a mapping tells leaves apart by name
    given = dict.fromkeys(names, axis) if unique and draw.yes() else axis
    chosen = select.n_of_m(n, m, axis=given, prunable=is_floating)
    sparsity = draw.one([None, 1 - n / m])
    expected = bad[0] if bad else doubles.n_of_m([wide_score(x) for x in leaves], n, m, axis)
    compare(chosen, tree, tree, sparsity, expected)
    with pytest.raises(ValueError, match="the pattern decides"):
        chosen(tree, tree, sparsity=(1 - n / m + 0.1) % 1)


def blocked(draw):
    """Whole numbers, so that a sum does not depend on its order."""
    rows, columns = draw.one([(2, 2), (1, 4), (4, 1), (1, 1)] if draw.wide else [(2, 2), (3, 1)])
    specs = float_specs(draw) if draw.wide else ALIGNED
    tree, all_names = scored(draw, specs, "whole")
    names, leaves = taking_part(tree, all_names)
    scores = [wide_score(x) for x in leaves]
    scope, floor = draw.one(["global", "layer"]), draw.number(0, 2)
    given, sparsity = asked_sparsity(draw, sum(s.size for s in scores) // (rows * columns))
    bad = [
        jp.trees.label(name) for name, x in zip(names, scores, strict=True)
        if x.ndim < 2 or x.shape[-2] % rows or x.shape[-1] % columns
    ]  # fmt: skip
    expected = bad[0] if bad else None
    if not bad:
        tiles = [_pooled(s, rows, columns) for s in scores]
        if scope == "global":
            expected = refused_global(tiles, sparsity, floor)
            pick = lambda x: doubles.one_ranking(x, sparsity, floor)
        else:
            expected = refused_parts(names, tiles, [sparsity] * len(tiles), floor)
            pick = lambda x: doubles.by_leaf(x, [sparsity] * len(x))
        expected = expected or doubles.blocks(scores, rows, columns, pick)
    chosen = select.blocks((rows, columns), scope, prunable=is_floating, floor=floor)
    compare(chosen, tree, tree, given, expected)


def _pooled(s, rows, columns):
    """-inf for a block that is all gone, else 0: what the refusals look at."""
    tiles = s.reshape(*s.shape[:-2], s.shape[-2] // rows, rows, s.shape[-1] // columns, columns)
    return np.where((tiles == -np.inf).all(axis=(-3, -1)), -np.inf, 0)


def nonsense(draw):
    """NaN scores, leaves without numbers, other trees, wrong sparsities: named, never guessed."""
    specs = [((4, 4), "float32"), ((2, 3), "float32")]
    leaves = [jnp.asarray(floats(draw, *spec)) for spec in specs]
    tree, names = nested(draw, leaves)
    make = draw.one([select.lowest, lambda **o: select.n_of_m(1, 1, axis=-1, **o),
                     lambda **o: select.blocks((1, 1), **o)])  # fmt: skip
    chosen, i = make(prunable=is_floating), draw.number(0, len(leaves) - 1)
    scores = [*leaves[:i], spoiled(draw, leaves[i]), *leaves[i + 1 :]]
    if np.isnan(np.asarray(scores[i], np.float64)).any():
        with pytest.raises(ValueError, match="is NaN at 1 of") as caught:
            chosen(tree, jax.tree.unflatten(jax.tree.structure(tree), scores), sparsity=0.0)
        assert jp.trees.label(names[i]) in str(caught.value)
    with pytest.raises(ValueError, match="does not have the tree structure"):
        chosen(tree, {"other": tree}, sparsity=0.0)
    other, names = nested(draw, [*leaves, another_leaf(draw)])
    with pytest.raises(TypeError) as caught:
        make(prunable=lambda *_: True)(other, other, sparsity=0.0)
    name = jp.trees.label(names[-1])
    is_complex = jnp.iscomplexobj(jax.tree.leaves(other)[-1])
    told = f"The score of {name} is complex64" if is_complex else f"Cannot prune {name}"
    assert told in str(caught.value)
    for wrong in (1.0, -0.1, np.float32(np.nan), 7):
        with pytest.raises(ValueError, match="must lie in"):
            chosen(tree, tree, sparsity=wrong)


def jitted(draw):
    """Inside jit the mask is the one outside, wherever outside does not refuse."""
    tree, _ = scored(draw, float_specs(draw))
    scope, floor = draw.one(["global", "layer", "output"]), draw.number(0, 2)
    chosen = select.lowest(scope, prunable=is_floating, floor=floor)
    sparsity = np.float32(draw.number(0, 99) / 100)
    try:
        expected = chosen(tree, tree, sparsity=sparsity)
    except ValueError:
        return
    found = jax.jit(lambda t, s: chosen(t, t, sparsity=s))(tree, sparsity)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(a, b)


LAWS = {
    "select.lowest": Row(ranked, fast=40),
    "select.n_of_m": Row(patterned, fast=15),
    "select.blocks": Row(blocked, fast=12),
}
REFUSALS = Row(nonsense, fast=8)
INSIDE_JIT = Row(jitted, fast=0, slow=300)


@each({**LAWS, "refusals": REFUSALS, "inside jit": INSIDE_JIT})
def test_selections_are_stable_sorts(row):
    holds(row)


@pytest.mark.slow
@each({**LAWS, "refusals": REFUSALS, "inside jit": INSIDE_JIT}, wide=True)
def test_selections_are_stable_sorts_hundreds_of_times(row):
    holds(row, wide=True)
