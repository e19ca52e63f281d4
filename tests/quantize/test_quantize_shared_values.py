"""k-means in one dimension: against brute force, and by Lloyd's own laws."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from jaxprune import quantize
from tests.quantize.quantize_cases import assert_same_bits, normal

U = 2.0**-24
fewer = settings(max_examples=50)
sixteenths = st.integers(-64, 64).map(lambda i: i / 16)
weights = npst.arrays(np.float32, (24, 1), elements=sixteenths)
any_weights = npst.arrays(
    np.float32, (24, 1), elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
)


def shared(w, bits, mask=None, **options):
    kept = None if mask is None else [jnp.asarray(mask)]
    return quantize.shared_values(bits, **options)([jnp.asarray(w)], kept)


def squared_error(w, found):
    return np.sum((np.asarray(found.params[0], np.float64) - np.asarray(w, np.float64)) ** 2)


@fewer
@given(w=any_weights)
def test_the_error_never_rises_from_one_iteration_to_the_next(w):
    errors = [squared_error(w, shared(w, 2, iterations=i)) for i in (0, 1, 300)]
    # A mean rounded to float32, against the exact one, costs (w u)^2 an entry, twice.
    assert (np.diff(errors) <= 2 * w.size * (np.abs(w).max() * 2 * U) ** 2).all()


@fewer
@given(w=any_weights, keep=npst.arrays(bool, (24, 1)))
def test_at_its_end_every_value_is_the_mean_of_the_weights_nearest_to_it(w, keep):
    found = shared(w, 2, keep)
    values = np.asarray(found.stored[0].values, np.float64)
    codes = np.asarray(found.stored[0].codes)
    assert (np.diff(values) >= 0).all()
    scale = max(np.abs(w).max(), 1e-30)
    distance = np.abs(w.astype(np.float64) - values)
    mine = np.take_along_axis(distance, codes.astype(int), 1)
    assert (mine[keep] <= distance.min(1, keepdims=True)[keep] + 4 * U * scale).all()
    for code in np.unique(codes[keep]):
        members = w[keep & (codes == code)].astype(np.float64)
        np.testing.assert_allclose(values[code], members.mean(), rtol=0, atol=4 * U * scale)


@fewer
@given(
    jitter=npst.arrays(np.float32, (4, 3), elements=st.floats(-0.1875, 0.1875, width=16)),
    shift=st.integers(-3, 3),
)
def test_of_separate_clusters_it_finds_the_best_of_all_partitions(jitter, shift):
    w = (np.arange(4, dtype=np.float32)[:, None] + jitter + shift).reshape(-1, 1)
    ordered = np.sort(w.ravel()).astype(np.float64)
    cost = lambda part: np.sum((part - part.mean()) ** 2)
    best = min(  # clusters of numbers are intervals
        sum(cost(part) for part in np.split(ordered, cuts))
        for cuts in itertools.combinations(range(1, len(ordered)), 3)
    )
    found = squared_error(w, shared(w, 2))
    np.testing.assert_allclose(found, best, rtol=1e-5, atol=w.size * (8 * U) ** 2)


@fewer
@given(w=weights, keep=npst.arrays(bool, (24, 1)))
def test_few_distinct_weights_are_kept_as_they_are(w, keep):
    kept = np.where(keep, w, 0)
    found = shared(w, 3, keep)
    if len(np.unique(w[keep])) <= 8:
        np.testing.assert_array_equal(found.params[0], kept)
    assert len(np.unique(np.asarray(found.params[0])[keep])) <= 8


def test_a_distinct_neighbour_in_the_last_bit_is_distinct():
    w = np.float32([[1.0], [np.nextafter(np.float32(1), np.float32(2))], [1.0]])
    np.testing.assert_array_equal(shared(w, 1).params[0], w)


def test_no_value_is_spent_on_what_is_pruned():
    w = np.concatenate([np.full((50, 1), 1e-3), np.linspace(1, 4, 4)[:, None]]).astype(np.float32)
    keep = w > 0.5
    found = shared(w, 2, keep)
    np.testing.assert_array_equal(found.params[0], np.where(keep, w, 0))
    np.testing.assert_array_equal(found.stored[0].values, [1, 2, 3, 4])
    assert not np.array_equal(shared(w, 2).params[0], w)


def test_0_iterations_are_evenly_spaced_from_the_smallest_to_the_largest():
    w = normal(100, 3)
    values = shared(w, 4, iterations=0).stored[0].values
    expected = np.linspace(float(w.min()), float(w.max()), 16)
    # The step is rounded up by at most 2**(5 - 23), and taken up to 15 times.
    np.testing.assert_allclose(values, expected, atol=2.0**-18 * np.ptp(expected))
    assert values[-1] == w.max()


def test_a_codebook_a_channel_is_the_channel_alone():
    w = normal(3, 3, 4, 2)
    whole = shared(w, 2, channels=True)
    assert whole.stored[0].values.shape == (2, 4)
    alone = quantize.shared_values(2)([w[..., 0], w[..., 1]])
    assert_same_bits(whole.params[0], jnp.stack(alone.params, -1))


def test_large_leaves_are_averaged_exactly():
    """Prefix sums of 90 000 weights in float32 would be off by a hundred times the tolerance."""
    w = np.asarray(normal(300, 300)) + 10
    found = shared(w, 3, iterations=10_000)
    values, codes = np.asarray(found.stored[0].values), np.asarray(found.stored[0].codes)
    for code in np.unique(codes):
        exact = w[codes == code].astype(np.float64).mean()
        np.testing.assert_allclose(values[code], exact, rtol=4 * U)


@pytest.mark.parametrize("bits", [9, pytest.param(12, marks=pytest.mark.slow)])
def test_wide_codebooks_are_looked_up_alike(bits):
    w = normal(6000, 1)
    found = shared(w, bits)
    values, codes = np.asarray(found.stored[0].values), np.asarray(found.stored[0].codes)
    distance = np.abs(np.asarray(w)[:50] - values)
    mine = np.take_along_axis(distance, codes[:50].astype(int), 1)[:, 0]
    assert codes.dtype == np.uint16
    assert (mine <= distance.min(1) + 4 * U * 5).all()
