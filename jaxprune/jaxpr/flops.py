"""FLOPs of one call, read from the jaxpr, and which parameter leaf each of them belongs to.

Counted are `dot_general` and `conv_general_dilated`, 2 FLOPs per multiply-add; everything else
(activations, norms, sums) is left out, as published tables leave it out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxprune import trees
from jaxprune.jaxpr import equations
from jaxprune.types import Mask

# The output holds the operand's entries, each equally often: the kept fraction is unchanged.
_SAME_ENTRIES = frozenset({
    "broadcast_in_dim", "convert_element_type", "copy", "copy_p", "expand_dims", "pcast", "pvary",
    "reduce_precision", "reshape", "rev", "sharding_constraint", "squeeze", "stop_gradient",
    "transpose",
})  # fmt: skip


class Operation(NamedTuple):
    """One matrix product or convolution.

    Attributes:
      primitive: "dot_general" or "conv_general_dilated".
      leaf: index of the parameter leaf it reads, in flattening order, or None: no leaf, two
        leaves, or a leaf seen through anything else than a cast, transpose, reshape or broadcast.
      flops: in one call of the function, its repeats inside `scan` included.
    """

    primitive: str
    leaf: int | None
    flops: int


class FlopCount(NamedTuple):
    """What one call computes.

    Attributes:
      operations: every matrix product and convolution, in the order of evaluation.
      counted_once: primitives whose number of runs the jaxpr does not tell (`while`, Pallas
        kernels, ...); what is inside them is counted once.
    """

    operations: tuple[Operation, ...]
    counted_once: tuple[str, ...]

    @property
    def total(self) -> int:
        """FLOPs of all operations."""
        return sum(operation.flops for operation in self.operations)


def flops(function: Callable[..., Any], *args: Any) -> int:
    """FLOPs of one call of `function(*args)`: matrix products and convolutions.

    With `[B, M, K] x [B, K, N]` (batch, rows, contracted, columns) a product costs `2 B M K N`.
    A convolution of N examples with a kernel of k spatial entries, I inputs and O outputs in g
    groups costs `2 N P k (I / g) O`, P = output positions, so that padding counts. Along an axis
    with inserted zeros (transposed convolution, `lhs_dilation`) P is the number of input positions
    instead, so that inserted zeros do not count (with a stride besides, an upper bound).
    `scan` counts its length, `cond` its most expensive branch, `shard_map` all its devices, a
    `while` loop ONE pass, because the jaxpr does not tell how many there are:
    `flops_by_operation` names such loops.

    Args:
      function: any traceable function; it is traced, not run.
      *args: pytrees of arrays, or of `jax.ShapeDtypeStruct`.

    Returns:
      An exact integer.

    Example:
      >>> x, w = jax.ShapeDtypeStruct((5, 3), "float32"), jax.ShapeDtypeStruct((3, 7), "float32")
      >>> flops(lambda w, x: jax.nn.relu(x @ w), w, x) == 2 * 5 * 3 * 7
      True
    """
    return flops_by_operation(function, *args).total


def flops_by_operation(function: Callable[..., Any], *args: Any) -> FlopCount:
    """The same count, operation by operation; `leaf` refers to the leaves of the first argument.

    Example:
      >>> params = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((3, 7), (7, 2))]
      >>> x = jax.ShapeDtypeStruct((5, 3), "float32")
      >>> count = flops_by_operation(lambda p, x: x @ p[0] @ p[1], params, x)
      >>> [(operation.leaf, operation.flops) for operation in count.operations]
      [(0, 210), (1, 140)]
    """
    jaxpr = jax.make_jaxpr(function)(*args)
    leaves = len(jax.tree.leaves(args[0])) if args else 0
    origins: list[int | None] = [*range(leaves)]
    found = _count(jaxpr, origins + [None] * (len(jaxpr.in_avals) - leaves))
    return FlopCount(tuple(found.operations), tuple(sorted(set(found.once))))


def flops_skipping_zeros(count: FlopCount, mask: Mask) -> int:
    """THEORETICAL FLOPs if every multiplication by a masked weight were skipped.

    `sum over operations: flops * kept(leaf) / size(leaf)`, exact, because every entry of the leaf
    is used equally often; operations that read no single leaf stay dense. No dense kernel skips
    zeros: this bounds what sparse hardware could save, it is no speed. Shrink, or measure.

    Args:
      count: from `flops_by_operation(apply, params, inputs)`.
      mask: a mask of the same `params`, True = kept.

    Example:
      >>> w = jax.ShapeDtypeStruct((2, 2), "float32")
      >>> count = flops_by_operation(lambda w, x: x @ w, w, jax.ShapeDtypeStruct((1, 2), "float32"))
      >>> flops_skipping_zeros(count, jax.numpy.array([[True, False], [False, False]]))
      2
    """
    sizes = [(trees.keep(leaf), trees.count(leaf)) for leaf in jax.tree.leaves(mask)]
    total = 0
    for operation in count.operations:
        if operation.leaf is None or not operation.flops:
            total += operation.flops
        else:
            kept, size = sizes[operation.leaf]
            total += operation.flops * kept // size
    return total


class _Found(NamedTuple):
    operations: list[Operation]
    once: list[str]
    origins: list[int | None]  # of the outputs: the leaf whose entries they hold, or None


def _count(jaxpr: Any, origins: list[int | None]) -> _Found:
    """Count a jaxpr whose i-th input holds the entries of the leaf `origins[i]`."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    origin: dict[Any, int | None] = dict(zip(jaxpr.invars, origins, strict=True))
    operations: list[Operation] = []
    once: list[str] = []

    def source(atom: Any) -> int | None:
        return None if equations.is_literal(atom) else origin.get(atom)

    for eqn in jaxpr.eqns:
        found = _RULES.get(eqn.primitive.name, _inside)(eqn, [source(v) for v in eqn.invars])
        operations += found.operations
        once += found.once
        origin.update(zip(eqn.outvars, found.origins, strict=False))
    return _Found(operations, once, [source(v) for v in jaxpr.outvars])


