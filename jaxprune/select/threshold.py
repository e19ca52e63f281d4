"""The exact k-th smallest score without a sort, in O(1) extra memory.

The order of IEEE floats is the order of their bits (negative ones flipped), so the k-th smallest
value is found by deciding its bits from the top, two at a time: each pass counts the entries below
three pivots in one variadic reduction, until a pivot cuts exactly. Only counts leave the array, so
a sharded array exchanges counts and never weights, and the result cannot depend on the sharding.

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
from jaxprune.types import Formed

_DIGIT = 2  # bits decided in one pass over the scores; 4 is slower, 1 is far slower

Axes = tuple[int, ...]
Scores = jax.Array | Formed


class Bound(NamedTuple):
    """Where a part is cut: kept are the entries at or above `(value, index)`, in that order.

    Both are broadcastable against the leaf: size 1 along the reduced axes.
    """

    value: jax.Array
    index: jax.Array  # type: ignore[assignment]  # a field, not tuple.index


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


def read(scores: Scores, *tied: jax.Array) -> tuple[jax.Array, ...]:
    """The scores and what is compared with them.

    Scores to be formed are tied to what they are compared with, or XLA would form them before the
    loop over the pivots and keep them.
    """
    if not isinstance(scores, Formed):
        return (scores, *tied)
    n = len(scores.arrays)
    held = lax.optimization_barrier((*scores.arrays, *tied))
    return (scores.form(*held[:n]).astype(scores.dtype), *held[n:])


def below(scores: Scores, pivots: Sequence[jax.Array], axes: Axes) -> list[jax.Array]:
    """How many entries lie strictly below each pivot, over `axes`, in one pass."""
    scores, *pivots = read(scores, *pivots)
    return totals([scores < p for p in pivots], axes)


def around(scores: Scores, value: jax.Array, axes: Axes) -> list[jax.Array]:
    """How many entries lie strictly below a value, and how many equal it, in one pass."""
    scores, value = read(scores, value)
    return totals([scores < value, scores == value], axes)


@jax.jit(static_argnums=1)
def gone(leaf: jax.Array, axes: Axes) -> jax.Array:
    """The largest number of `-inf`, entries pruned already, in a part."""
    return jnp.max(totals([leaf == -jnp.inf], axes)[0], initial=0)


def _bit_search(
    counts: Callable[[list[jax.Array]], list[jax.Array]],
    rank: jax.Array,
    dtype: Any,
    bits: int,
    *,
    to_the_end: bool = False,
) -> jax.Array:
    """An x of `bits` bits that cuts at `rank`; elementwise in rank.

    It is the largest x with `counts([x])[0] <= rank`, or, unless the search is to go to the end,
    one found earlier that reaches equality. The dtype is unsigned: a pivot may use every bit.
    """
    digits = 2**_DIGIT
    passes = -(-bits // _DIGIT)

    def unfinished(state: Any) -> jax.Array:
        i, _, reached = state
        return (i < passes) & (to_the_end | jnp.any(reached != rank))

    def decide(state: Any) -> Any:
        i, low, reached = state
        shift = ((passes - 1 - i) * _DIGIT).astype(low.dtype)
        pivots = [low + (low.dtype.type(d) << shift) for d in range(1, digits)]
        found = counts(pivots)
        passed = sum((c <= rank).astype(low.dtype) for c in found)
        for c in found:  # counts rise with the pivots: the last one that passes is the new low's
            reached = jnp.where(c <= rank, c, reached)
        return i + 1, low + (passed << shift), reached

    start = (jnp.int32(0), jnp.zeros(rank.shape, dtype), jnp.zeros_like(rank))
    return lax.while_loop(unfinished, decide, start)[1]


def cut_value(
    counts: Callable[[list[jax.Array]], list[jax.Array]],
    rank: jax.Array,
    dtype: Any,
    *,
    exact: bool = False,
) -> jax.Array:
    """A value that cuts at a rank, from a function that counts entries below pivots.

    The search ends as soon as a pivot separates exactly `rank` entries from the rest; only where
    ties straddle the rank does it go on to the last bit.

    Args:
      counts: `pivots -> counts`, each count of entries strictly below a pivot; shapes as `rank`.
      rank: integer array, 0 <= rank <= number of entries.
      dtype: float32 or float64, the dtype of the pivots.
      exact: find the entry at the rank itself, not just any value that cuts there.

    Returns:
      A float v with `entries < v` numbering at most `rank`, and `entries <= v` at least that.
    """
    unsigned, _, bits = _layout(dtype)
    as_floats = lambda keys: counts([_float_of(k, dtype) for k in keys])
    key = _bit_search(as_floats, rank, unsigned, bits, to_the_end=exact)
    return _float_of(key, dtype)


def kth_smallest(scores: jax.Array, rank: jax.Array) -> jax.Array:
    """The score at a rank (0 = smallest) of one array, exactly; a scalar.

    Example:
      >>> kth_smallest(jnp.array([3.0, 1.0, 2.0]), jnp.array(1))
      Array(2., dtype=float32)
    """
    axes = tuple(range(scores.ndim))
    rank = jnp.broadcast_to(rank, (1,) * scores.ndim)
    counts = lambda pivots: below(scores, pivots, axes)
    value = cut_value(counts, rank, scores.dtype, exact=True).reshape(())
    return jnp.where(value == 0, 0, value)  # where subnormals compare as zero, it may be one


def position(shape: tuple[int, ...], axes: Axes, one: Any = 1) -> jax.Array:
    """Each entry's row-major position within its part, times `one`; full shape, integers."""
    size = math.prod(shape[a] for a in axes)
    dtype = jnp.dtype(count_dtype(size) if isinstance(one, int) else one.dtype)
    stride, where = 1, jnp.zeros(shape, dtype)
    for axis in sorted(axes, reverse=True):
        where += lax.broadcasted_iota(dtype, shape, axis) * (dtype.type(stride) * one)
        stride *= shape[axis]
    return where


