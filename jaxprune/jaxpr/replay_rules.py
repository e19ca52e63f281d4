"""Primitives whose parameters name sizes, evaluated on shorter operands."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.jaxpr import equations, reading
from jaxprune.jaxpr.classes import FIXED
from jaxprune.jaxpr.equations import Equation
from jaxprune.jaxpr.label_lookups import positions
from jaxprune.jaxpr.labels import Frame, Value, Walk
from jaxprune.jaxpr.replay import Replay, Rule, take


def _broadcast(replay: Replay, frame: Frame, equation: Equation, operands: list[Any]) -> list[Any]:
    shape = replay.sizes(frame, equation)
    return [lax.broadcast_in_dim(operands[0], shape, equation.params["broadcast_dimensions"])]


def _reshape(replay: Replay, frame: Frame, equation: Equation, operands: list[Any]) -> list[Any]:
    return [lax.reshape(operands[0], replay.sizes(frame, equation))]


def _iota(replay: Replay, frame: Frame, equation: Equation, operands: list[Any]) -> list[Any]:
    p = equation.params
    return [lax.broadcasted_iota(p["dtype"], replay.sizes(frame, equation), p["dimension"])]


def _slice(replay: Replay, frame: Frame, equation: Equation, operands: list[Any]) -> list[Any]:
    p = equation.params
    [x] = operands
    value = frame.value(equation.operands[0])
    steps = p["strides"] or (1,) * len(p["start_indices"])
    for axis, keep in enumerate(replay.kept(value)):
        where = np.arange(p["start_indices"][axis], p["limit_indices"][axis], steps[axis])
        if keep is not None:
            where = (np.cumsum(keep) - 1)[where[keep[where]]]
        if len(where) != jnp.shape(x)[axis] or keep is not None:
            x = take(x, where, axis)
    return [x]


def _split(replay: Replay, frame: Frame, equation: Equation, operands: list[Any]) -> list[Any]:
    axis = equation.params["axis"]
    sizes = [replay.sizes(frame, equation, r)[axis] for r in range(len(equation.results))]
    return list(lax.split(operands[0], sizes, axis))


def _pad(replay: Replay, frame: Frame, equation: Equation, operands: list[Any]) -> list[Any]:
    out = frame.values[equation.results[0]]
    config = []
    for keep, (low, high, inside) in zip(
        replay.kept(out), equation.params["padding_config"], strict=True
    ):
        if keep is not None:
            low, high = int(keep[:low].sum()), int(keep[len(keep) - high :].sum())
        config.append((int(low), int(high), int(inside)))
    return [lax.pad(operands[0], operands[1], config)]


def _gather(replay: Replay, frame: Frame, equation: Equation, operands: list[Any]) -> list[Any]:
    value = frame.value(equation.operands[0])
    keeps = replay.kept(value)
    shape = tuple(len(labels) for labels in value.labels)
    sizes = list(equation.params["slice_sizes"])
    if all(keep is None or sizes[axis] == shape[axis] for axis, keep in enumerate(keeps)):
        small = [s if k is None else int(k.sum()) for s, k in zip(sizes, keeps, strict=True)]
        changed = {**equation.params, "slice_sizes": tuple(small)}
        return equations.apply(equation._replace(params=changed), operands)
    indices = frame.static(equation.operands[1])
    read = positions(equation, shape, indices)
    assert read is not None, "labels followed this lookup, so it is constant"
    out = replay.kept(frame.values[equation.results[0]])
    flat: Any = 0
    for axis, where in enumerate(read):
        keep = keeps[axis]
        for result_axis, kept in enumerate(out):
            where = where if kept is None else np.compress(kept, where, axis=result_axis)
        size = shape[axis] if keep is None else int(keep.sum())
        flat = flat * size + (where if keep is None else (np.cumsum(keep) - 1)[where])
    return [jnp.take(operands[0].reshape(-1), flat, mode="clip")]


def _dynamic_slice(
    replay: Replay, frame: Frame, equation: Equation, operands: list[Any]
) -> list[Any]:
    return [lax.dynamic_slice(operands[0], operands[1:], replay.sizes(frame, equation))]


def _convolution(
    replay: Replay, frame: Frame, equation: Equation, operands: list[Any]
) -> list[Any]:
    p = dict(equation.params)
    if p["feature_group_count"] > 1:
        axis = p["dimension_numbers"].lhs_spec[1]
        whole = len(frame.value(equation.operands[0]).labels[axis])
        p["feature_group_count"] = p["feature_group_count"] * operands[0].shape[axis] // whole
    return equations.apply(equation._replace(params=p), operands)


def _scan(replay: Replay, frame: Frame, equation: Equation, operands: list[Any]) -> list[Any]:
    p = equation.params
    consts, carried = equations.scan_sizes(p)
    [body] = frame.inner[frame.index]
    front, carry = operands[:consts], operands[consts : consts + carried]

    def step(carry: Any, x: Any) -> Any:
        outs = replay.run(body, [*front, *carry, *x])
        return outs[:carried], outs[carried:]

    stacked = operands[consts + carried :]
    last, outs = lax.scan(
        step, carry, stacked, p["length"], reverse=p["reverse"], unroll=p.get("unroll", 1)
    )
    return [*last, *outs]


def _while(replay: Replay, frame: Frame, equation: Equation, operands: list[Any]) -> list[Any]:
    p = equation.params
    start, stop = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    test, body = frame.inner[frame.index]
    return lax.while_loop(
        lambda carry: replay.run(test, [*operands[:start], *carry])[0],
        lambda carry: replay.run(body, [*operands[start:stop], *carry]),
        operands[stop:],
    )


def _cond(replay: Replay, frame: Frame, equation: Equation, operands: list[Any]) -> list[Any]:
    which, *rest = operands
    branches = frame.inner[frame.index]
    runs = [lambda *x, branch=branch: replay.run(branch, x) for branch in branches]
    return lax.switch(jnp.asarray(which, jnp.int32), runs, *rest)


def _custom_jvp(replay: Replay, frame: Frame, equation: Equation, operands: list[Any]) -> list[Any]:
    """The same function with the same derivative: the author's rule, traced and replayed too."""
    [called] = frame.inner[frame.index]
    if replay.gated is not None:
        return _with_gates_inside(replay, frame, equation, operands)
    holds = [frame.value(operand) for operand in equation.operands]
    keeps = [replay.kept(frame.values[variable]) for variable in equation.results]
    smooth = [jnp.issubdtype(jnp.result_type(x), jnp.inexact) for x in operands]

    @jax.custom_jvp
    def short(*args: Any) -> list[Any]:
        return replay.run(called, args)

    def derivative(args: Any, tangents: Any) -> Any:
        """The outputs and their tangents, from the operands and those tangents that exist."""
        outputs, moving = _held(equation, args, smooth)
        return jax.jvp(outputs, tuple(moving), tuple(tangents))

    @short.defjvp
    def rule(primals: Any, tangents: Any) -> Any:
        along = [t for t, s in zip(tangents, smooth, strict=True) if s]
        held = [*holds, *(v for v, s in zip(holds, smooth, strict=True) if s)]
        args = [*primals, *along]
        split = len(primals)
        flat = lambda *x: jax.tree.leaves(derivative(x[:split], x[split:]))
        outs = _replayed(replay, flat, held, args)
        if outs is None:
            outs = _lengthened(replay, flat, held, args, keeps * 2)
        return outs[: len(keeps)], outs[len(keeps) :]

    return list(short(*operands))