def _dot(eqn: Any, sources: list[int | None]) -> _Found:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    work = math.prod(eqn.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    read = [leaf for leaf in sources if leaf is not None]
    leaf = read[0] if len(read) == 1 else None
    return _Found([Operation("dot_general", leaf, 2 * work)], [], [])


def _convolution(eqn: Any, sources: list[int | None]) -> _Found:
    inputs, kernel, out = (v.aval.shape for v in (*eqn.invars, *eqn.outvars))
    numbers = eqn.params["dimension_numbers"]
    work = math.prod(kernel) * out[numbers.out_spec[0]]
    for axis, dilation in enumerate(eqn.params["lhs_dilation"], start=2):
        dense = dilation == 1
        work *= out[numbers.out_spec[axis]] if dense else inputs[numbers.lhs_spec[axis]]
    leaf = sources[1] if sources[0] is None else None
    return _Found([Operation("conv_general_dilated", leaf, 2 * work)], [], [])


def _same(eqn: Any, sources: list[int | None]) -> _Found:
    return _Found([], [], sources[:1])


def _scan(eqn: Any, sources: list[int | None]) -> _Found:
    """Constants and slices of a stacked leaf keep their origin; a carry changes, so loses it."""
    consts, carry = equations.scan_sizes(eqn.params)
    inner = sources[:consts] + [None] * carry + sources[consts + carry :]
    found = _count(eqn.params["jaxpr"], inner)
    return _Found(_times(found.operations, eqn.params["length"]), found.once, [])


def _cond(eqn: Any, sources: list[int | None]) -> _Found:
    branches = [_count(branch, sources[1:]) for branch in eqn.params["branches"]]
    worst = max(branches, key=lambda found: sum(op.flops for op in found.operations))
    return _Found(worst.operations, [name for found in branches for name in found.once], [])


def _while(eqn: Any, sources: list[int | None]) -> _Found:
    start = eqn.params["cond_nconsts"]
    stop = start + eqn.params["body_nconsts"]
    carry: list[int | None] = [None] * (len(sources) - stop)
    test = _count(eqn.params["cond_jaxpr"], sources[:start] + carry)
    body = _count(eqn.params["body_jaxpr"], sources[start:stop] + carry)
    return _once("while", [test, body])


def _shard_map(eqn: Any, sources: list[int | None]) -> _Found:
    """The jaxpr is one device's share; all devices that it is mapped over do as much."""
    mesh = eqn.params["mesh"]
    axes = eqn.params.get("newly_manual_axes", mesh.axis_names)
    found = _inside(eqn, sources)
    devices = math.prod(mesh.shape[axis] for axis in axes)
    return _Found(_times(found.operations, devices), found.once, found.origins)


def _inside(eqn: Any, sources: list[int | None]) -> _Found:
    """Any other primitive: jit, remat, custom_jvp and the like call one jaxpr with its operands."""
    inner = list(equations.inner_jaxprs(eqn.params))
    if len(inner) == 1 and len(inner[0].in_avals) == len(sources):
        return _count(inner[0], sources)
    return _once(eqn.primitive.name, [_count(j, [None] * len(j.in_avals)) for j in inner])


def _once(name: str, parts: list[_Found]) -> _Found:
    """Everything inside counted once, and the primitive named if that can be too few."""
    operations = [operation for found in parts for operation in found.operations]
    inner = [name for found in parts for name in found.once]
    return _Found(operations, inner + [name] * bool(operations), [])


def _times(operations: list[Operation], repeats: int) -> list[Operation]:
    return [op._replace(flops=op.flops * repeats) for op in operations]


_RULES: dict[str, Callable[[Any, list[int | None]], _Found]] = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "scan": _scan,
    "cond": _cond,
    "while": _while,
    "shard_map": _shard_map,
    **dict.fromkeys(_SAME_ENTRIES, _same),
}