def _cut_ties(
    scores: Scores, value: jax.Array, goes: jax.Array, ties: jax.Array, axes: Axes
) -> jax.Array:
    """The position below which `goes` of the `ties` entries equal to `value` lie, per part."""
    size = math.prod(scores.shape[a] for a in axes)
    last = jnp.full_like(goes, size)
    unsigned = jnp.uint32 if goes.dtype == jnp.int32 else jnp.uint64

    def search(_: None) -> jax.Array:
        def counts(pivots: list[jax.Array]) -> list[jax.Array]:
            # Tied to the pivots, or XLA would take both arrays out of the loop and keep them.
            v, one, *pivots = lax.optimization_barrier((value, unsigned(1), *pivots))
            where = position(scores.shape, axes, one)
            entries, v, *pivots = read(scores, v, *pivots)
            return totals([(entries == v) & (where < p) for p in pivots], axes)

        return _bit_search(counts, goes, unsigned, size.bit_length()).astype(goes.dtype)

    # With all ties going, or none, the position is known, and the search is not paid for.
    easy = jnp.where(goes == 0, 0, last)
    partial = (goes > 0) & (goes < ties)
    found = lax.cond(jnp.any(partial), search, lambda _: easy, None)
    return jnp.where(partial, found, easy)


def bound_at(
    scores: Scores, value: jax.Array, goes: jax.Array, ties: jax.Array, axes: Axes
) -> Bound:
    """The bound that prunes what is below `value` and `goes` of the `ties` entries equal to it.

    Entries of `-inf` are below every bound, however few are to go.
    """
    index = _cut_ties(scores, value, goes, ties, axes)
    return Bound(value, jnp.where(value == -jnp.inf, jnp.iinfo(index.dtype).max, index))


def bound_of(scores: Scores, pruned: jax.Array, axes: Axes) -> Bound:
    """The bound that prunes the `pruned` smallest entries of each part.

    Args:
      scores: float32 or float64, no NaN, not empty along `axes`.
      pruned: how many go, per part: integers, size 1 along `axes`, 0 <= pruned <= part size.
      axes: the axes that make up a part; every index of the other axes is a part of its own.
    """
    value = cut_value(lambda pivots: below(scores, pivots, axes), pruned, scores.dtype)
    lower, ties = around(scores, value, axes)
    return bound_at(scores, value, pruned.astype(lower.dtype) - lower, ties, axes)


def keep_from(scores: Scores, bound: Bound, axes: Axes) -> jax.Array:
    """The bool mask of the entries at or above a bound; one fused pass."""
    where = position(scores.shape, axes)
    (scores,) = read(scores)
    return (scores > bound.value) | ((scores == bound.value) & (where >= bound.index))


def keep_largest(scores: Scores, pruned: jax.Array, axes: Axes | None = None) -> jax.Array:
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
