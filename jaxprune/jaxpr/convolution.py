"""Convolutions whose input gradients are matrix products, where XLA on a CPU is slow.

XLA takes the gradient in the inputs as a convolution over all INPUT positions, zeros included. With
a stride, or a kernel that is large for its image, most of that is waste; with few channels it is
slow for its size. Here deltas meet the kernel in one matrix product and the pieces are added where
they belong, a few images at a time so that they stay in a cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from jaxprune.jaxpr import equations
from jaxprune.jaxpr.equations import Equation

_PIECES_BYTES = 1 << 20
_FEW_CHANNELS = 16
_WASTE = 1.5


def convolve(equation: Equation, x: jax.Array, w: jax.Array) -> jax.Array:
    """The convolution of an equation, to be differentiated in `x` alone, by the faster way."""
    plain = lambda x, w: equations.apply(equation, [x, w])[0]
    pieces = _pieces(equation.params, x, w)
    if pieces is None:
        return plain(x, w)
    shape = x.shape
    back = _merging_batches(
        lambda w, d: pieces(w, d, shape), lambda w, d: _plain_back(plain, shape, w, d)
    )

    # The kernel is a constant here: its gradient comes from patches, not from this rule.
    run = jax.custom_vjp(lambda x: plain(x, w))
    run.defvjp(lambda x: (plain(x, w), None), lambda _, d: (back(w, d),))
    return run(x)


def _plain_back(plain: Any, shape: tuple[int, ...], w: jax.Array, d: jax.Array) -> jax.Array:
    zeros = jnp.zeros((d.shape[0], *shape[1:]), w.dtype)  # as many images as there are deltas
    return jax.linear_transpose(lambda x: plain(x, w), zeros)(d)[0]


def _merging_batches(fast: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """Under vmap over deltas, one call with more images; under vmap over kernels, the plain way."""

    @custom_vmap
    def back(w: jax.Array, d: jax.Array) -> jax.Array:
        return fast(w, d)

    @back.def_vmap
    def _(size: int, batched: list[bool], w: jax.Array, d: jax.Array) -> tuple[jax.Array, bool]:
        if batched[0]:
            return jax.vmap(plain, in_axes=[0 if b else None for b in batched])(w, d), True
        out = back(w, d.reshape(-1, *d.shape[2:]))
        return out.reshape(size, -1, *out.shape[1:]), True

    return back


def _pieces(params: dict[str, Any], x: jax.Array, w: jax.Array) -> Callable[..., Any] | None:
    """`(kernel, deltas, shape of x) -> gradient in x`, or None where XLA is as good.

    Only where images are the first axis of inputs and outputs, on a CPU.
    """
    numbers = params["dimension_numbers"]
    simple = (
        jax.default_backend() == "cpu"
        and params["feature_group_count"] == params["batch_group_count"] == 1
        and {*params["lhs_dilation"]} == {1}
        and numbers.lhs_spec[0] == numbers.out_spec[0] == 0
        and x.dtype == w.dtype
        and params["preferred_element_type"] in (None, x.dtype)
    )
    if not simple:
        return None
    spatial = [x.shape[a] for a in numbers.lhs_spec[2:]]
    window = [w.shape[a] for a in numbers.rhs_spec[2:]]
    places = zip(spatial, window, params["padding"], strict=True)
    dense = [s + low + high - k + 1 for s, k, (low, high) in places]
    outs = [
        (d - (k - 1) * (gap - 1) - 1) // step + 1
        for d, k, gap, step in zip(
            dense, window, params["rhs_dilation"], params["window_strides"], strict=True
        )
    ]
    channels = w.shape[numbers.rhs_spec[0]], w.shape[numbers.rhs_spec[1]]
    if math.prod(window) == 1:
        return None
    if math.prod(spatial) >= _WASTE * math.prod(outs):
        return partial(_scattered, params, 0)
    unit = {*params["window_strides"], *params["rhs_dilation"]} == {1}
    if unit and len(window) > 1 and max(channels) <= _FEW_CHANNELS:
        return partial(_scattered, params, 1)
    return None


def _scattered(
    params: dict[str, Any], gathered: int, w: jax.Array, d: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """Gradient in the inputs; the last `gathered` spatial axes are gathered before the product.

    Gathering reads neighbouring deltas, scattering adds neighbouring pieces; both end in the same
    sum.
    """
    numbers = params["dimension_numbers"]
    d = jnp.transpose(d, (numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1]))
    w = jnp.transpose(w, (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0]))
    sizes = [shape[a] for a in numbers.lhs_spec[2:]]
    images, work = d.shape[0], math.prod(d.shape[1:-1]) * math.prod(w.shape[:-1]) * d.dtype.itemsize
    most = max(1, _PIECES_BYTES // work)
    chunk = next(c for c in range(min(images, most), 0, -1) if images % c == 0)
    one = partial(_scatter, params, gathered, sizes, w)
    if chunk == images:
        found = one(d)
    else:
        cut = d.reshape(images // chunk, chunk, *d.shape[1:])
        found = lax.map(one, cut).reshape(images, *sizes, w.shape[-2])
    places = (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1])
    return jnp.transpose(found, [places.index(axis) for axis in range(len(places))])


def _scatter(
    params: dict[str, Any], gathered: int, sizes: list[int], w: jax.Array, d: jax.Array
) -> jax.Array:
    """The same for [n, ..., channels] and a kernel [..., in, out]."""
    rank, zero = len(sizes), jnp.zeros((), d.dtype)
    window = w.shape[:rank]
    kept = rank - gathered
    for axis in range(kept, rank):  # unit strides: a plain convolution along this axis
        low, _ = params["padding"][axis]
        k, size, out = window[axis], sizes[axis], d.shape[1 + axis]
        edges = [(0, 0, 0)] * d.ndim
        edges[1 + axis] = (k - 1, max(0, size + low - out), 0)
        padded = lax.pad(d, zero, edges)
        starts = [k - 1 - j + low for j in range(k)]
        shifts = [lax.slice_in_dim(padded, s, s + size, axis=1 + axis) for s in starts]
        d = jnp.concatenate(shifts, axis=-1)
    front, back = "abcdef"[:kept], "uvwxyz"[:gathered]
    kernel = jnp.einsum(f"{front}{back}io->{back}o{front}i", w)
    kernel = kernel.reshape(d.shape[-1], -1)
    pieces = (d.reshape(-1, d.shape[-1]) @ kernel).reshape(*d.shape[:-1], *window[:kept], -1)
    total: Any = 0
    for corner in np.ndindex(*window[:kept]):
        piece = pieces[(..., *corner, slice(None))]
        edges = [(0, 0, 0)]
        for axis in range(kept):
            start = corner[axis] * params["rhs_dilation"][axis] - params["padding"][axis][0]
            step = params["window_strides"][axis]
            stop = start + (piece.shape[1 + axis] - 1) * step + 1
            edges.append((start, sizes[axis] - stop, step - 1))
        total = total + lax.pad(piece, zero, [*edges, *[(0, 0, 0)] * (gathered + 1)])
    return total
