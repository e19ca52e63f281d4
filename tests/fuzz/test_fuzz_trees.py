"""Random trees: their names, masks over them, counts, checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import jaxprune as jp
from jaxprune import trees
from tests.fuzz.drawing import (
    Row,
    another_leaf,
    each,
    float_tree,
    holds,
    mixed_tree,
    random_mask,
    raw,
    same_tree,
)
from tests.near import assert_trees_equal

LEFT_OUT = ("bias", "scale", "embedding", "mean", "var")


def names(draw):
    tree, expected = mixed_tree(draw)
    found = trees.named_leaves(tree)
    assert [name for name, _ in found] == expected == trees.paths(tree)
    assert all(a is b for (_, a), b in zip(found, jax.tree.leaves(tree), strict=True))


def labels(draw):
    name = draw(st.text(max_size=5))
    assert trees.label(name) == (f"leaf '{name}'" if name else "the only leaf")


def told_apart(draw):
    """Names of a tree are its own; a key with a slash in it can be another leaf's path."""
    leaf_names = mixed_tree(draw)[1]
    trees.check_names(leaf_names)
    name = draw.one(leaf_names)
    with pytest.raises(ValueError, match="share the names") as caught:
        trees.check_names([*leaf_names, name])
    assert str([name]) in str(caught.value)


def dtypes(draw):
    for leaf in (*jax.tree.leaves(mixed_tree(draw)[0]), another_leaf(draw), draw.one([1, 2.5])):
        real = isinstance(leaf, float) or "float" in str(getattr(leaf, "dtype", ""))
        assert trees.is_float(leaf) == real
        assert trees.is_inexact(leaf) == (real or "complex" in str(getattr(leaf, "dtype", "")))
        wide = isinstance(leaf, np.ndarray) and leaf.dtype in (np.float64, np.complex128)
        assert trees.score_dtype(leaf) == (jnp.float64 if wide else jnp.float32)
        if hasattr(leaf, "dtype"):
            assert trees.dtype_of(leaf) == leaf.dtype
        else:
            assert trees.dtype_of(leaf) == jnp.asarray(leaf).dtype


def by_default(draw):
    tree, leaf_names = mixed_tree(draw)
    for name, leaf in zip(leaf_names, jax.tree.leaves(tree), strict=True):
        weight = "float" in str(leaf.dtype) or "complex" in str(leaf.dtype)
        expected = weight and leaf.ndim >= 2 and name.split("/")[-1] not in LEFT_OUT
        assert trees.default_prunable(name, leaf) == expected


def flags(draw):
    tree, leaf_names = mixed_tree(draw)
    leaves = jax.tree.leaves(tree)
    asked = [draw.yes() for _ in leaves]
    where = {id(leaf): ask for leaf, ask in zip(leaves, asked, strict=True)}
    pick = lambda name, leaf: where[id(leaf)]
    wrong = [
        name for name, leaf, ask in zip(leaf_names, leaves, asked, strict=True)
        if ask and not jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]  # fmt: skip
    if wrong:
        with pytest.raises(TypeError) as caught:
            trees.prunable_flags(tree, pick)
        assert f"Cannot prune {trees.label(wrong[0])}" in str(caught.value)
    elif not any(asked):
        with pytest.raises(ValueError, match="Nothing to prune"):
            trees.prunable_flags(tree, pick)
    else:
        assert trees.prunable_flags(tree, pick) == asked


def likeness(draw):
    """A tree fits itself; one leaf of another shape, dtype or place is named."""
    tree, leaf_names = float_tree(draw)
    mask = trees.full_mask(tree)
    trees.check_like(tree, mask, "mask", boolean=True)
    leaves, i = jax.tree.leaves(mask), draw.number(0, len(leaf_names) - 1)
    how = draw.one(["shape", "dtype", "structure"])
    if how == "structure":
        with pytest.raises(ValueError, match="does not have the tree structure"):
            trees.check_like(tree, [mask, mask], "mask")
        return
    leaves[i] = np.ones((7, *leaves[i].shape), bool) if how == "shape" else np.ones(
        leaves[i].shape, np.int8)  # fmt: skip
    with pytest.raises(ValueError if how == "shape" else TypeError) as caught:
        trees.check_like(tree, same_tree(tree, leaves), "mask", boolean=True)
    assert trees.label(leaf_names[i]) in str(caught.value)


