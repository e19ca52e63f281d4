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
