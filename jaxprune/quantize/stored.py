"""What a quantized leaf is, what a quantizer is, and the way back to floats."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.types import Mask, Params


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("codes", "scale", "zero_point"),
    meta_fields=("bits", "dtype"),
)
@dataclass(frozen=True)
class Grid:
    """A leaf on evenly spaced levels: `w = (code - zero point) * scale`.

    Attributes:
      codes: unsigned integers below `2**bits`, the leaf's shape; at the zero point where pruned.
      scale: the step between levels, `[]` or `[channels]`; float32, float64 for float64 leaves.
        Its significand is `bits` bits shorter than its type's, so that the product is exact.
      zero_point: the code of 0, shaped as `scale`; None where symmetric: `2**(bits - 1) - 1`.
      bits: bits of a code.
      dtype: the leaf's.
    """

    codes: Any
    scale: Any
    zero_point: Any
    bits: int
    dtype: Any


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("codes", "values", "kept"),
    meta_fields=("bits",),
)
@dataclass(frozen=True)
class Codebook:
    """A leaf of shared values: `w = values[code]`, 0 where pruned.

    Attributes:
      codes: unsigned integers below `2**bits`, the leaf's shape; 0 where pruned.
      values: ascending, in the leaf's dtype, `[2**bits]` or `[channels, 2**bits]`.
      kept: the leaf's mask, or None: nothing pruned. A codebook has no entry for what is.
      bits: bits of a code.
    """

    codes: Any
    values: Any
    kept: Any
    bits: int


@partial(jax.tree_util.register_dataclass, data_fields=("values", "kept"), meta_fields=("dtype",))
@dataclass(frozen=True)
class Plain:
    """A leaf without codes: as it is, or in a shorter floating-point type.

    Attributes:
      values: the leaf; 0 where pruned.
      kept: the leaf's mask, or None: nothing pruned.
      dtype: the leaf's; that of `values` may be shorter.
    """

    values: Any
    kept: Any
    dtype: Any


Stored = Grid | Codebook | Plain


class Quantized(NamedTuple):
    """What a quantizer returns; a pytree, so it passes through jit and vmap.

    Attributes:
      params: the parameters as a device that stores `stored` would use them; structure, shapes
        and dtypes of those given, exactly 0 where pruned, untouched where not quantizable.
      stored: what is to be stored of each leaf, in flattening order.
    """

    params: Params
    stored: tuple[Stored, ...]


class Quantizer(Protocol):
    """`(params, mask=None) -> Quantized`; calibrates on kept weights only."""

    def __call__(self, params: Params, /, mask: Mask | None = None) -> Quantized:
        """Quantize; everything that is not quantizable is stored as it is."""


def code_dtype(bits: int) -> Any:
    """The narrowest unsigned type of so many bits, up to 16."""
    return jnp.dtype(jnp.uint8 if bits <= 8 else jnp.uint16)


def centre(bits: int) -> int:
    """The code of 0 on a symmetric grid, which has as many levels below it as above."""
    return 2 ** (bits - 1) - 1


def value_of(stored: Stored) -> jax.Array:
    """The floats of one leaf; differentiable in its scale, codebook or plain values.

    Example:
      >>> import jax.numpy as jnp
      >>> codes = jnp.array([0, 3, 1], jnp.uint8)
      >>> value_of(Grid(codes, jnp.float32(0.5), jnp.uint8(1), 2, jnp.dtype("float32")))
      Array([-0.5,  1. ,  0. ], dtype=float32)
    """
    if isinstance(stored, Grid):
        zero = centre(stored.bits) if stored.zero_point is None else stored.zero_point
        steps = jnp.asarray(stored.codes, jnp.int32) - jnp.asarray(zero, jnp.int32)
        largest = float(jnp.finfo(stored.dtype).max)  # the last level may lie beyond it
        scaled = steps.astype(jnp.result_type(stored.scale)) * stored.scale
        return jnp.clip(scaled, -largest, largest).astype(stored.dtype)
    if isinstance(stored, Codebook):
        channel = (jnp.arange(len(stored.values)),) if jnp.ndim(stored.values) == 2 else ()
        return zeroed(jnp.asarray(stored.values)[(*channel, stored.codes)], stored.kept)
    same = trees.dtype_of(stored.values) == stored.dtype
    return zeroed(stored.values if same else stored.values.astype(stored.dtype), stored.kept)


def zeroed(values: Any, kept: Any) -> Any:
    """0 where pruned; what has no zero (PRNG keys, flags) is never pruned."""
    dtype = trees.dtype_of(values)
    if kept is None or not jnp.issubdtype(dtype, jnp.number):
        return values
    return (jnp if in_jax(dtype) else np).where(kept, values, np.zeros((), dtype))


def in_jax(dtype: Any) -> bool:
    """False for types of 64 bits where JAX has none: NumPy's arrays then stay NumPy's."""
    return jax.dtypes.canonicalize_dtype(dtype, allow_extended_dtype=True) == dtype


def check_quantized(found: Any) -> None:
    """Raise unless this is what a quantizer returned.

    Raises:
      TypeError: it is not.
    """
    if not isinstance(found, Quantized):
        raise TypeError(
            f"Expected what a quantizer returns, a `Quantized`; got a {type(found).__name__}. "
            "Parameters as they are become one by `unquantized()(params)`."
        )


def dequantize(quantized: Quantized) -> Params:
    """The parameters from what is stored of them: `quantized.params`, bit for bit.

    Args:
      quantized: what a quantizer returned.

    Returns:
      A tree like the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import quantize
      >>> small = quantize.uniform(3)({"kernel": jnp.array([[0.6, -1.5]])})
      >>> dequantize(small)["kernel"]
      Array([[ 0.5, -1.5]], dtype=float32)
    """
    check_quantized(quantized)
    structure = jax.tree.structure(quantized.params)
    return jax.tree.unflatten(structure, [value_of(leaf) for leaf in quantized.stored])


def tables_of(quantized: Quantized) -> tuple[Any, ...]:
    """The floats that are stored: of each leaf its scale, its codebook, or its plain values.

    They are what is left to train with the codes held: the gradient of a shared value is then the
    sum of the gradients of its weights.

    Returns:
      A tuple, a leaf each in flattening order; None for a leaf that is not floating-point.

    References:
      Han, Mao, Dally 2016, Deep Compression, section 3.3 (trained quantization).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxprune import quantize
      >>> small = quantize.shared_values(1)([jnp.array([[1.0, 2.0, 7.0, 9.0]])])
      >>> loss = lambda tables: jnp.sum(quantize.with_tables(small, tables).params[0] ** 2)
      >>> tables_of(small), jax.grad(loss)(tables_of(small))
      ((Array([1.5, 8. ], dtype=float32),), (Array([ 6., 32.], dtype=float32),))
    """
    check_quantized(quantized)
    return tuple(
        None if isinstance(leaf, Plain) and not trees.is_float(leaf.values) else _table(leaf)
        for leaf in quantized.stored
    )


def with_tables(quantized: Quantized, tables: tuple[Any, ...]) -> Quantized:
    """The same codes with other scales, codebooks and plain values; differentiable in them.

    Args:
      quantized: what a quantizer returned.
      tables: shaped as `tables_of(quantized)`. A trained scale uses all the bits of its type, so
        its products are rounded, as any are.

    Returns:
      A `Quantized`; what is pruned stays 0.

    Raises:
      ValueError: not as many tables as leaves.
    """
    check_quantized(quantized)
    if len(tables) != len(quantized.stored):
        raise ValueError(
            f"`tables` are of {len(tables)} leaves, the parameters have {len(quantized.stored)}. "
            "Change what `tables_of` returned."
        )
    field = {Grid: "scale", Codebook: "values", Plain: "values"}
    stored = tuple(
        leaf if table is None else _replaced(leaf, field[type(leaf)], table)
        for leaf, table in zip(quantized.stored, tables, strict=True)
    )
    changed = Quantized(quantized.params, stored)
    return Quantized(dequantize(changed), stored)


def _replaced(leaf: Any, name: str, table: Any) -> Any:
    fields = {k: getattr(leaf, k) for k in leaf.__dataclass_fields__}
    return type(leaf)(**{**fields, name: table})


def _table(leaf: Stored) -> Any:
    return leaf.scale if isinstance(leaf, Grid) else leaf.values