def _custom_vjp(replay: Replay, frame: Frame, equation: Equation, operands: list[Any]) -> list[Any]:
    """The same for a reverse rule: the author's pull-back, traced with its forward pass."""
    [called] = frame.inner[frame.index]
    if replay.gated is not None:
        return _with_gates_inside(replay, frame, equation, operands)
    holds = [frame.value(operand) for operand in equation.operands]
    outs = [frame.values[variable] for variable in equation.results]
    smooth = [jnp.issubdtype(jnp.result_type(x), jnp.inexact) for x in operands]
    keeps = [replay.kept(v) for v, s in zip(holds, smooth, strict=True) if s]

    def pulled(*args: Any) -> list[Any]:
        """Cotangents of the operands that have one, from the operands and those of the results."""
        outputs, moving = _held(equation, args[: len(smooth)], smooth)
        return list(jax.vjp(outputs, *moving)[1](list(args[len(smooth) :])))

    @jax.custom_vjp
    def short(*args: Any) -> list[Any]:
        return replay.run(called, args)

    def back(args: Any, cotangents: Any) -> Any:
        held, given = [*holds, *outs], [*args, *cotangents]
        found = _replayed(replay, pulled, held, given)
        if found is None:
            found = _lengthened(replay, pulled, held, given, keeps)
        rest = iter(found)
        return tuple(next(rest) if s else None for s in smooth)

    short.defvjp(lambda *args: (short(*args), args), back)
    return list(short(*operands))


