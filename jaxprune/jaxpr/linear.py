"""In which parameters is a model piecewise linear? Read off the jaxpr."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax

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
    derivative need not be the function's.

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


def _call(eqn: Any, operands: list[_Depends]) -> list[_Depends]:
    """jit, remat, custom_jvp: one jaxpr with the operands of the equation."""
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
    **dict.fromkeys(
        ("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "custom_jvp_call"),
        _call,
    ),
    "div": _quotient,
    "select_n": _select,
    "integer_pow": _power,
    "scan": _scan,
    "cond": _cond,
}
