"""The algebra of sites: gradients of a weight from what its layer reads and the deltas it gets.

Everything here is per example, with examples on a leading axis n: a layer's gradient is
`sum over shared positions of inputs x deltas`, written as an einsum whose letters come from the
primitive's dimension numbers. A convolution is such a product of its patches.
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.jaxpr.taps import Site, Step


class Letters(NamedTuple):
    """Axes of inputs, deltas and weight by name; an axis of one name is the same axis.

    Attributes:
      inputs, deltas, weight: as einsum writes them, examples left out.
      sizes: of every letter.
    """

    inputs: str
    deltas: str
    weight: str
    sizes: dict[str, int]

    @property
    def positions(self) -> int:
        """At how many places of one example a weight is used: 1 makes its gradient rank one."""
        shared = (set(self.inputs) & set(self.deltas)) - set(self.weight)
        return math.prod(self.sizes[letter] for letter in shared)


def letters(site: Site) -> Letters:
    """The letters of a dot or of a convolution's patches.

    Example:
      >>> from jaxprune.jaxpr.taps import tap
      >>> layer = tap(lambda w, x: x @ w, jnp.ones((3, 2)), jnp.ones((1, 7, 3))).sites[0]
      >>> letters(layer)[:3], letters(layer).positions
      (('abc', 'abd', 'cd'), 7)
    """
    names = iter(string.ascii_letters.replace("n", "").replace("k", ""))
    loops = [next(names) for _ in site.origin.loops]
    sizes = {name: size for name, (size, _) in zip(loops, site.origin.loops, strict=True)}
    kept = [n for n, (_, kind) in zip(loops, site.origin.loops, strict=True) if kind == "slices"]
    if site.primitive == "dot_general":
        inputs, deltas, weight = _dot_letters(site, names, sizes)
    else:
        inputs, deltas, weight = _convolution_letters(site, names, sizes)
    front = "".join(loops)
    return Letters(front + inputs, front + deltas, "".join(kept) + weight, sizes)


def _dot_letters(site: Site, names: Any, sizes: dict[str, int]) -> tuple[str, str, str]:
    contracted, batched = site.params["dimension_numbers"]
    if site.side == 0:
        contracted, batched = contracted[::-1], batched[::-1]
    shape = site.captured[len(site.origin.loops) :]
    inputs = [next(names) for _ in shape]
    sizes.update(zip(inputs, shape, strict=True))
    weight: dict[int, str] = {}
    for ours, theirs in ((contracted[0], contracted[1]), (batched[0], batched[1])):
        weight.update({there: inputs[here] for here, there in zip(ours, theirs, strict=True)})
    for axis, size in enumerate(site.operand):
        if axis not in weight:
            weight[axis] = next(names)
            sizes[weight[axis]] = size
    busy = (*contracted[0], *batched[0])
    free = [name for axis, name in enumerate(inputs) if axis not in busy]
    own = [weight[a] for a in range(len(site.operand)) if a not in (*contracted[1], *batched[1])]
    shared = [inputs[axis] for axis in batched[0]]
    deltas = shared + (own + free if site.side == 0 else free + own)
    ordered = [weight[axis] for axis in range(len(site.operand))]
    return "".join(inputs), "".join(deltas), "".join(ordered)


def _convolution_letters(site: Site, names: Any, sizes: dict[str, int]) -> tuple[str, str, str]:
    """Patches [p, g, d], deltas [p, g, o], weight [g, d, o]; p counts images and positions."""
    groups, numbers = site.params["feature_group_count"], site.params["dimension_numbers"]
    channels = site.operand[numbers.rhs_spec[0]]
    entries = math.prod(site.operand) // channels
    p, g, d, o = (next(names) for _ in range(4))
    out = math.prod(site.output.shape[len(site.origin.loops) :])
    sizes.update({p: out // channels, g: groups, d: entries, o: channels // groups})
    return p + g + d, p + g + o, g + d + o


def inputs_of(site: Site, captured: jax.Array) -> jax.Array:
    """What was captured, [n, ...], as the letters want it: a convolution's patches."""
    if site.primitive == "dot_general":
        return captured
    lead = captured.shape[: 1 + len(site.origin.loops)]
    images = captured.reshape(-1, *captured.shape[len(lead) :])
    out = jax.vmap(lambda image: _patches(site, image))(images)
    return out.reshape(*lead, *out.shape[1:])


