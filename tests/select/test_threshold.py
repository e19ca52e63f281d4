"""The k-th value without a sort, against a sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.select import threshold
from tests import doubles


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_kth_smallest_is_that_of_a_sort_at_every_rank(dtype):
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(0)
        parts = [rng.normal(size=40), -(10.0 ** rng.uniform(-30, 30, 40)), np.zeros(5)]
        x = np.concatenate([*parts, -np.zeros(5), [np.inf, -np.inf] * 3]).astype(dtype)
        scores = jnp.asarray(rng.permutation(x))
        find = lambda rank: threshold.kth_smallest(scores, rank)
        found = jax.jit(jax.vmap(find))(jnp.arange(x.size))
        np.testing.assert_array_equal(found, np.sort(x))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_cut_value_has_at_most_rank_below_it_and_at_least_rank_not_above(dtype):
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(3)
        x = np.concatenate([rng.normal(size=50), np.repeat(rng.normal(size=5), 20)]).astype(dtype)
        scores = jnp.asarray(x)
        counts = lambda pivots: threshold.below(scores, pivots, (0,))
        find = lambda rank: threshold.cut_value(counts, rank, scores.dtype)
        ranks = np.arange(x.size + 1)
        cuts = np.asarray(jax.jit(jax.vmap(find))(jnp.asarray(ranks)[:, None]))
        assert ((x < cuts).sum(1) <= ranks).all()
        assert ((x <= cuts).sum(1) >= ranks).all()


def test_the_search_ends_at_the_first_pivot_that_separates():
    passes = []

    def counts(pivots):
        jax.debug.callback(lambda: passes.append(1))
        return threshold.below(scores, pivots, (0,))

    scores = jnp.asarray([-3.0, -2.0, 5.0, 7.0])
    threshold.cut_value(counts, jnp.array([2]), scores.dtype)
    jax.effects_barrier()
    assert len(passes) < 4  # of sixteen: 0.0 is among the first pivots


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_parts_along_any_axes_are_cut_each_by_itself(axes):
    rng = np.random.default_rng(1)
    scores = rng.integers(-3, 4, (3, 4, 5)).astype(np.float32)
    others = [a for a in range(3) if a not in axes]
    part = int(np.prod([scores.shape[a] for a in axes]))
    keep = jax.jit(lambda k: threshold.keep_largest(jnp.asarray(scores), k, axes))
    for k in range(part + 1):
        found = np.asarray(keep(k))
        for where in np.ndindex(*[scores.shape[a] for a in others]):
            at = [slice(None)] * 3
            for a, i in zip(others, where, strict=True):
                at[a] = i
            np.testing.assert_array_equal(found[tuple(at)], doubles.lose(scores[tuple(at)], k))


def test_every_part_may_lose_another_number():
    scores = jnp.asarray(np.random.default_rng(2).normal(size=(6, 4)), jnp.float32)
    counts = np.array([[0], [1], [2], [3], [4], [2]])
    found = threshold.keep_largest(scores, jnp.asarray(counts), (1,))
    np.testing.assert_array_equal((~found).sum(1, keepdims=True), counts)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), ()])
def test_empty_arrays_and_scalars_have_masks(shape):
    mask = threshold.keep_largest(jnp.ones(shape), 0)
    assert mask.shape == shape
    assert np.all(mask)


def test_a_search_over_positions_may_use_every_bit_of_its_words():
    """2**31 ties would not fit in here; a search over counts that are positions does."""
    positions = lambda pivots: [jnp.minimum(p, np.uint32(2**31 - 1)).astype(jnp.int32)
                                for p in pivots]  # fmt: skip
    for rank in (0, 1, 2**29, 2**30 - 1, 2**30, 2**30 + 5, 2**31 - 2):
        found = threshold._bit_search(positions, jnp.int32(rank), jnp.uint32, 31)
        assert int(found) == rank


def test_ties_are_searched_in_unsigned_words():
    """What the test above rests on: the position search is given the unsigned type."""
    seen = []
    search = threshold._bit_search

    def spy(counts, rank, dtype, bits, **options):
        seen.append(dtype)
        return search(counts, rank, dtype, bits, **options)

    threshold._bit_search = spy
    try:
        mask = threshold.keep_largest(jnp.zeros(10), 3)
    finally:
        threshold._bit_search = search
    assert len(seen) == 2
    assert all(jnp.issubdtype(dtype, jnp.unsignedinteger) for dtype in seen)
    np.testing.assert_array_equal(mask, np.arange(10) >= 3)