def masks(draw):
    """Every bit of what is kept stays, NaN and -0 too; what is not is +0; keys stay whole."""
    tree, _ = mixed_tree(draw)
    host = draw.yes()
    mask = random_mask(draw, tree)
    if host:
        tree = jax.tree.map(lambda x: x if raw(x)[0] == "uint32" else np.asarray(x), tree)
    found = jp.apply_mask(tree, mask)
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    for leaf, keep, new in zip(*map(jax.tree.leaves, (tree, mask, found)), strict=True):
        if leaf.dtype == bool or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            assert raw(new) == raw(leaf)
        else:
            x = np.asarray(leaf)
            assert raw(new) == raw(np.where(np.asarray(keep), x, np.zeros((), x.dtype)))


def counts(draw):
    """Counts are numpy's, of every leaf, of the tree, and of flagged leaves."""
    tree, _ = mixed_tree(draw)
    full, mask = trees.full_mask(tree), random_mask(draw, tree)
    leaves = [np.asarray(m) for m in jax.tree.leaves(mask)]
    n, kept = sum(m.size for m in leaves), sum(int(m.sum()) for m in leaves)
    assert trees.count(tree) == trees.count(mask) == trees.keep(full) == n
    assert (trees.keep(mask), trees.drop(mask)) == (kept, n - kept)
    assert trees.sparsity(mask) == (n - kept) / max(n, 1)
    asked = [draw.yes() for _ in leaves]
    some = [m for m, ask in zip(leaves, asked, strict=True) if ask]
    found = trees.prunable_counts(mask, asked)
    assert found["prunable"] == sum(m.size for m in some)
    assert found["kept"] == sum(int(m.sum()) for m in some)
    assert found["sparsity"] == 1 - found["kept"] / max(found["prunable"], 1)


def totals(draw):
    """Counts along axes; a count along all of them is a scalar."""
    leaf = random_mask(draw, draw.one(jax.tree.leaves(float_tree(draw)[0])))
    axes = tuple(a for a in range(leaf.ndim) if draw.yes())
    for flags_ in ([leaf], [leaf, ~leaf]):
        for found, flag in zip(trees.totals(flags_, axes), flags_, strict=True):
            np.testing.assert_array_equal(found, np.asarray(flag).sum(axes, keepdims=True))
    assert int(trees.total(leaf)) == np.asarray(leaf).sum()


def whole_leaves(draw):
    for leaf in jax.tree.leaves(mixed_tree(draw)[0]):
        assert raw(trees.kept_whole(leaf)) == raw(np.ones(leaf.shape, bool))


def parts_of_trees(draw):
    """Selected leaves put back give the tree; the others are mapped."""
    tree, _ = mixed_tree(draw)
    leaves = jax.tree.leaves(tree)
    asked = [draw.yes() for _ in leaves]
    some = trees.select_leaves(tree, asked)
    assert [id(x) for x in some] == [
        id(x) for x, ask in zip(leaves, asked, strict=True) if ask
    ]  # fmt: skip
    assert_trees_equal(trees.replace_leaves(tree, asked, some), tree)
    marked = trees.replace_leaves(tree, asked, some, lambda leaf: None)
    assert len(jax.tree.leaves(marked)) == sum(asked)


def placed(draw):
    """From the host and back, bit for bit; a number, a key and a traced array are not on it."""
    for leaf in jax.tree.leaves(mixed_tree(draw)[0]):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            assert not trees.on_host(leaf)
            continue
        assert trees.on_host(leaf)
        assert not trees.on_host(np.asarray(leaf))
        assert raw(trees.from_host(np.asarray(leaf), draw.one([leaf, 1.0]))) == raw(leaf)
        assert raw(trees.beside(leaf, draw.one([leaf, 1.0]))) == raw(leaf)


