"""How many entries go: exact integers from a sparsity, outside and inside jit."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.trees import check_sparsity, count_dtype, decimals, is_traced

_DIGITS = 10**7  # float32 tells about seven decimals apart


def pruned_count(sparsity: Any, n: int) -> Any:
    """`round(sparsity * n)`: how many of n entries go.

    A concrete sparsity gives Python's own `round` in float64. A traced float32 is read to seven
    decimals, which is what float32 tells apart, and multiplied in exact integer arithmetic, so
    that 0.9 of 100 million is 90,000,000 inside jit too. (Only where `sparsity * n` is a half to
    the seventh decimal can the two disagree, by one entry.)

    Args:
      sparsity: number in [0, 1), or a traced scalar.
      n: number of entries, a Python integer.

    Returns:
      An int, or an integer array inside jit.

    Example:
      >>> pruned_count(0.9, 1000), int(jax.jit(pruned_count, static_argnums=1)(0.9, 100_000_000))
      (900, 90000000)
    """
    if not is_traced(sparsity):
        return round(check_sparsity(sparsity) * n)
    if sparsity.dtype == jnp.float64:
        return jnp.round(sparsity * n).astype(count_dtype(n))
    return _scaled(sparsity, n)


def _scaled(sparsity: jax.Array, n: int) -> jax.Array:
    """`round(m n / 10**7)` for `m = round(10**7 sparsity)`, without overflowing 32 bits."""
    dtype = count_dtype(n)
    share = jnp.clip(decimals(sparsity.astype(jnp.float32)), 0, _DIGITS).astype(dtype)
    whole, rest = divmod(n, _DIGITS)
    rest_high, rest_low = divmod(rest, 10**4)
    high, low = share // 10**4, share % 10**4
    cross = high * rest_low + low * rest_high  # in units of 10**-3
    tail = (cross % 1000) * 10**4 + low * rest_low  # in units of 10**-7
    up = tail // _DIGITS
    fraction = tail % _DIGITS
    total = share * whole + 10 * high * rest_high + cross // 1000 + up
    half = (2 * fraction == _DIGITS) & (total % 2 == 1)  # ties to even, as Python rounds
    return total + ((2 * fraction > _DIGITS) | half).astype(dtype)


def pruned_counts(sparsities: list[Any], sizes: list[int]) -> list[Any]:
    """`pruned_count` for several parts."""
    return [pruned_count(s, n) for s, n in zip(sparsities, sizes, strict=True)]


def erk_sparsities(shapes: list[tuple[int, ...]], sparsity: Any) -> list[Any]:
    """Erdos-Renyi-Kernel: a sparsity per leaf, sparser where leaves are larger.

    The density of a leaf of shape `d_1 .. d_r` is `min(1, e * (d_1 + .. + d_r) / (d_1 * .. * d_r))`
    and e is such that the densities average to `1 - sparsity` over all entries.

    Args:
      shapes: shapes of the leaves, none of them empty.
      sparsity: number in [0, 1), or a traced scalar.

    Returns:
      A sparsity per leaf, Python floats (traced scalars inside jit, rounded as float32).

    References:
      Evci et al. 2020, Rigging the Lottery, section 3; for dense layers Mocanu et al. 2018.

    Example:
      >>> [round(s, 3) for s in erk_sparsities([(100, 100), (10, 10)], 0.5)]
      [0.505, 0.0]
    """
    sizes = [math.prod(shape) for shape in shapes]
    # A scalar counts as a vector of one.
    raw = [(sum(shape) or 1) / size for shape, size in zip(shapes, sizes, strict=True)]
    order = sorted(range(len(raw)), key=lambda i: -raw[i])  # the densest saturate first
    kept = (1 - sparsity) * sum(sizes)
    dense, weight = 0, sum(r * n for r, n in zip(raw, sizes, strict=True))
    scale: Any = None
    # Walk through how many leaves saturate; the first consistent answer is the solution.
    for i in order:
        candidate = (kept - dense) / weight
        consistent = candidate * raw[i] <= 1
        if scale is None:
            scale, found = candidate, consistent
        elif is_traced(sparsity):
            scale, found = jnp.where(found, scale, candidate), found | consistent
        elif not found:
            scale, found = candidate, consistent
        dense, weight = dense + sizes[i], max(weight - raw[i] * sizes[i], 1e-30)
    if is_traced(sparsity):
        return [1 - jnp.minimum(1.0, scale * r) for r in raw]
    return [1 - min(1.0, scale * r) for r in raw]
