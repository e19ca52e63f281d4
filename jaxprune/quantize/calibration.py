"""Which range a grid covers: all of it, percentiles of it, or the one of least squared error.

A range is `(low, high)` with low <= 0 <= high, per tensor `[]` or per channel `[channels]`: reduced
over `axes`, which are all of them, or all but the last, so that it broadcasts against the leaf.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Range = tuple[jax.Array, jax.Array]
Axes = tuple[int, ...]
Rounded = Callable[[jax.Array], jax.Array]
"""`ratio -> the leaf on the grid of the widest range times that ratio`."""

_OCTAVES, _STEPS, _FINER = 8, 4, 8  # ratios down to 2**-8, 4 an octave, then 8 between two


def extremes(x: jax.Array, kept: Any, axes: Axes, symmetric: bool) -> Range:
    """The smallest range that holds every kept weight and 0; `-low = high` where symmetric.

    Example:
      >>> extremes(jnp.array([1.0, -3.0]), None, (0,), False)
      (Array(-3., dtype=float32), Array(1., dtype=float32))
    """
    where = jnp.ones(x.shape, bool) if kept is None else kept
    if symmetric:
        high = jnp.max(jnp.abs(x), axes, initial=0, where=where)
        return -high, high
    low = jnp.min(x, axes, initial=0, where=where)
    return low, jnp.max(x, axes, initial=0, where=where)


def percentiles(x: jax.Array, kept: Any, axes: Axes, symmetric: bool, percentile: float) -> Range:
    """The range from the `100 - percentile` to the `percentile` of the kept weights, and 0.

    Where symmetric, up to that percentile of their sizes. A percentile is the weight nearest to its
    rank: interpolated ones would differ in the last bit from one fusion to another. Where so many
    weights are 0 that nothing else would lie inside, the range is that of `extremes`.

    Example:
      >>> percentiles(jnp.array([0.0, -1.0, 2.0, 3.0, 50.0]), None, (0,), True, 75.0)
      (Array(-3., dtype=float32), Array(3., dtype=float32))
    """
    if not x.size:
        return extremes(x, kept, axes, symmetric)
    parts = (jnp.abs(x) if symmetric else x).reshape(-1, 1 if len(axes) == x.ndim else x.shape[-1])
    keep = jnp.ones(parts.shape, bool) if kept is None else kept.reshape(parts.shape)
    ordered = jnp.sort(jnp.where(keep, parts, jnp.inf), 0, stable=False)  # pruned last
    count = jnp.sum(keep, axis=0)

    def at(percent: float) -> jax.Array:
        found = jnp.take_along_axis(ordered, rank(count, percent, x.dtype)[None], 0)[0]
        return jnp.where(count > 0, found, 0).reshape(() if len(axes) == x.ndim else found.shape)

    def limits(percent: float) -> Range:
        high = jnp.maximum(at(percent), 0)
        return (-high, high) if symmetric else (jnp.minimum(at(100 - percent), 0), high)

    (low, high), (lowest, highest) = limits(percentile), limits(100.0)
    empty = low == high
    return jnp.where(empty, lowest, low), jnp.where(empty, highest, high)


def rank(count: jax.Array, percent: float, dtype: Any) -> jax.Array:
    """Which of so many weights in ascending order a percentile is, one that there is.

    Example:
      >>> rank(jnp.array([5, 1, 0]), 75.0, jnp.float32)
      Array([3, 0, 0], dtype=int32)
    """
    last = jnp.clip(count - 1, 0)
    place = jnp.round(last.astype(dtype) * (percent / 100)).astype(count.dtype)
    return jnp.minimum(place, last)  # from 2**24 on a float32 is rounded, maybe past the last


def least_squares(
    x: jax.Array, kept: Any, axes: Axes, widest: Range, rounded: Rounded
) -> jax.Array:
    """The ratio to the widest range, 0 < ratio <= 1, whose grid has the least squared error.

    The error is not convex in it, so it is searched on a lattice: 33 ratios from 1 to 1/256, then
    14 about the best of them, 2 % apart. 1 is one of them: none found is worse than the widest.

    Args:
      x: the leaf in the precision of its scales.
      kept: its mask, or None.
      axes: what a range is taken over.
      widest: the range at ratio 1.
      rounded: ratio -> the leaf on that grid.
    """
    low, high = widest
    span = jnp.maximum(high - low, jnp.finfo(x.dtype).tiny)  # so that squares do not underflow
    coarse = np.exp2(-np.arange(_OCTAVES * _STEPS + 1) / _STEPS)
    fine = np.exp2(np.setdiff1d(np.arange(1 - _FINER, _FINER), 0) / (_STEPS * _FINER))
    factors = jnp.asarray(np.concatenate([coarse, fine]), x.dtype)

    def error(ratio: jax.Array) -> jax.Array:
        missed = (rounded(ratio) - x) / span
        return jnp.sum(jnp.square(missed if kept is None else jnp.where(kept, missed, 0)), axes)

    def step(i: Any, state: Any) -> Any:
        base, best, least = state
        ratio = jnp.minimum(base * factors[i], 1)
        found = error(ratio)
        best = jnp.where(found < least, ratio, best)  # of equals the first, so the widest
        base = jnp.where(i == len(coarse) - 1, best, base)  # from here on about the best so far
        return base, best, jnp.minimum(least, found)

    one = jnp.ones_like(low)
    return lax.fori_loop(0, len(factors), step, (one, one, jnp.full_like(low, jnp.inf)))[1]
