"""Labels through primitives that call programs: loops, branches, custom derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxprune.jaxpr import equations
from jaxprune.jaxpr.equations import Equation
from jaxprune.jaxpr.labels import Emits, Frame, Rule, Value, known, unknown

_INNER = ("call_jaxpr", "fun_jaxpr", "jaxpr")


def _meet(frame: Frame, equation: Equation, a: Value, b: Value, text: str) -> Value:
    """Two values that a variable may have: their labels united, what they agree on."""
    emits: list[Emits] = []
    for axis, (mine, theirs) in enumerate(zip(a.labels, b.labels, strict=True)):
        frame.unite(mine, theirs, text, equation)
        x, y = (known(v.emits[axis], len(mine)) for v in (a, b))
        emits.append(np.where(x == y, x, np.nan) if (x == y).any() else None)
    whole = a.whole if a.whole == b.whole else np.nan
    return Value(a.labels, tuple(emits), whole, a.varies or b.varies)


def _as_known(a: Value, b: Value) -> bool:
    """True if two values hold the same constants."""
    same = lambda x, y: np.array_equal(x, y, equal_nan=True)
    return (
        all(
            same(known(x, len(l)), known(y, len(l)))
            for x, y, l in zip(a.emits, b.emits, a.labels, strict=True)
        )
        and same(a.whole, b.whole)
        and a.varies == b.varies
    )


def _repeated(
    frame: Frame,
    equation: Equation,
    jaxpr: Any,
    front: Sequence[Value],
    carry: Sequence[Value],
    back: Sequence[Value],
) -> tuple[Frame, list[Value]]:
    """A loop's body read until what its carry holds no longer changes."""
    program = equations.flatten(jaxpr, equation.source)
    carry = list(carry)
    forget = frame.walk.rewind()
    text = f"carried by '{equation.name}' with an axis that keeps its length"
    while True:
        body = frame.walk.enter(program, [*front, *carry, *back], (*frame.path, frame.index))
        new = [
            _meet(frame, equation, old, out, text)
            for old, out in zip(carry, body.outputs[: len(carry)], strict=True)
        ]
        if all(_as_known(a, b) for a, b in zip(carry, new, strict=True)):
            return body, new
        carry = new
        forget()


def _scan(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    consts, carried = equations.scan_sizes(equation.params)
    stacked = operands[consts + carried :]
    for value in stacked:
        frame.pin(value.labels[0], "the axis that 'scan' runs over", equation)
    slices = [v._replace(labels=v.labels[1:], emits=v.emits[1:]) for v in stacked]
    walk, length = frame.walk, equation.params["length"]
    walk.repeats *= length
    start = operands[consts : consts + carried]
    front = operands[:consts]
    body, carry = _repeated(frame, equation, equation.params["jaxpr"], front, start, slices)
    walk.repeats //= max(length, 1)
    frame.inner[frame.index] = [body]
    outs = [
        v._replace(labels=(walk.fixed(length), *v.labels), emits=(None, *v.emits))
        for v in body.outputs[carried:]
    ]
    return [*carry, *outs]


def _while(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    p = equation.params
    start, stop = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    front, carry = operands[start:stop], operands[stop:]
    body, carry = _repeated(frame, equation, p["body_jaxpr"], front, carry, [])
    test = frame.walk.enter(
        equations.flatten(p["cond_jaxpr"], equation.source),
        [*operands[:start], *carry],
        (*frame.path, frame.index, 1),
    )
    frame.inner[frame.index] = [test, body]
    return list(carry)


def _cond(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    walk = frame.walk
    before, branches, costs = len(walk.products), [], []
    for number, branch in enumerate(equation.params["branches"]):
        first = len(walk.products)
        branches.append(
            walk.enter(
                equations.flatten(branch, equation.source),
                operands[1:],
                (*frame.path, frame.index, number),
            )
        )
        costs.append(walk.products[first:])
    worst = max(costs, key=lambda found: sum(_flops(product) for product in found))
    walk.products[before:] = worst  # counted as the most expensive branch
    frame.inner[frame.index] = branches
    results = branches[0].outputs
    for other in branches[1:]:
        text = "the same in all branches"
        pairs = zip(results, other.outputs, strict=True)
        results = [_meet(frame, equation, a, b, text) for a, b in pairs]
    return results


def _flops(product: Any) -> int:
    return product.flops * product.repeats * int(np.prod([len(a) for a in product.axes]))


def _custom(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    inner = next((equation.params[k] for k in _INNER if k in equation.params), None)
    if inner is None:
        return unknown(frame, equation, operands)
    called = frame.walk.enter(
        equations.flatten(inner, equation.source), operands, (*frame.path, frame.index)
    )
    frame.inner[frame.index] = [called]
    return called.outputs


RULES: dict[str, Rule] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    **dict.fromkeys(
        ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_lin"), _custom
    ),
}
