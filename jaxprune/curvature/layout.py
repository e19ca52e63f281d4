"""Where the entries of a parameter lie in the layer that reads it: moves, and indices through them.

A layer's gradient is a product over [b, i, o]: b counts groups that share nothing, i its inputs,
o its outputs. The parameter is that array after transposes, reshapes, reversals and slices, which
are kept as plain tuples, so that a layout can be compared and hashed.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.jaxpr import sites as algebra
from jaxprune.jaxpr.taps import Site, Step

_RESHAPES = ("reshape", "squeeze", "expand_dims", "broadcast_in_dim")
Shape = tuple[int, ...]


class Move(NamedTuple):
    """One move on the way from the parameter to [b, i, o].

    Attributes:
      kind: "transpose", "reshape", "rev" or "slice".
      before, after: shapes.
      spec: the permutation, the axes to reverse, or (start, stride) for every axis.
    """

    kind: str
    before: Shape
    after: Shape
    spec: tuple[Any, ...] = ()


class Layout(NamedTuple):
    """A parameter of some shape, moved to [b, i, o]; no entry is taken twice.

    Attributes:
      shape: of the parameter.
      moves: to [b, i, o], in order.
      layer: (b, i, o).
    """

    shape: Shape
    moves: tuple[Move, ...]
    layer: Shape

    def to_layer(self, leaf: jax.Array) -> jax.Array:
        """[b, i, o] of an array like the parameter."""
        for move in self.moves:
            leaf = _forward(move, leaf)
        return leaf

    def to_leaf(self, array: jax.Array) -> jax.Array:
        """The transpose of `to_layer`: entries that the layer does not read are 0."""
        for move in reversed(self.moves):
            array = _backward(move, array)
        return array

    def find(self, flat: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """Where entries of the flattened parameter are in [b, i, o], and whether they are at all.

        Example:
          >>> layout = Layout((2, 3), (Move("transpose", (2, 3), (3, 2), (1, 0)),
          ...                          Move("reshape", (3, 2), (1, 3, 2))), (1, 3, 2))
          >>> [x.tolist() for x in layout.find(jnp.array([2, 3]))[0]]
          [[0, 0], [2, 0], [0, 1]]
        """
        inside = jnp.ones(flat.shape, bool)
        for move in self.moves:
            flat, inside = _follow(move, flat, inside)
        return tuple(jnp.unravel_index(flat, self.layer)), inside


def unread(shape: Shape) -> Layout:
    """Any layout of a parameter that nothing reads."""
    layer = (1, math.prod(shape), 1)
    return Layout(shape, (Move("reshape", shape, layer),), layer)


def layout_of(site: Site, shape: Shape) -> Layout | None:
    """The layout of a parameter of this shape at a dot or a convolution.

    None where an entry is read twice, or moved in a way that has no rule here.
    """
    if site.primitive == "gather" or not site.origin.injective:
        return None
    stacked = tuple(size for size, kind in site.origin.loops if kind == "slices")
    moves: list[Move] = []
    for step in site.origin.steps:
        move = _of_step(step, stacked[: step.depth])
        if move is None:
            return None
        moves.append(move)
    names = algebra.letters(site)
    here = (*stacked, *site.operand)
    if site.primitive == "conv_general_dilated":
        moves += _kernel(site, stacked)
        here = moves[-1].after
    front, middle, last = split_letters(names)[1:]
    order = tuple(names.weight.index(c) for c in front + middle + last)
    size = lambda letters: math.prod(names.sizes[c] for c in letters)
    layer = (size(front), size(middle), size(last))
    turned = tuple(here[a] for a in order)
    moves += [Move("transpose", here, turned, order), Move("reshape", turned, layer)]
    return Layout(shape, tuple(moves), layer)


def split_letters(names: algebra.Letters) -> tuple[str, str, str, str]:
    """Letters of positions (summed over), of groups, of inputs only and of outputs only."""
    shared = set(names.inputs) & set(names.deltas)
    positions = "".join(c for c in names.inputs if c in shared and c not in names.weight)
    groups = "".join(c for c in names.weight if c in shared)
    inputs = "".join(c for c in names.weight if c not in names.deltas)
    outputs = "".join(c for c in names.weight if c not in names.inputs)
    return positions, groups, inputs, outputs


def _of_step(step: Step, lead: Shape) -> Move | None:
    """A step of a parameter, over the leading axes of the loops that slice it."""
    name, params, own = step.primitive.name, step.params, step.shape
    before, skip = (*lead, *own), len(lead)
    if name == "transpose":
        order = (*range(skip), *(skip + int(a) for a in params["permutation"]))
        return Move(name, before, tuple(before[a] for a in order), order)
    if name == "rev":
        return Move(name, before, before, tuple(skip + int(a) for a in params["dimensions"]))
    if name == "slice":
        strides = params["strides"] or (1,) * len(own)
        starts = params["start_indices"]
        spans = zip(starts, params["limit_indices"], strides, strict=True)
        after = (*lead, *(len(range(*span)) for span in spans))
        each = zip((0,) * skip + tuple(starts), (1,) * skip + tuple(strides), strict=True)
        return Move(name, before, after, tuple((int(a), int(b)) for a, b in each))
    if (name in _RESHAPES and params.get("dimensions") in (None, ())) or name == "squeeze":
        forward = lambda x: step.primitive.bind(x, **step.primitive.get_bind_params(params))
        after = jax.eval_shape(forward, jax.ShapeDtypeStruct(own, jnp.float32)).shape
        return Move("reshape", before, (*lead, *after))
    return None


def _kernel(site: Site, stacked: Shape) -> list[Move]:
    """From a kernel as it lies in memory to [stacked, groups, window and channel, own]."""
    numbers, groups = site.params["dimension_numbers"], site.params["feature_group_count"]
    skip = len(stacked)
    places = (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0])
    *window, outputs = (site.operand[a] for a in places)
    order = (*range(skip), *(skip + a for a in places))
    turned = (*stacked, *window, outputs)
    apart = (*stacked, *window, groups, outputs // groups)
    at = len(apart) - 2
    front = (*range(skip), at, *range(skip, at), at + 1)
    grouped = tuple(apart[a] for a in front)
    return [
        Move("transpose", (*stacked, *site.operand), turned, order),
        Move("reshape", turned, apart),
        Move("transpose", apart, grouped, front),
        Move("reshape", grouped, (*stacked, groups, math.prod(window), outputs // groups)),
    ]


def _forward(move: Move, x: jax.Array) -> jax.Array:
    if move.kind == "transpose":
        return jnp.transpose(x, move.spec)
    if move.kind == "rev":
        return jnp.flip(x, move.spec)
    if move.kind == "slice":
        return x[tuple(slice(a, None, s) for a, s in move.spec)][
            tuple(slice(0, size) for size in move.after)
        ]
    return x.reshape(move.after)


def _backward(move: Move, x: jax.Array) -> jax.Array:
    if move.kind == "transpose":
        return jnp.transpose(x, [move.spec.index(a) for a in range(x.ndim)])
    if move.kind == "rev":
        return jnp.flip(x, move.spec)
    if move.kind == "slice":
        sizes = zip(move.spec, move.before, move.after, strict=True)
        config = [(a, size - a - (some - 1) * s - 1, s - 1) for (a, s), size, some in sizes]
        return lax.pad(x, jnp.zeros((), x.dtype), config)
    return x.reshape(move.before)


def _follow(move: Move, flat: jax.Array, inside: jax.Array) -> tuple[jax.Array, jax.Array]:
    if move.kind == "reshape":
        return flat, inside
    index = list(jnp.unravel_index(flat, move.before))
    if move.kind == "transpose":
        index = [index[a] for a in move.spec]
    elif move.kind == "rev":
        index = [move.before[a] - 1 - x if a in move.spec else x for a, x in enumerate(index)]
    else:
        away = [x - a for x, (a, _) in zip(index, move.spec, strict=True)]
        index = []
        for x, (_, stride), size in zip(away, move.spec, move.after, strict=True):
            inside &= (x >= 0) & (x % stride == 0) & (x // stride < size)
            index.append(jnp.clip(x // stride, 0, size - 1))
    at = jnp.zeros_like(flat)
    for x, size in zip(index, move.after, strict=True):
        at = at * size + x
    return at, inside
