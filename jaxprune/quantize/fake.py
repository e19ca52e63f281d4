"""Fine-tuning what will be quantized: the forward pass sees codes, the gradient passes through."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune import trees
from jaxprune.quantize.clustering import nearest
from jaxprune.quantize.grids import on_grid
from jaxprune.quantize.leafwise import as_it_is, check_finite, masked
from jaxprune.quantize.precision import shortened
from jaxprune.quantize.stored import (
    Codebook,
    Grid,
    Plain,
    Quantized,
    Quantizer,
    Stored,
    check_quantized,
    dequantize,
)
from jaxprune.types import Apply, Mask, Params, PyTree


def fake_quantized(apply: Apply, quantizer: Quantizer, mask: Mask | None = None) -> Apply:
    """The model at quantized parameters, its derivative passed to the float ones unchanged.

    `q(params)` goes forward, and `d q / d params` is taken to be 1: the gradient at the quantized
    point, also for weights beyond a clipped range, which can so return. With a mask the forward
    pass has 0 where it is False, and the gradient is passed there too: keep
    `jp.freeze_pruned(mask)` in the Optax chain.

    The quantizer runs in every call, so that scales follow the weights. Where that is too slow
    (`shared_values`) or the scales must not move, give it `frozen(quantized)`.

    Args:
      apply: the model, `apply(params, inputs)`.
      quantizer: any; nothing is differentiated through it.
      mask: True = kept, or None.

    Returns:
      An `Apply`; it works inside jit, vmap, grad and jvp.

    References:
      Bengio, Leonard, Courville 2013, Estimating or Propagating Gradients Through Stochastic
      Neurons (the straight-through estimator, in its plain form); Jacob et al. 2018, section 3.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxprune import quantize
      >>> apply = fake_quantized(lambda w, x: jnp.sum(w * x), quantize.uniform(2))
      >>> w, x = jnp.array([[1.0, 0.4]]), jnp.array([[2.0, 3.0]])
      >>> apply(w, x), jax.grad(apply)(w, x)  # 0.4 counts as 0, its gradient is 3
      (Array(2., dtype=float32), Array([[2., 3.]], dtype=float32))
    """

    def quantized_apply(params: Params, inputs: PyTree, /) -> PyTree:
        fixed = jax.tree.map(_without_gradient, params)
        return apply(jax.tree.map(_through, params, quantizer(fixed, mask).params), inputs)

    return quantized_apply


def frozen(quantized: Quantized) -> Quantizer:
    """The quantizer that keeps the scales and codebooks found, and only looks up the nearest level.

    Args:
      quantized: what a quantizer returned; its codes and masks are not kept.

    Returns:
      A `Quantizer` for parameters of the same structure and shapes. Give it the mask, if there
      is one: a codebook made with a mask has no value for what is pruned.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import quantize
      >>> found = quantize.shared_values(1)([jnp.array([[1.0, 2.0, 7.0, 9.0]])])
      >>> frozen(found)([jnp.array([[3.0, 4.0, 5.0, 6.0]])]).params
      [Array([[1.5, 1.5, 8. , 8. ]], dtype=float32)]
    """
    check_quantized(quantized)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), trees.dtype_of(leaf)),
                        quantized.params)  # fmt: skip
    tables = [_table(leaf) for leaf in quantized.stored]

    def quantizer(params: Params, /, mask: Mask | None = None) -> Quantized:
        trees.check_like(params, like, "frozen quantization")
        params, kept = masked(params, mask)
        stored = []
        for (name, leaf), keep, table in zip(trees.named_leaves(params), kept, tables, strict=True):
            if table is not None:
                check_finite(name, leaf)
            stored.append(_encoded(leaf, keep, table))
        return Quantized(dequantize(Quantized(params, tuple(stored))), tuple(stored))

    return quantizer


def _table(stored: Stored) -> Any:
    """What of a leaf does not change: its grid or codebook, a shorter dtype, or None."""
    if isinstance(stored, Grid):
        return Grid(None, stored.scale, stored.zero_point, stored.bits, stored.dtype)
    if isinstance(stored, Codebook):
        # Trained values may have passed each other.
        return Codebook(None, jnp.sort(jnp.asarray(stored.values), -1), None, stored.bits)
    shorter = stored.values.dtype != stored.dtype if hasattr(stored.values, "dtype") else False
    return jnp.dtype(stored.values.dtype) if shorter else None


def _encoded(leaf: Any, keep: Any, table: Any) -> Grid | Codebook | Plain:
    if table is None:
        return as_it_is(leaf, keep)
    leaf = jnp.asarray(leaf)
    if isinstance(table, Grid):
        return on_grid(leaf, keep, table)
    if isinstance(table, Codebook):
        return nearest(leaf, keep, table.values, table.bits)
    return shortened(leaf, keep, table)


def _without_gradient(leaf: Any) -> Any:
    return lax.stop_gradient(leaf) if trees.is_inexact(leaf) else leaf


def _through(leaf: Any, quantized: Any) -> Any:
    return _pass(jnp.asarray(leaf), quantized) if trees.is_inexact(leaf) else quantized


@jax.custom_jvp
def _pass(leaf: jax.Array, quantized: jax.Array) -> jax.Array:
    """`quantized`, with the derivative of `leaf`; `leaf + (quantized - leaf)` would round."""
    return quantized


@_pass.defjvp
def _pass_jvp(primals: Any, tangents: Any) -> Any:
    return primals[1], tangents[0]
