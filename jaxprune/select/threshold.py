"""The exact k-th smallest score without a sort, in O(1) extra memory.

The order of IEEE floats is the order of their bits (negative ones flipped), so the k-th smallest
value is found by deciding its bits from the top, two at a time: each pass counts the entries below
three pivots in one variadic reduction. Only counts leave the array, so a sharded array exchanges
counts and never weights, and the result cannot depend on the sharding.

Two things differ from the textbook on purpose. Entries are compared as floats and only the pivots
are built from bits: comparing integer keys makes XLA materialise the keys. And ties are resolved by
a second bit search, over positions, because a running count of the ties would cost an array.

XLA on CPU compares subnormal numbers as zero; there, subnormal scores tie with 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.trees import count_dtype, totals

_DIGIT = 2  # bits decided in one pass over the scores; 4 is slower, 1 is far slower

Axes = tuple[int, ...]


class Bound(NamedTuple):
    """Where a part is cut: kept are the entries at or above `(value, index)`, in that order.

    Both are broadcastable against the leaf: size 1 along the reduced axes.
    """

    value: jax.Array
    index: jax.Array


def _layout(dtype: Any) -> tuple[Any, Any, int]:
    bits = jnp.finfo(dtype).bits
    return (jnp.uint32, jnp.int32, bits) if bits == 32 else (jnp.uint64, jnp.int64, bits)


def _float_of(key: jax.Array, dtype: Any) -> jax.Array:
    """The float at a place in the order; places beyond the infinities are clipped to them."""
    unsigned, signed, bits = _layout(dtype)
    lowest = signed(-(2 ** (bits - 1)))
    ordered = lax.bitcast_convert_type(key ^ unsigned(2 ** (bits - 1)), signed)
    infinity = lax.bitcast_convert_type(jnp.array(jnp.inf, dtype), signed)
    ordered = jnp.clip(ordered, -infinity, infinity)
    return lax.bitcast_convert_type(jnp.where(ordered < 0, (-ordered) | lowest, ordered), dtype)


def below(scores: jax.Array, pivots: Sequence[jax.Array], axes: Axes) -> list[jax.Array]:
    """How many entries lie strictly below each pivot, over `axes`, in one pass."""
    return totals([scores < p for p in pivots], axes)


def around(scores: jax.Array, value: jax.Array, axes: Axes) -> list[jax.Array]:
    """How many entries lie strictly below a value, and how many equal it, in one pass."""
    return totals([scores < value, scores == value], axes)


def _bit_search(
    counts: Callable[[list[jax.Array]], list[jax.Array]], rank: jax.Array, dtype: Any, bits: int
) -> jax.Array:
    """The largest x of `bits` bits with `counts([x])[0] <= rank`; elementwise in rank.

    The dtype is unsigned: a pivot may use every bit.
    """
    digits = 2**_DIGIT
    passes = -(-bits // _DIGIT)

    def decide(i: jax.Array, low: jax.Array) -> jax.Array:
        shift = ((passes - 1 - i) * _DIGIT).astype(low.dtype)
        pivots = [low + (low.dtype.type(d) << shift) for d in range(1, digits)]
        passed = sum((c <= rank).astype(low.dtype) for c in counts(pivots))
        return low + (passed << shift)

    return lax.fori_loop(0, passes, decide, jnp.zeros(rank.shape, dtype))


def kth_smallest(
    counts: Callable[[list[jax.Array]], list[jax.Array]], rank: jax.Array, dtype: Any
) -> jax.Array:
    """The value at a rank (0 = smallest), from a function that counts entries below pivots.

    Args:
      counts: `pivots -> counts`, each count of entries strictly below a pivot; shapes as `rank`.
      rank: integer array, 0 <= rank < number of entries.
      dtype: float32 or float64, the dtype of the pivots.

    Returns:
      The largest float v with `counts([v]) <= rank`: it compares equal to the entry of that rank.
    """
    unsigned, _, bits = _layout(dtype)
    as_floats = lambda keys: counts([_float_of(k, dtype) for k in keys])
    return _float_of(_bit_search(as_floats, rank, unsigned, bits), dtype)


def position(shape: tuple[int, ...], axes: Axes) -> jax.Array:
    """Each entry's row-major position within its part; full shape, an integer array."""
    size = math.prod(shape[a] for a in axes)
    dtype, stride = count_dtype(size), 1
    where = jnp.zeros(shape, dtype)
    for axis in sorted(axes, reverse=True):
        where += lax.broadcasted_iota(dtype, shape, axis) * dtype(stride)
        stride *= shape[axis]
    return where


