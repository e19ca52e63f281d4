"""Arithmetic that rounds the same in every program, whatever XLA fuses around it.

XLA may turn a division by one number for all into a product with its reciprocal, and a product that
is added to something into one fused operation. Either changes last bits from eager to jit to vmap.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def divided(x: jax.Array, by: float) -> jax.Array:
    """`x / by`, a true quotient: the divisor is not seen to be one number.

    Example:
      >>> divided(jnp.array([1.0, 3.0]), 3)
      Array([0.33333334, 1.        ], dtype=float32)
    """
    return x / jnp.where(jnp.isnan(x), 1, jnp.asarray(by, x.dtype))


def shortened_up(x: jax.Array, bits: int) -> jax.Array:
    """A positive float rounded up to a significand `bits` bits shorter than its type's.

    Its product with an integer of so many bits is exact. At least 4 times the least normal number,
    because XLA on CPU takes subnormal ones for 0; at the very end of the type it is rounded down.

    Example:
      >>> shortened_up(jnp.float32(1 / 3), 8) * 255 == 255 * float(shortened_up(1 / 3, 8))
      Array(True, dtype=bool)
    """
    x = jnp.asarray(x)
    x = jnp.maximum(x, 4 * jnp.finfo(x.dtype).tiny)
    unsigned = jnp.uint32 if x.dtype == jnp.float32 else jnp.uint64
    rest = unsigned(2**bits - 1)
    pattern = lax.bitcast_convert_type(x, unsigned)
    up, down = (lax.bitcast_convert_type(p & ~rest, x.dtype) for p in (pattern + rest, pattern))
    return jnp.where(jnp.isfinite(up), up, down)
