"""Quantizers without codes: 16-bit floats, and the floats as they are."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import trees
from jaxprune.quantize.leafwise import as_it_is, by_leaf, masked
from jaxprune.quantize.stored import Plain, Quantized, Quantizer
from jaxprune.types import Mask, Params, Predicate

HALVES = (jnp.dtype(jnp.float16), jnp.dtype(jnp.bfloat16))


def half_precision(
    dtype: Any = jnp.bfloat16, *, quantizable: Predicate = trees.default_prunable
) -> Quantizer:
    """Round every weight to the nearest 16-bit float.

    The error is at most `u |w|`, u = 2^-8 for bfloat16 and 2^-11 for float16, as long as w is in
    the type's normal range. float16 ends at 65504, where larger weights stay. Leaves of 16 bits or
    fewer have nothing to gain and are stored as they are.

    Args:
      dtype: `jnp.bfloat16` or `jnp.float16`.
      quantizable: which leaves; the others are stored as they are.

    Returns:
      A `Quantizer`; its parameters keep their own dtypes, and hold values of the shorter one.

    Raises:
      ValueError: another dtype; outside jit, a NaN or an infinity, naming the leaf. TypeError: a
        leaf to quantize that is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> half_precision()([jnp.array([[1.001, -3.14159]])]).params
      [Array([[ 1.      , -3.140625]], dtype=float32)]
    """
    if jnp.dtype(dtype) not in HALVES:
        raise ValueError(f"`half_precision` takes bfloat16 or float16; got {jnp.dtype(dtype)}.")
    return by_leaf(shortened, jnp.dtype(dtype), quantizable)


def unquantized() -> Quantizer:
    """Nothing quantized: the floats as they are, 0 where pruned.

    With it pruning alone is counted and packed by the same code as pruning with quantization.

    Returns:
      A `Quantizer`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import quantize
      >>> sparse = unquantized()([jnp.array([[1.5, 0.0, 0.0, 0.0]])])
      >>> quantize.stored_bytes(sparse, "bitmask").leaves["0"]
      LeafBytes(form='bitmask', codes=4, tables=0, overhead=1, header=16)
    """

    def quantizer(params: Params, /, mask: Mask | None = None) -> Quantized:
        params, kept = masked(params, mask)
        leaves = jax.tree.leaves(params)
        stored = tuple(as_it_is(leaf, keep) for leaf, keep in zip(leaves, kept, strict=True))
        return Quantized(params, stored)

    return quantizer


def shortened(leaf: jax.Array, kept: Any, dtype: Any) -> Plain:
    """A leaf in a shorter floating-point type; as it is where that is not shorter."""
    if leaf.dtype.itemsize <= dtype.itemsize:
        return as_it_is(leaf, kept)
    largest = float(jnp.finfo(dtype).max)
    return Plain(jnp.clip(leaf, -largest, largest).astype(dtype), kept, leaf.dtype)
