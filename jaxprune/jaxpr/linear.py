"""In which parameters is a model piecewise linear? Read off the jaxpr."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.jaxpr import equations, primitives
from jaxprune.types import Apply, Params, PyTree

_LINEAR = primitives.PIECEWISE_LINEAR | primitives.MOVES | primitives.SUMS | primitives.EXTREMES


class _Depends(NamedTuple):
    """On which leaves, as bits: piecewise linearly, and in any other way."""

    linearly: int = 0
    otherwise: int = 0

    @property
    def on(self) -> int:
        return self.linearly | self.otherwise


_NOTHING = _Depends()


def linear_leaves(apply: Apply, params: Params, inputs: PyTree) -> tuple[bool, ...]:
    """For every leaf: are the outputs piecewise linear in it, the other leaves held fixed?

    Piecewise means that the pieces are cut by comparisons, maxima and absolute values. Then the
    outputs have no second derivative in that leaf, and the Gauss-Newton diagonal is the Hessian's.
    A leaf that is multiplied with something that depends on it too (a tied or recurrent weight) is
    not; nor is what any primitive reads that we have no rule for, or a `custom_vjp`, whose
    derivative need not be the function's. A `custom_jvp` is judged by the derivative it gives.

    Example:
      >>> import jax.numpy as jnp
      >>> apply = lambda w, x: jax.nn.relu(jnp.tanh(x @ w[0]) @ w[1]) @ w[2]
      >>> linear_leaves(apply, [jnp.ones((2, 2))] * 3, jnp.ones((1, 2)))
      (False, True, True)
    """
    closed = jax.make_jaxpr(apply)(params, inputs)
    count = len(jax.tree.leaves(params))
    known = [_Depends(1 << i) for i in range(count)]
    known += [_NOTHING] * (len(closed.jaxpr.invars) - count)
    out = _union(_outputs(closed, known))
    return tuple(not (out.otherwise >> i) & 1 for i in range(count))


def _union(parts: Sequence[_Depends]) -> _Depends:
    linearly = reduce(lambda bits, part: bits | part.linearly, parts, 0)
    otherwise = reduce(lambda bits, part: bits | part.otherwise, parts, 0)
    return _Depends(linearly & ~otherwise, otherwise)


def _outputs(closed: Any, args: Sequence[_Depends]) -> list[_Depends]:
    jaxpr = getattr(closed, "jaxpr", closed)
    known: dict[Any, _Depends] = dict(zip(jaxpr.invars, args, strict=True))
    read = lambda v: _NOTHING if equations.is_literal(v) else known.get(v, _NOTHING)
    for eqn in jaxpr.eqns:
        operands = [read(v) for v in eqn.invars]
        if not any(operand.on for operand in operands):
            continue
        rule = _RULES.get(eqn.primitive.name, _unknown)
        known.update(zip(eqn.outvars, rule(eqn, operands), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _everywhere(eqn: Any, out: _Depends) -> list[_Depends]:
    return [out] * len(eqn.outvars)


def _linear(eqn: Any, operands: list[_Depends]) -> list[_Depends]:
    return _everywhere(eqn, _union(operands))


def _flat(eqn: Any, operands: list[_Depends]) -> list[_Depends]:
    return _everywhere(eqn, _NOTHING)


def _unknown(eqn: Any, operands: list[_Depends]) -> list[_Depends]:
    return _everywhere(eqn, _Depends(0, _union(operands).on))


def _absolute(eqn: Any, operands: list[_Depends]) -> list[_Depends]:
    """The modulus and the direction of a complex number are smooth."""
    if jnp.issubdtype(eqn.invars[0].aval.dtype, jnp.complexfloating):
        return _unknown(eqn, operands)
    return (_linear if eqn.primitive.name == "abs" else _flat)(eqn, operands)


def _product(eqn: Any, operands: list[_Depends]) -> list[_Depends]:
    """Linear in what only one factor depends on."""
    both = operands[0].on & operands[1].on
    return _everywhere(eqn, _union([*operands, _Depends(0, both)]))


def _quotient(eqn: Any, operands: list[_Depends]) -> list[_Depends]:
    return _everywhere(eqn, _union([operands[0], _Depends(0, operands[1].on)]))


def _select(eqn: Any, operands: list[_Depends]) -> list[_Depends]:
    return _everywhere(eqn, _union(operands[1:]))


def _power(eqn: Any, operands: list[_Depends]) -> list[_Depends]:
    return (_linear if eqn.params["y"] in (0, 1) else _unknown)(eqn, operands)


def rule_bends(equation: Any, shapes: Sequence[Any]) -> bool:
    """Does the derivative that a `custom_jvp` gives change from place to place?"""
    return any(_derivatives(equation, shapes, [1] * len(shapes)).values())


def _derivatives(equation: Any, shapes: Sequence[Any], on: Sequence[int]) -> dict[int, int]:
    """On which leaves, as bits, the derivative in each floating operand depends.

    Args:
      equation: of a `custom_jvp`.
      shapes: of its operands.
      on: the leaves that each operand depends on.
    """
    like = [jax.ShapeDtypeStruct(shape.shape, shape.dtype) for shape in shapes]
    places = [i for i, x in enumerate(like) if jnp.issubdtype(x.dtype, jnp.inexact)]

    def tangent(values: list[Any], tangents: list[Any]) -> Any:
        def run(*some: Any) -> list[Any]:
            merged = dict(zip(places, some, strict=True))
            return equations.apply(equation, [merged.get(i, x) for i, x in enumerate(values)])

        return jax.jvp(run, [values[i] for i in places], tangents)[1]

    program, _ = equations.trace(tangent, like, [like[i] for i in places])
    split = len(like)
    fixed = dict(zip(program.arguments[:split], on, strict=True))  # on which leaves
    # Of what is linear in tangents: by tangent, on which leaves its factor depends.
    moved = {v: {i: 0} for v, i in zip(program.arguments[split:], places, strict=True)}
    for inner in program.equations:
        if inner.name in primitives.FLAT:
            continue
        operands = inner.operands[1 if inner.name == "select_n" else 0 :]
        read = [v for v in operands if isinstance(v, int)]
        factors = reduce(or_, (fixed.get(v, 0) for v in read), 0)
        carried = [moved[v] for v in read if v in moved]
        if carried:
            by = {i: reduce(or_, (some.get(i, 0) for some in carried), factors)
                  for i in set().union(*carried)}  # fmt: skip
            moved.update(dict.fromkeys(inner.results, by))
        else:
            fixed.update(dict.fromkeys(inner.results, factors))
    ends = [moved.get(v, {}) for v in program.outputs if isinstance(v, int)]
    return {i: reduce(or_, (end.get(i, 0) for end in ends), 0) for i in places if on[i]}


def _custom(eqn: Any, operands: list[_Depends]) -> list[_Depends]:
    """Linear in the leaves that the derivative in an operand, by the author's rule, is free of."""
    bits = _derivatives(eqn, [v.aval for v in eqn.invars], [operand.on for operand in operands])
    curved = [operands[place].on & found for place, found in bits.items()]
    return _everywhere(eqn, _union([*operands, *(_Depends(0, on) for on in curved)]))


