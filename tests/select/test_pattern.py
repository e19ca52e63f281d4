"""N:M and blocks, where the laws of all selections do not reach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests import doubles


@pytest.mark.parametrize("axis", [-4, -3, -2, -1, 0, 1, 2, 3])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (4, 4)])
def test_n_of_m_runs_along_any_axis_of_a_convolution_kernel(axis, n, m):
    scores = np.random.default_rng(0).integers(-2, 3, (4, 8, 4, 8)).astype(np.float32)
    mask = jp.select.n_of_m(n, m, axis=axis)([jnp.asarray(scores)], [jnp.asarray(scores)])[0]
    np.testing.assert_array_equal(mask, doubles.n_of_m([scores], n, m, axis)[0])
    groups = np.moveaxis(np.asarray(mask), axis, -1).reshape(-1, m)
    assert (groups.sum(1) == n).all()


@pytest.mark.parametrize("axis", [-4, -3, -2, -1, 0, 1, 2, 3])
def test_n_of_m_says_that_the_entries_of_a_group_compete(axis):
    params = {"a": jnp.ones((4, 8, 4, 8)), "b": jnp.ones(3), "c": jnp.ones((4, 4, 4, 4))}
    found = jp.select.n_of_m(2, 4, axis=axis).parts(params)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, params)
    groups = [np.moveaxis(found[name], axis, -1).reshape(-1, 4) for name in "ac"]
    groups = np.concatenate(groups)
    assert (groups == groups[:, :1]).all()
    np.testing.assert_array_equal(np.sort(groups[:, 0]), np.arange(len(groups)))
    assert (found["b"] == -1).all()


@pytest.mark.parametrize("sparsity", [None, 0.5, jnp.float32(0.5), np.float64(0.5)])
def test_n_of_m_takes_its_own_sparsity_or_none(sparsity):
    scores = [jnp.arange(16.0).reshape(4, 4)]
    assert int(jp.select.n_of_m(2, 4)(scores, scores, sparsity=sparsity)[0].sum()) == 8


def test_n_of_m_never_revives_what_is_pruned():
    scores = np.ones((8, 2), np.float32)
    scores[:3] = -np.inf  # three of the first group of four
    mask = jp.select.n_of_m(2, 4)([jnp.asarray(scores)], [jnp.asarray(scores)])[0]
    assert not mask[:3].any()
    np.testing.assert_array_equal(mask.sum(0), [3, 3])  # one left of the first group, two of four


@pytest.mark.parametrize(("reduce", "double"), [(jnp.max, np.max), (jnp.mean, np.mean)])
def test_blocks_compete_by_the_reduction_given(reduce, double):
    scores = np.random.default_rng(0).permutation(64).reshape(8, 8).astype(np.float32)
    mask = jp.select.blocks((4, 2), reduce=reduce)(
        [jnp.asarray(scores)], [jnp.asarray(scores)], sparsity=0.5
    )[0]
    values = double(scores.reshape(2, 4, 4, 2), axis=(1, 3))
    kept = doubles.lose(values, 4)
    np.testing.assert_array_equal(mask, np.kron(kept, np.ones((4, 2), bool)))


def test_the_floor_of_blocks_counts_blocks():
    scores = [jnp.ones((4, 4)), jnp.zeros((4, 4))]
    masks = jp.select.blocks((2, 2), floor=2)(scores, scores, sparsity=0.5)
    assert [int(m.sum()) for m in masks] == [8, 8]
    with pytest.raises(ValueError, match="floor=2 protects 4"):
        jp.select.blocks((2, 2), floor=2)(scores, scores, sparsity=0.75)


def test_n_of_m_takes_an_axis_for_each_leaf():
    """Attention kernels in Flax are [inputs, heads, size]: their inputs are axis 0."""
    rng = np.random.default_rng(0)
    query, dense = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((8, 4, 3), (8, 4)))
    scores = {"query": {"kernel": query}, "dense": {"kernel": dense}}
    select = jp.select.n_of_m(np.int64(2), np.int32(4), axis={"query/kernel": np.int64(0)})
    mask = select(scores, scores)
    for name, leaf, axis in (("query", query, 0), ("dense", dense, -2)):
        expected = doubles.n_of_m([np.asarray(leaf)], 2, 4, axis)[0]
        np.testing.assert_array_equal(mask[name]["kernel"], expected)
    parts = select.parts(scores)["query"]["kernel"]
    assert (parts[:4] == parts[:1]).all()
    assert len(np.unique(parts)) == 2 * 4 * 3
    with pytest.raises(ValueError, match=r"`axis` names 'query', and no leaf .*'query/kernel'"):
        jp.select.n_of_m(2, 4, axis={"query": 0})(scores, scores)
    for axis in ("0", None, {"query/kernel": 0.5}):
        with pytest.raises(TypeError, match="`axis` is an axis, an integer, or a mapping"):
            jp.select.n_of_m(2, 4, axis=axis)


@pytest.mark.parametrize(("reduce", "double"), [
    (jnp.sum, np.sum), (jnp.mean, np.mean), (jnp.max, np.max), (jnp.min, np.min),
])  # fmt: skip
@pytest.mark.parametrize("shift", [-60, 0])
def test_a_block_partly_pruned_competes_with_what_is_left(reduce, double, shift):
    rng = np.random.default_rng(0)
    scores = rng.permutation(64).reshape(8, 8).astype(np.float32) + shift - 4
    mask = rng.random((8, 8)) < 0.6
    mask[:2, :2] = False  # a block that is gone
    blocks = [(slice(i, i + 2), slice(j, j + 2)) for i in range(0, 8, 2) for j in range(0, 8, 2)]
    value = [double(scores[at][mask[at]]) if mask[at].any() else -np.inf for at in blocks]
    kept = doubles.lose(np.array(value), 8)
    expected = np.zeros((8, 8), bool)
    for keep, at in zip(kept, blocks, strict=True):
        expected[at] = keep & mask[at]
    prune = jp.one_shot(
        lambda params, batch: [jnp.asarray(scores)], jp.select.blocks((2, 2), reduce=reduce)
    )
    found = prune([jnp.ones((8, 8))], sparsity=0.5, mask=[jnp.asarray(mask)]).mask[0]
    np.testing.assert_array_equal(found, expected)


def test_a_block_is_two_integers_of_any_kind_and_its_messages_count_blocks():
    scores = [jnp.arange(16.0).reshape(4, 4)]
    given = jp.select.blocks(np.array([2, 2]), floor=np.int64(1))(scores, scores, sparsity=0.5)[0]
    plain = jp.select.blocks((2, 2))(scores, scores, sparsity=0.5)[0]
    np.testing.assert_array_equal(given, plain)
    with pytest.raises(ValueError, match="two integers >= 1; got shape=4"):
        jp.select.blocks(4)
    with pytest.raises(ValueError, match="Cannot prune 2 of 4 blocks: floor=3 protects 3 blocks"):
        jp.select.blocks((2, 2), floor=3)(scores, scores, sparsity=0.5)
