"""Does each example's output depend on that example alone? Read off the jaxpr."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxprune import trees
from jaxprune.jaxpr import equations, primitives
from jaxprune.jaxpr.example_rules import (
    RULES,
    Along,
    Mixed,
    Same,
    State,
    along,
    axis_of,
    same_axes,
    shapes,
)
from jaxprune.types import Apply, Params, PyTree

_CALLS = ("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "custom_jvp_call",
          "custom_vjp_call", "custom_vjp_call_jaxpr")  # fmt: skip
_SMALL = 4096
_ANY_SIZE = primitives.ELEMENTWISE | {"broadcast_in_dim", "reshape"}


def independent_examples(apply: Apply, params: Params, inputs: PyTree) -> bool:
    """True if `apply` treats every example alike and by itself: row n of the outputs is row n's.

    Then a batch may be cut, and examples be differentiated one by one. Training-mode BatchNorm, a
    dropout mask drawn for the whole batch, or a fixed array with one row an example say False, and
    so does any primitive without a rule here, when examples enter it.

    Example:
      >>> import jax.numpy as jnp
      >>> w, x = jnp.ones((3, 3)), jnp.ones((4, 3))
      >>> independent_examples(lambda w, x: jnp.tanh(x @ w), w, x)
      True
      >>> independent_examples(lambda w, x: x @ w - jnp.mean(x, axis=0), w, x)
      False
    """
    leaves = jax.tree.leaves(inputs)
    n = leaves[0].shape[0]
    first = lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    example = jax.tree.map(first, inputs)
    try:
        single, one = jax.make_jaxpr(apply, return_shape=True)(params, example)
        closed, many = jax.make_jaxpr(apply, return_shape=True)(params, inputs)
    except Exception:  # whatever the model raises on one example: it cannot take them one by one
        jax.eval_shape(apply, params, inputs)
        return False
    structure: Any = jax.tree.structure(one)
    if structure != jax.tree.structure(many) or any(
        a.shape != (1, *b.shape[1:]) or b.shape[:1] != (n,)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True)
    ):
        return False
    if n == 1:
        return True
    from_data = [False] * len(jax.tree.leaves(params)) + [True] * len(leaves)
    if _sizes_written(single, from_data) != _sizes_written(closed, from_data):
        return False  # such as a division by the size of the batch
    states: list[State] = [Same(frozenset()) for _ in jax.tree.leaves(params)]
    states += [Along(1, math.prod(x.shape[1:])) for x in leaves]
    try:
        outs = _follow(closed, states, n)
    except Mixed:
        return False
    return all(
        axis_of(out, v.aval.shape, n) == 0
        for out, v in zip(outs, closed.jaxpr.outvars, strict=True)
    )


def _sizes_written(closed: Any, data: Sequence[bool]) -> Counter[Any]:
    """Numbers and shapes by which the size of a batch could enter what its examples meet.

    Scalars written into the jaxpr, exponents, and shapes of what is computed without data, such as
    a sum over ones. What is merely broadcast to the batch may have any size.
    """
    jaxpr = getattr(closed, "jaxpr", closed)
    known = dict(zip(jaxpr.invars, data, strict=True))
    found: Counter[Any] = Counter()
    for const in getattr(closed, "consts", ()):
        if isinstance(const, np.ndarray | jax.Array) and not trees.is_traced(const):
            small = const.size <= _SMALL and not jax.dtypes.issubdtype(
                const.dtype, jax.dtypes.extended
            )
            found[np.asarray(const).tobytes() if small else const.shape] += 1
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        literals = [v.val for v in eqn.invars if equations.is_literal(v)]
        found.update(str(x) for x in literals)
        if name == "integer_pow":
            found["power", eqn.params["y"]] += 1
        reads = [not equations.is_literal(v) and known.get(v, False) for v in eqn.invars]
        known.update(dict.fromkeys(eqn.outvars, any(reads)))
        inner = list(equations.inner_jaxprs(eqn.params))
        for part in inner:
            arguments = len(part.in_avals)
            same = name in _CALLS and arguments == len(reads)
            found.update(_sizes_written(part, reads if same else [any(reads)] * arguments))
        if name == "dot_general" and not any(reads):  # its other axes may have any size
            (contracted, _), _ = eqn.params["dimension_numbers"]
            found[name, *(eqn.invars[0].aval.shape[axis] for axis in contracted)] += 1
        elif not (inner or any(reads) or name in _ANY_SIZE):
            found[name, *(v.aval.shape for v in (*eqn.invars, *eqn.outvars))] += 1
    return found


def _follow(closed: Any, args: Sequence[State], n: int) -> list[State]:
    jaxpr = getattr(closed, "jaxpr", closed)
    known: dict[Any, State] = dict(zip(jaxpr.invars, args, strict=True))
    for variable, const in zip(jaxpr.constvars, getattr(closed, "consts", ()), strict=False):
        known[variable] = _constant(const)

    def read(v: Any) -> State:
        return _constant(v.val) if equations.is_literal(v) else known.get(v, Same(frozenset()))

    for eqn in jaxpr.eqns:
        states = [read(v) for v in eqn.invars]
        name = eqn.primitive.name
        if name in _CONTROL or name in RULES:
            outs = (_CONTROL.get(name) or RULES[name])(eqn, states, n)
        elif any(isinstance(state, Along) for state in states):
            raise Mixed
        else:
            outs = [Same(frozenset()) for _ in eqn.outvars]
        known.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _constant(value: Any) -> Same:
    """Along which axes a known array repeats itself."""
    if not isinstance(value, np.ndarray | jax.Array) or isinstance(value, jax.core.Tracer):
        return Same(frozenset(range(np.ndim(value)))) if np.ndim(value) == 0 else Same(frozenset())
    if value.size > 1 << 20 or jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):
        return Same(frozenset())
    array = np.asarray(value)
    same = (a for a in range(array.ndim) if (array == array.take([0], axis=a)).all())
    return Same(frozenset(same)) if array.size else Same(frozenset(range(array.ndim)))


def _merged(first: State, second: State, shape: tuple[int, ...], n: int) -> State:
    """What holds of both: the start of a carry and what one step makes of it."""
    if isinstance(first, Same) and isinstance(second, Same):
        return Same(first.axes & second.axes)
    if isinstance(first, Along) and isinstance(second, Along):
        if first != second:
            raise Mixed
        return first
    same, along = (first, second) if isinstance(first, Same) else (second, first)
    if axis_of(along, shape, n) not in same_axes(same):
        raise Mixed
    return along


def _call(eqn: Any, states: list[State], n: int) -> list[State]:
    inner = [j for j in equations.inner_jaxprs(eqn.params) if len(j.in_avals) == len(states)]
    if not inner:
        raise Mixed
    return _follow(inner[0], states, n)


def _scan(eqn: Any, states: list[State], n: int) -> list[State]:
    """Until the layout of what is carried stays the same; slices lose their first axis."""
    consts, carry = equations.scan_sizes(eqn.params)
    sizes = shapes(eqn)
    slices: list[State] = []
    for state, shape in zip(states[consts + carry :], sizes[consts + carry :], strict=True):
        axis = axis_of(state, shape, n)
        if axis == 0:
            raise Mixed
        slices.append(
            Same(frozenset(a - 1 for a in same_axes(state) if a)) if axis is None
            else along(axis - 1, shape[1:], n)
        )  # fmt: skip
    carried = states[consts : consts + carry]
    while True:
        outs = _follow(eqn.params["jaxpr"], [*states[:consts], *carried, *slices], n)
        joined = [
            _merged(a, b, shape, n)
            for a, b, shape in zip(carried, outs[:carry], sizes[consts:], strict=False)
        ]
        if joined == carried:
            break
        carried = joined
    stacked: list[State] = []
    for state, v in zip(outs[carry:], eqn.outvars[carry:], strict=True):
        axis = axis_of(state, v.aval.shape[1:], n)
        stacked.append(Same(frozenset()) if axis is None else along(axis + 1, v.aval.shape, n))
    return [*carried, *stacked]


def _cond(eqn: Any, states: list[State], n: int) -> list[State]:
    if isinstance(states[0], Along):
        raise Mixed
    branches = [_follow(branch, states[1:], n) for branch in eqn.params["branches"]]
    joined = branches[0]
    for outs in branches[1:]:
        joined = [
            _merged(a, b, v.aval.shape, n)
            for a, b, v in zip(joined, outs, eqn.outvars, strict=True)
        ]
    return joined


_CONTROL: dict[str, Any] = {**dict.fromkeys(_CALLS, _call), "cond": _cond, "scan": _scan}