def _with_gates_inside(
    replay: Replay, frame: Frame, equation: Equation, operands: list[Any]
) -> list[Any]:
    """The program's value and derivatives in gates, with the author's derivatives in operands.

    No rule of the author's knows of gates. It is applied to the operands with their units times the
    gates: at gates of 1 that is the rule, at gates of 0 and 1 the rule of the masked model.
    """
    [called] = frame.inner[frame.index]
    classes, inside = replay.walk.classes, replay.gated_inside(frame)
    found = [
        (operand, axis)
        for operand, variable in enumerate(equation.operands)
        if jnp.issubdtype(jnp.result_type(operands[operand]), jnp.inexact)
        and (replay.rows is None or frame.value(variable).varies)  # gates of examples: no weights
        for axis, labels in enumerate(frame.value(variable).labels)
        if np.isin(classes.find(labels), inside).any()
    ]
    moved = replay.times_gates(frame, equation, operands, found, constant=True)
    values = replay.run(called, [lax.stop_gradient(x) for x in operands])
    derived = equations.apply(equation, moved)
    return [
        _with_derivative_of(value, other) if jnp.issubdtype(value.dtype, jnp.inexact) else value
        for value, other in zip(values, derived, strict=True)
    ]


@jax.custom_jvp
def _with_derivative_of(value: Any, other: Any) -> Any:
    """The value, with the derivative of the sum of both."""
    return value


@_with_derivative_of.defjvp
def _sum_of_derivatives(primals: Any, tangents: Any) -> Any:
    return primals[0], tangents[0] + tangents[1]


def _held(equation: Equation, args: Any, smooth: list[bool]) -> tuple[Any, list[Any]]:
    """An equation as a function of its operands that have a derivative, and these operands."""

    def outputs(*moving: Any) -> list[Any]:
        rest = iter(moving)
        operands = [next(rest) if s else a for s, a in zip(smooth, args, strict=True)]
        return equations.apply(equation, operands)

    return outputs, [a for a, s in zip(args, smooth, strict=True) if s]


def _lengthened(
    replay: Replay, function: Any, holds: list[Value], args: list[Any], keeps: list[Any]
) -> list[Any]:
    whole = [replay.lengthen(x, replay.kept(value)) for x, value in zip(args, holds, strict=True)]
    return [replay.shorten(x, k) for x, k in zip(function(*whole), keeps, strict=True)]


def _replayed(
    replay: Replay, function: Any, holds: list[Value], args: list[Any]
) -> list[Any] | None:
    """A function of values of a frame, read by itself; None if its labels forbid the removal."""
    shapes = [
        jax.ShapeDtypeStruct(tuple(len(l) for l in v.labels), jnp.result_type(x))
        for v, x in zip(holds, args, strict=True)
    ]
    program, _ = equations.trace(function, *shapes)
    classes = replay.walk.classes
    walk = Walk(reading.RULES)
    new: dict[int, int] = {}
    for value in holds:
        for labels in value.labels:
            for root in np.unique(classes.find(labels[~classes.pinned(labels)])).tolist():
                if root not in new:
                    new[root] = int(walk.classes.fresh(1, weight=True)[0])
    table = np.vectorize(lambda root: new.get(root, FIXED), otypes=[np.int64])
    moved = [
        value._replace(labels=tuple(table(classes.find(l)) if len(l) else l for l in value.labels))
        for value in holds
    ]
    frame = walk.enter(program, moved)
    olds, news = np.array([*new], np.int64), np.array([*new.values()], np.int64)
    gone = replay.removed[olds]
    roots = walk.classes.find(news)
    if walk.classes.pinned(news[gone]).any() or np.isin(roots[~gone], roots[gone]).any():
        return None
    removed = np.zeros(len(walk.classes), bool)
    removed[roots[gone]] = True
    return Replay(walk, replay.rules, removed).run(frame, args)


def _unsharded(replay: Replay, frame: Frame, equation: Equation, operands: list[Any]) -> list[Any]:
    return operands  # a sharding written for the whole width says nothing of a shorter one


RULES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "iota": _iota,
    "slice": _slice,
    "split": _split,
    "pad": _pad,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "conv_general_dilated": _convolution,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "custom_jvp_call": _custom_jvp,
    **dict.fromkeys(("custom_vjp_call", "custom_vjp_call_jaxpr", "custom_lin"), _custom_vjp),
    "sharding_constraint": _unsharded,
}
