"""Shared values by k-means, in one dimension, where sorting once makes an iteration cheap.

Clusters of numbers are intervals, so on sorted weights a cluster is two positions, found by binary
search, and its sum is a difference of two prefix sums: an iteration over n weights and k values
costs O(k log n). The prefix sums carry their rounding errors along (two floats each), or those
differences would be noise beside the sums of a large leaf.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune import trees
from jaxprune.quantize.leafwise import by_leaf, check_bits
from jaxprune.quantize.rounding import divided, shortened_up
from jaxprune.quantize.stored import Codebook, Quantizer, code_dtype
from jaxprune.types import Predicate


def shared_values(
    bits: int,
    *,
    channels: bool = False,
    iterations: int = 300,
    quantizable: Predicate = trees.default_prunable,
) -> Quantizer:
    """Replace every weight by the nearest of `2**bits` values that its leaf shares.

    The values are Lloyd's k-means of the kept weights: they minimise `sum over w of
    (w - nearest value)^2`, as far as moving each to the mean of its weights does. They start evenly
    spaced from the smallest to the largest, which keeps values for the few large weights; a value
    that no weight is nearest to stays where it is. A leaf of at most `2**bits` distinct weights is
    returned as it is. With a mask, 0 is not a value: what is pruned is 0 by the mask. A leaf is
    sorted, so one that is cut over devices is brought together on each.

    Args:
      bits: of a code, 1 to 16.
      channels: a codebook for each index of the last axis; leaves of rank below 2 have one in any
        case.
      iterations: at most so many; it ends when no value moves. 0 leaves them evenly spaced.
      quantizable: which leaves; the others are stored as they are.

    Returns:
      A `Quantizer`, deterministic.

    Raises:
      ValueError: `bits` or `iterations` is out of range; outside jit, a NaN or an infinity, naming
        the leaf. TypeError: a leaf to quantize that is not real floating-point.

    References:
      Han, Mao, Dally 2016, Deep Compression, section 3 (equation 2, linear initialization); Lloyd
      1982, Least squares quantization in PCM.

    Example:
      >>> import jax.numpy as jnp
      >>> small = shared_values(1)({"kernel": jnp.array([[1.0, 2.0, 7.0, 9.0]])})
      >>> small.params["kernel"]
      Array([[1.5, 1.5, 8. , 8. ]], dtype=float32)
    """
    bits = check_bits(bits, 1, "`shared_values`")
    if iterations < 0:
        raise ValueError(f"`iterations` is a count, 0 or more; got {iterations!r}.")

    return by_leaf(_encode, _Settings(bits, channels, int(iterations)), quantizable)


class _Settings(NamedTuple):
    bits: int
    channels: bool
    iterations: int


def _encode(leaf: jax.Array, kept: Any, settings: _Settings) -> Codebook:
    x = leaf.astype(trees.score_dtype(leaf))
    keep = jnp.ones(x.shape, bool) if kept is None else kept
    size, iterations = 2**settings.bits, settings.iterations
    if settings.channels and x.ndim > 1:
        parts = (-1, x.shape[-1]) if x.size else (0, x.shape[-1])
        one = jax.vmap(lambda w, k: _values(w, k, size, iterations), in_axes=1)
        values = one(x.reshape(parts), keep.reshape(parts))
    else:
        values = _values(x.ravel(), keep.ravel(), size, iterations)
    return nearest(leaf, kept, values.astype(leaf.dtype), settings.bits)


def nearest(leaf: jax.Array, kept: Any, values: jax.Array, bits: int) -> Codebook:
    """A leaf by its nearest values of a codebook; of two as near, the lower."""
    x = leaf.astype(trees.score_dtype(leaf))
    between = _between(values.astype(x.dtype))
    if values.ndim == 2:
        parts = x.reshape((-1, x.shape[-1]) if x.size else (0, x.shape[-1]))
        codes = jax.vmap(_count_below, in_axes=(0, 1), out_axes=1)(between, parts)
        codes = codes.reshape(x.shape)
    else:
        codes = _count_below(between, x)
    codes = codes.astype(code_dtype(bits))
    return Codebook(codes if kept is None else jnp.where(kept, codes, 0), values, kept, bits)


def _count_below(cuts: jax.Array, x: jax.Array) -> jax.Array:
    """How many of the ascending cuts lie below each weight; few of them are counted one by one."""
    return jnp.searchsorted(cuts, x, method="compare_all" if len(cuts) < 256 else "scan")


def _between(values: jax.Array) -> jax.Array:
    """What separates neighbouring values: weights up to it belong to the lower one."""
    left, right = values[..., :-1], values[..., 1:]
    middle = left / 2 + right / 2
    return jnp.where(middle < right, middle, left)  # of adjacent floats the middle is one of them


def _values(x: jax.Array, keep: jax.Array, size: int, iterations: int) -> jax.Array:
    """The shared values of `x[n]`, ascending, `[size]`."""
    if not x.size:
        return jnp.zeros(size, x.dtype)
    ordered = jnp.sort(jnp.where(keep, x, jnp.inf), stable=False)  # the pruned come last
    kept = jnp.sum(keep)
    high, low = _prefix_sums(jnp.where(jnp.arange(x.size) < kept, ordered, 0))

    def moved(values: jax.Array) -> jax.Array:
        cuts = jnp.searchsorted(ordered, _between(values), side="right")
        start = jnp.concatenate([jnp.zeros(1, cuts.dtype), cuts])
        end = jnp.concatenate([cuts, kept[None].astype(cuts.dtype)])
        mean = ((high[end] - high[start]) + (low[end] - low[start])) / (end - start)
        usable = (end > start) & jnp.isfinite(mean)
        inside = jnp.clip(mean, ordered[start], ordered[end - 1])  # against rounding
        return jnp.where(usable, inside, values)

    def unfinished(state: Any) -> jax.Array:
        i, values, before = state
        return (i < iterations) & jnp.any(values != before)

    start = _start(ordered, kept, size)
    first = (jnp.int32(0), start, jnp.full_like(start, jnp.nan))
    step = lambda state: (state[0] + 1, moved(state[1]), state[1])
    values = lax.while_loop(unfinished, step, first)[1]
    return jnp.where(values == 0, 0, values)  # a mean may be -0, which would not be stored as 0


def _start(ordered: jax.Array, kept: jax.Array, size: int) -> jax.Array:
    """Evenly spaced from the smallest to the largest; the distinct weights where so few."""
    inside = jnp.arange(ordered.size) < kept
    smallest, largest = ordered[0], ordered[jnp.maximum(kept - 1, 0)]
    # In a step so short that its multiples are exact: the same numbers in every program.
    bits = size.bit_length()
    step = shortened_up(divided(largest / 2 - smallest / 2, (size - 1) / 2), bits)
    even = jnp.minimum(smallest + jnp.arange(size, dtype=step.dtype) * step, largest)
    new = jnp.concatenate([jnp.zeros(1, bool), ordered[1:] != ordered[:-1]]) & inside
    rank = jnp.cumsum(new)
    distinct = jnp.full(size, largest).at[jnp.where(inside, rank, size)].set(ordered, mode="drop")
    start = jnp.where(rank[-1] < size, distinct, even)
    return jnp.where(kept > 0, start, 0)


def _prefix_sums(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`[n + 1]` sums of the first i entries, each as a float and what its rounding left out."""
    columns = math.isqrt(x.size - 1) + 1
    rows = -(-x.size // columns)
    table = jnp.pad(x, (0, rows * columns - x.size)).reshape(rows, columns)
    add = lambda carry, y: (_add(carry, y),) * 2
    zeros = (jnp.zeros(rows, x.dtype),) * 2
    last, within = lax.scan(add, zeros, (table.T, jnp.zeros_like(table.T)))
    nothing = (jnp.zeros((), x.dtype),) * 2
    _, through = lax.scan(add, nothing, last)
    before = tuple(jnp.concatenate([jnp.zeros(1, x.dtype), t[:-1]]) for t in through)
    sums = _add((within[0].T, within[1].T), (before[0][:, None], before[1][:, None]))
    high, low = (jnp.concatenate([jnp.zeros(1, x.dtype), s.ravel()[: x.size]]) for s in sums)
    return high, low


def _add(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> Any:
    """The sum of two such pairs (Knuth's two-sum, then renormalised)."""
    high = a[0] + b[0]
    back = high - a[0]
    low = ((a[0] - (high - back)) + (b[0] - back)) + (a[1] + b[1])
    total = high + low
    return total, low - (total - high)