def deltas_of(site: Site, deltas: jax.Array) -> jax.Array:
    """Deltas, any number of leading axes and then the output's, as the letters want them."""
    if site.primitive == "dot_general":
        return deltas
    out = site.params["dimension_numbers"].out_spec
    lead = deltas.ndim - len(out)
    order = (*range(lead), *(lead + a for a in (out[0], *out[2:], out[1])))
    moved = jnp.transpose(deltas, order)
    groups = site.params["feature_group_count"]
    return moved.reshape(*moved.shape[:lead], -1, groups, moved.shape[-1] // groups)


def _patches(site: Site, images: jax.Array) -> jax.Array:
    """[p, g, d]: by padding and slicing, because convolutions inside loops are slow on a CPU."""
    params, numbers = site.params, site.params["dimension_numbers"]
    x = jnp.transpose(images, (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]))
    window = [site.operand[axis] for axis in numbers.rhs_spec[2:]]
    zero = jnp.zeros((), x.dtype)
    inserted = [dilation - 1 for dilation in params["lhs_dilation"]]
    config = [(low, high, inner)
              for (low, high), inner in zip(params["padding"], inserted, strict=True)]  # fmt: skip
    x = lax.pad(x, zero, [(0, 0, 0), *config, (0, 0, 0)])
    steps, gaps = params["window_strides"], params["rhs_dilation"]
    axes = zip(x.shape[1:-1], window, gaps, steps, strict=True)
    outs = [(size - (w - 1) * gap - 1) // step + 1 for size, w, gap, step in axes]
    groups = params["feature_group_count"]
    pieces = []
    for corner in np.ndindex(*window):
        starts = [c * gap for c, gap in zip(corner, gaps, strict=True)]
        stops = [s + (o - 1) * step + 1 for s, o, step in zip(starts, outs, steps, strict=True)]
        piece = lax.slice(x, (0, *starts, 0), (x.shape[0], *stops, x.shape[-1]), (1, *steps, 1))
        pieces.append(piece.reshape(-1, groups, x.shape[-1] // groups))
    return jnp.concatenate(pieces, axis=-1)


def weight_of(site: Site, array: jax.Array) -> jax.Array:
    """An array in the letters of the weight, leading axes apart, in the shape of the parameter.

    Moves of the entries are undone; where an entry was broadcast its copies are summed.
    """
    stacked = [size for size, kind in site.origin.loops if kind == "slices"]
    if site.primitive == "conv_general_dilated":
        names = letters(site).weight
        lead = array.ndim - len(names)
        array = _kernel(site, array, lead + len(stacked))
    else:
        lead = array.ndim - len(stacked) - len(site.operand)
    for step in reversed(site.origin.steps):
        array = _undone(step, array, lead)
    return array


def _kernel(site: Site, array: jax.Array, lead: int) -> jax.Array:
    """[..., g, d, o] as the kernel lies in memory."""
    numbers = site.params["dimension_numbers"]
    spatial = [site.operand[axis] for axis in numbers.rhs_spec[2:]]
    front, (groups, entries, own) = array.shape[:lead], array.shape[lead:]
    array = array.reshape(*front, groups, *spatial, entries // math.prod(spatial), own)
    array = jnp.moveaxis(array, lead, -2)  # [..., spatial, in, groups, own]
    array = array.reshape(*front, *spatial, array.shape[-3], groups * own)
    places = (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0])
    order = [places.index(axis) for axis in range(len(places))]
    return jnp.transpose(array, (*range(lead), *(lead + a for a in order)))


def _undone(step: Step, array: jax.Array, lead: int) -> jax.Array:
    def forward(x: jax.Array) -> jax.Array:
        return step.primitive.bind(x, **step.primitive.get_bind_params(step.params))

    back = jax.linear_transpose(forward, jax.ShapeDtypeStruct(step.shape, array.dtype))
    mapped = lambda x: back(x)[0]
    for _ in range(lead + step.depth):
        mapped = jax.vmap(mapped)
    return mapped(array)


def gradients(site: Site, captured: jax.Array, deltas: jax.Array) -> jax.Array:
    """Gradients of the parameter, [k, n, ...], from captured [n, ...] and deltas [k, n, ...]."""
    if site.primitive == "gather":
        return _row_gradients(site, captured, deltas)
    names = letters(site)
    rule = f"n{names.inputs},kn{names.deltas}->kn{names.weight}"
    found = jnp.einsum(rule, inputs_of(site, captured), deltas_of(site, deltas))
    return weight_of(site, found)


def rows(site: Site, captured: jax.Array) -> jax.Array:
    """Row numbers that a gather takes, as it reads them; one out of bounds that is dropped: V."""
    size = site.operand[0]
    index = captured[..., 0]
    if site.params["mode"] == lax.GatherScatterMode.CLIP:
        return jnp.clip(index, 0, size - 1)
    return jnp.where((index >= 0) & (index < size), index, size)


def row_deltas(site: Site, deltas: jax.Array) -> jax.Array:
    """Deltas of a gather with the axes of its slices last, leading axes untouched."""
    loops = len(site.origin.loops)
    rank = len(site.output.shape) - loops
    lead = deltas.ndim - rank
    offsets: Sequence[int] = site.params["dimension_numbers"].offset_dims
    own = [a for a in range(rank) if a not in offsets]
    order = (*range(lead), *(lead + a for a in own), *(lead + a for a in offsets))
    return jnp.transpose(deltas, order)


def _row_gradients(site: Site, captured: jax.Array, deltas: jax.Array) -> jax.Array:
    index, deltas = rows(site, captured), row_deltas(site, deltas)
    slices = len(site.operand) - 1
    stacked = [i for i, (_, kind) in enumerate(site.origin.loops) if kind == "slices"]

    def one(index: jax.Array, delta: jax.Array) -> jax.Array:
        tail = delta.shape[delta.ndim - slices :]
        zeros = jnp.zeros((site.operand[0], *tail), delta.dtype)
        return zeros.at[index.ravel()].add(delta.reshape(-1, *tail), mode="drop")

    front = lambda x, skip: jnp.moveaxis(
        x, [s + skip for s in stacked], range(skip, skip + len(stacked))
    )
    index, deltas = front(index, 1), front(deltas, 2)
    mapped = one
    for _ in stacked:
        mapped = jax.vmap(mapped)
    each = jax.vmap(jax.vmap(mapped), in_axes=(None, 0))(index, deltas)
    return weight_of(site, each)
