"""Evenly spaced levels: error bounds, the zero, ranges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from jaxprune import quantize
from jaxprune.quantize.calibration import percentiles, rank
from tests.quantize.quantize_cases import assert_same_bits, normal

U = 2.0**-24  # half a unit in the last place of float32
KINDS = [(2, True), (5, True), (16, True), (1, False), (3, False), (8, False), (16, False)]
fewer = settings(max_examples=40)
each_kind = pytest.mark.parametrize(("bits", "symmetric"), KINDS)
weights = npst.arrays(np.float32, (4, 3), elements=st.floats(-1e3, 1e3, width=32))
huge = npst.arrays(np.float32, (4, 3), elements=st.floats(width=32, allow_nan=False,
                                                         allow_infinity=False))  # fmt: skip


def quantized(w, bits, symmetric, **options):
    found = quantize.uniform(bits, symmetric=symmetric, **options)([jnp.asarray(w)])
    return np.asarray(found.params[0], np.float64), found.stored[0]


def squared_error(w, bits, symmetric, **options):
    found, _ = quantized(w, bits, symmetric, **options)
    return np.sum((found - np.asarray(w, np.float64)) ** 2, axis=0)


def check_bound(w, found, scale):
    """Half a step; the quotient that is rounded is off by two roundings, the clip by one."""
    w, scale = np.asarray(w, np.float64), np.asarray(scale, np.float64)
    assert (np.abs(found - w) <= scale / 2 + 4 * U * np.abs(w)).all()


@pytest.mark.every(3)
@each_kind
@pytest.mark.parametrize("channels", [False, True])
@fewer
@given(w=weights)
def test_an_error_is_at_most_half_a_step_and_zero_is_exact(bits, symmetric, channels, w):
    found, stored = quantized(w, bits, symmetric, channels=channels)
    check_bound(w, found, stored.scale)
    assert (found[w == 0] == 0).all()
    codes = np.asarray(stored.codes)
    assert codes.max() < 2**bits - symmetric  # a symmetric grid has one level less
    assert codes.dtype == (np.uint8 if bits <= 8 else np.uint16)
    span = np.abs(w).max(0) * 2 if symmetric else np.maximum(w.max(0), 0) - np.minimum(w.min(0), 0)
    levels = 2**bits - (2 if symmetric else 1)
    least = 4 * np.finfo(np.float32).tiny
    widest = np.maximum(span if channels else np.max(span), least * levels)
    if channels or symmetric:
        # No step is wasted: the scale is the span over the levels, rounded up.
        assert (stored.scale <= widest / levels * (1 + 2.0 ** (bits - 23)) * (1 + 4 * U)).all()


@pytest.mark.parametrize(("bits", "symmetric"), [(2, True), (16, True), (2, False), (8, False)])
@fewer
@given(w=huge)
def test_the_largest_and_the_smallest_floats_are_quantized_too(bits, symmetric, w):
    found, stored = quantized(w, bits, symmetric)
    assert np.isfinite(found).all()
    # At the very end of float32 the scale is rounded down instead, and the last level is lower.
    slack = 2.0 ** (bits - 23) * np.abs(w).max()
    error = np.abs(found - np.asarray(w, np.float64))
    assert (error <= float(stored.scale) / 2 + 4 * U * np.abs(w) + slack).all()


@each_kind
@fewer
@given(w=weights)
def test_quantizing_again_gives_the_same_levels_while_the_end_ones_are_in_use(bits, symmetric, w):
    found, stored = quantized(w, bits, symmetric)
    again, second = quantized(found.astype(np.float32), bits, symmetric)
    codes, m = np.asarray(stored.codes, int), 2 ** (bits - 1) - 1
    ends = np.abs(codes - m).max() == m if symmetric else np.ptp(codes) == 2**bits - 1
    if symmetric and bits <= 11 and np.abs(w).max() > 1e-30:
        assert ends
    if ends:
        np.testing.assert_array_equal(again, found)
    else:  # its zero point lay half-way, or its scale was rounded up much: the range is shorter
        check_bound(found, again, second.scale)


@given(w=weights, bits=st.sampled_from([2, 5]))
def test_products_are_exact_so_that_levels_are_whole_multiples(w, bits):
    found, stored = quantized(w, bits, True)
    steps = np.asarray(stored.codes, np.float64) - (2 ** (bits - 1) - 1)
    np.testing.assert_array_equal(found, steps * np.float64(stored.scale))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("calibration", ["max", "percentile"])
def test_a_scale_a_channel_is_the_channel_quantized_alone(symmetric, calibration):
    w = normal(3, 3, 4, 2)
    options = {"symmetric": symmetric, "calibration": calibration}
    options |= {"percentile": 95} if calibration == "percentile" else {}
    whole = quantize.uniform(3, channels=True, **options)([w])
    assert whole.stored[0].scale.shape == (2,)
    alone = quantize.uniform(3, **options)([w[..., 0], w[..., 1]])
    assert_same_bits(whole.params[0], jnp.stack(alone.params, -1))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("channels", [True, False])
@fewer
@given(w=npst.arrays(np.float32, (30, 2), elements=st.floats(-1e3, 1e3, width=32)))
def test_least_squares_is_never_worse_than_max(symmetric, channels, w):
    options = {"bits": 3, "symmetric": symmetric, "channels": channels}
    least = squared_error(w, calibration="mse", **options)
    widest = squared_error(w, calibration="max", **options)
    # Two sums of n squares in float32, each square and each addition rounded, compared.
    slack = 1 + 2 * (w.size + 8) * U
    tiny = w.size * (np.abs(w).max() * 2.0**-60) ** 2  # squares that underflow
    if channels:
        assert (least <= widest * slack + tiny).all()
    else:
        assert least.sum() <= widest.sum() * slack + tiny


@pytest.mark.parametrize(("bits", "symmetric"), [(2, True), (4, False)])
@pytest.mark.parametrize("tail", [1, 3])
def test_least_squares_comes_near_the_best_ratio_of_a_fine_search(bits, symmetric, tail):
    w = np.asarray(normal(1000, 1)) ** tail
    low, high = (-np.abs(w).max(), np.abs(w).max()) if symmetric else (w.min(), w.max())
    m = 2 ** (bits - 1) - 1

    def error(ratio):
        levels = 2 * m if symmetric else 2**bits - 1
        scale = ratio * (high - low) / levels
        zero = m if symmetric else np.round(-ratio * low / scale)
        codes = np.clip(np.round(w / scale) + zero, 0, levels)
        return np.sum((scale * (codes - zero) - w) ** 2)

    best = min(error(ratio) for ratio in np.linspace(1 / 500, 1, 500))
    found = squared_error(w, bits, symmetric, calibration="mse").sum()
    assert found <= best * 1.02  # the search is 2 % fine, and the error flat at its bottom
    assert found < squared_error(w, bits, symmetric).sum() * 0.95


@given(
    w=npst.arrays(np.float32, (21, 1), elements=st.floats(-8, 8, width=16)),
    keep=npst.arrays(bool, (21, 1)),
)
def test_percentiles_are_those_of_the_kept_weights(w, keep):
    for symmetric in (True, False):
        quantizer = quantize.uniform(
            4, symmetric=symmetric, calibration="percentile", percentile=79
        )
        stored = quantizer([jnp.asarray(w)], [jnp.asarray(keep)]).stored[0]
        at = lambda w, percent: np.percentile(w.astype(np.float64), percent, method="nearest")
        if not keep.any():
            span = 0.0
        elif symmetric:
            span = 2 * at(np.abs(w[keep]), 79)
        else:
            span = max(at(w[keep], 79), 0) - min(at(w[keep], 21), 0)
        if keep.any() and span == 0:  # only zeros are inside: the whole range
            ends = np.abs(w[keep]).max() * np.float64([-1, 1])
            span = np.ptp(ends if symmetric else [*w[keep].astype(np.float64), 0])
        expected = max(span / (14 if symmetric else 15), 4 * np.finfo(np.float32).tiny)
        np.testing.assert_allclose(stored.scale, expected, rtol=2.0**-19 + 8 * U)


@pytest.mark.parametrize("symmetric", [True, False])
def test_where_a_percentile_is_0_the_range_is_the_whole_one(symmetric):
    w = jnp.zeros((100, 3)).at[:2, 0].set(jnp.array([1.0, -2.0])).at[:, 1].set(normal(100))
    options = {"symmetric": symmetric, "channels": True}
    clipped = quantize.uniform(5, calibration="percentile", percentile=90, **options)
    found, whole = clipped([w]).params[0], quantize.uniform(5, **options)([w]).params[0]
    np.testing.assert_array_equal(found[:, [0, 2]], whole[:, [0, 2]])
    assert np.abs(found[:, 1]).max() < np.abs(whole[:, 1]).max()
    assert_same_bits(jax.jit(clipped)([w]).params[0], found)


@pytest.mark.parametrize("count", [0, 1, 7, 2**24 + 1, 2**24 + 4, 2**24 + 8, 10**9 + 1, 2**31 - 1])
@pytest.mark.parametrize("percent", [0.0, 50.0, 99.9, 100.0])
def test_a_rank_is_one_that_there_is_and_the_nearest_that_float32_tells(count, percent):
    found, last = int(rank(jnp.int32(count), percent, jnp.float32)), max(count - 1, 0)
    assert 0 <= found <= last
    exact = last * percent / 100
    assert abs(found - exact) <= 0.5 + 2 * U * exact + 2 * U * last


@pytest.mark.slow
def test_of_2_to_the_24_weights_and_more_a_percentile_is_found_too():
    w = jnp.zeros((2**24 + 4, 1), jnp.float32).at[0, 0].set(3.0)
    low, high = percentiles(w, None, (0, 1), False, 100.0)
    assert (float(low), float(high)) == (0.0, 3.0)


def test_a_percentile_that_would_be_ignored_is_an_error():
    for calibration in ("max", "mse"):
        with pytest.raises(ValueError, match='`percentile` is of `calibration="percentile"`'):
            quantize.uniform(4, calibration=calibration, percentile=99.9)


def test_weights_beyond_a_clipped_range_go_to_its_ends():
    w = jnp.array([[-9.0, -1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 30.0]])
    found = quantize.uniform(4, calibration="percentile", percentile=80)([w]).params[0]
    end = float(found.max())
    assert end < 5
    np.testing.assert_array_equal(np.asarray(found)[0, [0, -1]], [-end, end])


def test_affine_has_the_levels_of_the_range_and_symmetric_one_less_and_more_are_better():
    w = jnp.linspace(-1, 2, 1001)[:, None]
    for symmetric in (True, False):
        errors = []
        for bits in (2, 3, 6):
            found = quantize.uniform(bits, symmetric=symmetric)([w]).params[0]
            used = len(np.unique(found))
            assert used < 2**bits if symmetric else used == 2**bits
            errors.append(np.sum((found - w) ** 2))
        assert (np.diff(errors) < 0).all()


def test_a_wide_16_bit_range_does_not_overflow_its_leaf():
    w = jnp.array([[65504.0, -30000.0, 1.0]], jnp.float16)
    for bits, symmetric in ((2, False), (16, True)):
        found = quantize.uniform(bits, symmetric=symmetric)([w]).params[0]
        assert np.isfinite(np.asarray(found, np.float32)).all()


def test_bfloat16_and_float16_leaves_are_off_by_half_a_step_and_their_own_rounding():
    for dtype, unit in ((jnp.bfloat16, 2.0**-8), (jnp.float16, 2.0**-11)):
        w = normal(20, 10, dtype=dtype)
        found, stored = quantized(w, 4, True)
        error = np.abs(found - np.asarray(w, np.float64))
        assert (error <= float(stored.scale) / 2 + unit * np.abs(found) * 1.01).all()


def test_under_grad_outside_jit_it_does_not_look_at_values():
    w = jnp.ones((2, 2))
    jax.grad(lambda w: jnp.sum(quantize.uniform(4)([w]).params[0]))(w)