def traced(draw):
    tree, _ = mixed_tree(draw)
    seen = []
    jax.eval_shape(lambda t: seen.append((trees.is_traced(t), trees.is_traced(0, t))), tree)
    assert seen == [(True, True)]
    assert not trees.is_traced(tree)


def seven_decimals(draw):
    """Every number of seven decimals is read back from its float32."""
    start = draw.number(0, 10**7 - 10**4)
    whole = np.arange(start, start + 10**4)
    np.testing.assert_array_equal(trees.decimals((whole / 10**7).astype(np.float32)), whole)
    np.testing.assert_array_equal(
        trees.decimals(jnp.asarray(whole / 10**7, jnp.float32)), whole
    )  # fmt: skip


def sparsities(draw):
    value = draw(st.floats() | st.integers(-2, 2))
    kind = draw.one([float, np.float64, np.float32, jnp.float32, jnp.bfloat16])
    if abs(value) < 1e30 or value != value:
        given = kind(value)
        read = float(given)
        narrow = kind not in (float, np.float64)
        if 0 <= read < 1 and not (narrow and round(read, 7) >= 1):
            assert abs(trees.check_sparsity(given) - read) <= (5.1e-8 if narrow else 0)
        else:
            with pytest.raises(ValueError, match="lie in"):
                trees.check_sparsity(given)
    with pytest.raises(TypeError, match="a number in"):
        trees.check_sparsity(draw.one(["0.5", True, None, [0.5, 0.5], b"1", {}, np.zeros(2)]))


def wide_counts(draw):
    n = draw(st.integers(0, 2**33))
    if n < 2**31:
        assert trees.count_dtype(n) == jnp.int32
    else:
        with pytest.raises(ValueError, match="Cannot count"):
            trees.count_dtype(n)
        with jax.enable_x64(True):
            assert trees.count_dtype(n) == jnp.int64


LAWS = {
    "trees.named_leaves": Row(names),
    "trees.paths": Row(names),
    "trees.label": Row(labels),
    "trees.check_names": Row(told_apart),
    "trees.dtype_of": Row(dtypes),
    "trees.is_inexact": Row(dtypes),
    "trees.is_float": Row(dtypes),
    "trees.score_dtype": Row(dtypes),
    "trees.default_prunable": Row(by_default),
    "trees.prunable_flags": Row(flags),
    "trees.check_like": Row(likeness),
    "trees.kept_whole": Row(whole_leaves),
    "trees.full_mask": Row(counts),
    "trees.apply_mask": Row(masks),
    "trees.on_host": Row(placed),
    "trees.from_host": Row(placed),
    "trees.beside": Row(placed),
    "trees.is_traced": Row(traced),
    "trees.decimals": Row(seven_decimals),
    "trees.check_sparsity": Row(sparsities),
    "trees.count_dtype": Row(wide_counts),
    "trees.totals": Row(totals, fast=8),
    "trees.total": Row(totals, fast=8),
    "trees.count": Row(counts),
    "trees.keep": Row(counts),
    "trees.drop": Row(counts),
    "trees.sparsity": Row(counts),
    "trees.prunable_counts": Row(counts),
    "trees.select_leaves": Row(parts_of_trees),
    "trees.replace_leaves": Row(parts_of_trees),
}


@each(LAWS)
def test_trees_are_counted_and_named_as_numpy_does(row):
    holds(row)


@pytest.mark.slow
@each(LAWS, wide=True)
def test_trees_are_counted_and_named_as_numpy_does_hundreds_of_times(row):
    holds(row, wide=True)


def test_leaves_that_are_not_floating_are_drawn_too():
    seen = set()
    holds(Row(lambda draw: seen.update(str(x.dtype) for x in jax.tree.leaves(mixed_tree(draw)[0])),
              fast=60))  # fmt: skip
    assert {"int32", "bool", "key<fry>", "bfloat16", "float16", "float32"} <= seen
