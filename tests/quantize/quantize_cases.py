"""The table of quantizers that the laws run over, and what they are run on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import quantize


class Row(NamedTuple):
    """A quantizer.

    Attributes:
      make: `(**options) -> Quantizer`.
      idempotent: does quantizing again change nothing?
      sums: does it compare sums of squares, which round differently in another program?
    """

    make: Callable[..., quantize.Quantizer]
    idempotent: bool = True
    sums: bool = False


def _uniform(bits, idempotent=True, **fixed):
    sums = fixed.get("calibration") == "mse"
    return Row(lambda **options: quantize.uniform(bits, **fixed, **options), idempotent, sums)


def _shared(bits, **fixed):
    return Row(lambda **options: quantize.shared_values(bits, **fixed, **options))


QUANTIZERS = {
    "8 bits": _uniform(8),
    "3 bits, channels": _uniform(3, channels=True),
    "2 bits, least squares": _uniform(2, calibration="mse"),
    "5 bits, percentile": _uniform(5, calibration="percentile", percentile=90, idempotent=False),
    # An affine range can lose its end level when its zero point is half-way: see its own test.
    "6 bits, affine": _uniform(6, symmetric=False, idempotent=False),
    "4 bits, affine, channels, least squares": _uniform(
        4, symmetric=False, channels=True, calibration="mse", idempotent=False
    ),
    "12 bits, affine": _uniform(12, symmetric=False, idempotent=False),
    "3 bits shared": _shared(3),
    "2 bits shared, channels": _shared(2, channels=True),
    "bfloat16": Row(lambda **o: quantize.half_precision(jnp.bfloat16, **o)),
    "float16": Row(lambda **o: quantize.half_precision(jnp.float16, **o)),
}


def normal(*shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def small_net(seed=0):
    """A convolution and its bias; a mask that keeps a third of the weights."""
    params = {
        "conv": {"kernel": normal(3, 3, 2, 4, seed=seed), "bias": normal(4, seed=seed + 1)},
    }
    mask = jax.tree.map(
        lambda w: jnp.ones(w.shape, bool) if w.ndim == 1 else jnp.abs(w) > 1, params
    )
    return params, mask


def raw(leaf):
    """The bits of a leaf, PRNG keys included."""
    if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    leaf = np.asarray(leaf)
    return leaf.dtype, leaf.shape, leaf.tobytes()


def assert_same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert raw(a) == raw(b)