def _call(eqn: Any, operands: list[_Depends]) -> list[_Depends]:
    """jit, remat: one jaxpr with the operands of the equation."""
    inner = list(equations.inner_jaxprs(eqn.params))
    if len(inner) != 1 or len(inner[0].in_avals) != len(operands):
        return _unknown(eqn, operands)
    return _outputs(inner[0], operands)


def _scan(eqn: Any, operands: list[_Depends]) -> list[_Depends]:
    """Until what is carried depends on nothing new."""
    consts, carry = equations.scan_sizes(eqn.params)
    carried = operands[consts : consts + carry]
    while True:
        args = [*operands[:consts], *carried, *operands[consts + carry :]]
        outs = _outputs(eqn.params["jaxpr"], args)
        joined = [_union(pair) for pair in zip(carried, outs[:carry], strict=True)]
        if joined == carried:
            return outs
        carried = joined


def _cond(eqn: Any, operands: list[_Depends]) -> list[_Depends]:
    branches = [_outputs(branch, operands[1:]) for branch in eqn.params["branches"]]
    return [_union(outs) for outs in zip(*branches, strict=True)]


_Rule = Callable[[Any, list[_Depends]], list[_Depends]]
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_LINEAR, _linear),
    **dict.fromkeys(primitives.FLAT, _flat),
    **dict.fromkeys(("mul", "dot_general", "conv_general_dilated"), _product),
    **dict.fromkeys(("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint"), _call),
    **dict.fromkeys(("abs", "sign"), _absolute),
    "custom_jvp_call": _custom,
    "div": _quotient,
    "select_n": _select,
    "integer_pow": _power,
    "scan": _scan,
    "cond": _cond,
}
