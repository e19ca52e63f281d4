"""Evenly spaced levels, symmetric about 0 or over the range with an integer zero point."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import trees
from jaxprune.quantize import calibration as ranges
from jaxprune.quantize.leafwise import by_leaf, check_bits
from jaxprune.quantize.rounding import divided, shortened_up
from jaxprune.quantize.stored import Grid, Quantizer, centre, code_dtype, value_of
from jaxprune.types import Predicate

_CALIBRATIONS = ("max", "percentile", "mse")


def uniform(
    bits: int,
    *,
    symmetric: bool = True,
    channels: bool = False,
    calibration: str = "max",
    percentile: float | None = None,
    quantizable: Predicate = trees.default_prunable,
) -> Quantizer:
    """Round every weight to the nearest of `2**bits` evenly spaced levels: `(code - zero) scale`.

    Symmetric: levels `-m..m` times the scale, `m = 2**(bits-1) - 1`, `scale = high / m`. Affine:
    `2**bits` levels from low to high, `scale = (high - low) / (2**bits - 1)`, the zero point the
    integer nearest to `-low / scale`. 0 is a level of both, exactly, and the range includes it.
    Inside the range, and everywhere with `calibration="max"`, an error is at most half the scale.

    Differs from the references in one point: the scale is rounded UP to a significand `bits` bits
    shorter than its type's, by a factor of at most `1 + 2**(bits - 23)` in float32. Products with
    codes are then exact on any device, and up to 11 bits, where the end levels stay in use,
    quantizing twice is quantizing once.

    Args:
      bits: of a code: 2 to 16 symmetric, 1 to 16 affine.
      symmetric: levels as far below 0 as above.
      channels: a scale for each index of the last axis (the output channels); leaves of rank
        below 2 have one scale in any case.
      calibration: the range `(low, high)`: "max" holds every kept weight; "percentile" all but
        the largest sizes (affine: all but both ends), or every one where only zeros would be
        inside; "mse" shrinks the range of "max" to the
        least squared error, and is never worse. Weights outside go to the nearest end.
      percentile: of "percentile" alone, in (50, 100]; None means 99.9.
      quantizable: which leaves; the others are stored as they are.

    Returns:
      A `Quantizer`.

    Raises:
      ValueError: `bits`, `calibration` or `percentile` is none of these, or `percentile` would be
        ignored; outside jit, a NaN or an infinity, naming the leaf. TypeError: a leaf to quantize
        that is not real floating-point, or of a type that JAX does not have.

    References:
      Jacob et al. 2018, Quantization and Training of Neural Networks for Efficient
      Integer-Arithmetic-Only Inference, equations 1 and 12; Krishnamoorthi 2018, Quantizing deep
      convolutional networks for efficient inference, sections 2.1 and 2.2.

    Example:
      >>> import jax.numpy as jnp
      >>> small = uniform(3)({"kernel": jnp.array([[0.5, -1.5, 0.1]])})
      >>> small.params["kernel"], small.stored[0].codes  # three levels of 0.5 on either side
      (Array([[ 0.5, -1.5,  0. ]], dtype=float32), Array([[4, 0, 3]], dtype=uint8))
    """
    bits = check_bits(bits, 2 if symmetric else 1, "Symmetric `uniform`" if symmetric else "Affine "
                      "`uniform`")  # fmt: skip
    if calibration not in _CALIBRATIONS:
        raise ValueError(f"`calibration` is one of {_CALIBRATIONS}; got {calibration!r}.")
    if percentile is not None and calibration != "percentile":
        raise ValueError(
            f'`percentile` is of `calibration="percentile"`; with {calibration!r} it would be '
            "ignored. Leave one of them out."
        )
    percentile = 99.9 if percentile is None else percentile
    if not 50 < percentile <= 100:
        raise ValueError(f"`percentile` lies in (50, 100], as 99.9 does; got {percentile!r}.")

    settings = _Settings(bits, symmetric, channels, calibration, float(percentile))
    return by_leaf(_encode, settings, quantizable)


class _Settings(NamedTuple):
    bits: int
    symmetric: bool
    channels: bool
    calibration: str
    percentile: float


def _encode(leaf: jax.Array, kept: Any, settings: _Settings) -> Grid:
    bits, symmetric, channels, calibration, percentile = settings
    x = leaf.astype(trees.score_dtype(leaf))
    axes = tuple(range(x.ndim - 1 if channels and x.ndim > 1 else x.ndim))
    if calibration == "percentile":
        limits = ranges.percentiles(x, kept, axes, symmetric, percentile)
    else:
        limits = ranges.extremes(x, kept, axes, symmetric)
    scale, zero = _grid(limits, bits, symmetric)
    rounded = lambda scale: _on(x, kept, (scale, zero), bits, leaf.dtype)
    if calibration == "mse":
        shrunk = lambda ratio: shortened_up(scale * ratio, bits)
        values = lambda ratio: value_of(rounded(shrunk(ratio))).astype(x.dtype)
        scale = shrunk(ranges.least_squares(x, kept, axes, limits, values))
    return rounded(scale)


def on_grid(leaf: jax.Array, kept: Any, like: Grid) -> Grid:
    """A leaf rounded to the levels of another's grid."""
    x = leaf.astype(jnp.result_type(like.scale))
    return _on(x, kept, (like.scale, like.zero_point), like.bits, leaf.dtype)


def _grid(limits: ranges.Range, bits: int, symmetric: bool) -> tuple[jax.Array, Any]:
    """`(scale, zero point)` of a range."""
    low, high = limits
    if symmetric:
        return shortened_up(divided(high, centre(bits)), bits), None
    levels = 2**bits - 1
    span = high / 2 - low / 2  # in halves: it may overflow
    scale = shortened_up(divided(span, levels / 2), bits)
    zero = jnp.clip(jnp.round(-low / scale), 0, levels)
    return scale, zero.astype(jnp.int32).astype(code_dtype(bits))


def _on(x: jax.Array, kept: Any, grid: tuple[Any, Any], bits: int, dtype: Any) -> Grid:
    scale, zero = grid
    m = centre(bits)
    if zero is None:
        codes = jnp.clip(jnp.round(x / scale), -m, m) + m
    else:
        codes = jnp.clip(jnp.round(x / scale) + zero.astype(x.dtype), 0, 2**bits - 1)
    codes = codes.astype(jnp.int32).astype(code_dtype(bits))
    if kept is not None:
        codes = jnp.where(kept, codes, codes.dtype.type(m) if zero is None else zero)
    return Grid(codes, scale, zero, bits, jnp.dtype(dtype))