def _cut_ties(
    scores: jax.Array, value: jax.Array, goes: jax.Array, ties: jax.Array, axes: Axes
) -> jax.Array:
    """The position below which `goes` of the `ties` entries equal to `value` lie, per part."""
    size = math.prod(scores.shape[a] for a in axes)
    last = jnp.full_like(goes, size)
    unsigned = jnp.uint32 if goes.dtype == jnp.int32 else jnp.uint64

    def search(_: None) -> jax.Array:
        def counts(pivots: list[jax.Array]) -> list[jax.Array]:
            where = position(scores.shape, axes).astype(unsigned)
            return totals([(scores == value) & (where < p) for p in pivots], axes)

        return _bit_search(counts, goes, unsigned, size.bit_length()).astype(goes.dtype)

    # With all ties going, or none, the position is known, and the search is not paid for.
    easy = jnp.where(goes == 0, 0, last)
    partial = (goes > 0) & (goes < ties)
    found = lax.cond(jnp.any(partial), search, lambda _: easy, None)
    return jnp.where(partial, found, easy)


def bound_at(
    scores: jax.Array, value: jax.Array, goes: jax.Array, ties: jax.Array, axes: Axes
) -> Bound:
    """The bound that prunes what is below `value` and `goes` of the `ties` entries equal to it.

    Entries of `-inf` are below every bound, however few are to go.
    """
    index = _cut_ties(scores, value, goes, ties, axes)
    return Bound(value, jnp.where(value == -jnp.inf, jnp.iinfo(index.dtype).max, index))


def bound_of(scores: jax.Array, pruned: jax.Array, axes: Axes) -> Bound:
    """The bound that prunes the `pruned` smallest entries of each part.

    Args:
      scores: float32 or float64, no NaN, not empty along `axes`.
      pruned: how many go, per part: integers, size 1 along `axes`, 0 <= pruned <= part size.
      axes: the axes that make up a part; every index of the other axes is a part of its own.
    """
    size = math.prod(scores.shape[a] for a in axes)
    rank = jnp.minimum(pruned, max(size - 1, 0))
    value = kth_smallest(lambda pivots: below(scores, pivots, axes), rank, scores.dtype)
    lower, ties = around(scores, value, axes)
    return bound_at(scores, value, pruned.astype(lower.dtype) - lower, ties, axes)


def keep_from(scores: jax.Array, bound: Bound, axes: Axes) -> jax.Array:
    """The bool mask of the entries at or above a bound; one fused pass."""
    where = position(scores.shape, axes)
    return (scores > bound.value) | ((scores == bound.value) & (where >= bound.index))


def keep_largest(scores: jax.Array, pruned: jax.Array, axes: Axes | None = None) -> jax.Array:
    """Mask of what is left when the `pruned` smallest of each part go; ties go by position.

    Args:
      scores: array of float32 or float64 without NaN.
      pruned: integer, or integers of size 1 along `axes`.
      axes: the axes of a part (default: all, the whole array is one part).

    Returns:
      bool array of the same shape. Entries of `-inf` are never kept.

    Example:
      >>> keep_largest(jnp.array([3.0, 1.0, 2.0, 1.0]), jnp.array(1))
      Array([ True, False,  True,  True], dtype=bool)
    """
    axes = tuple(range(scores.ndim)) if axes is None else axes
    if scores.size == 0:
        return jnp.ones(scores.shape, bool)
    parts = tuple(1 if a in axes else d for a, d in enumerate(scores.shape))
    dtype = count_dtype(math.prod(scores.shape[a] for a in axes))
    pruned = jnp.broadcast_to(jnp.asarray(pruned, dtype), parts)
    return keep_from(scores, bound_of(scores, pruned, axes), axes)
