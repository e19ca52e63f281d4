"""Labels through lookups and writes: gather, scatter, slices at computed positions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np

from jaxprune.jaxpr import equations
from jaxprune.jaxpr.equations import Equation
from jaxprune.jaxpr.label_moves import first_line
from jaxprune.jaxpr.labels import Emits, Frame, Rule, Value, known

_LARGEST = 1 << 24  # entries of an operand whose constant lookup is followed entry by entry


def _gather(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    value, shape = operands[0], frame.shape(equation)
    indices = frame.static(equation.operands[1])
    if indices is not None and math.prod(map(len, value.labels)) <= _LARGEST:
        found = _constant_lookup(frame, equation, value, indices)
        if found is not None:
            return [found]
    labels = [frame.walk.fixed(n) for n in shape]
    emits: list[Emits] = [None] * len(shape)
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    spread = [axis for axis in range(len(value.labels)) if axis not in gone]
    for axis, target in zip(spread, numbers.offset_dims, strict=True):
        if sizes[axis] == len(value.labels[axis]):
            labels[target], emits[target] = value.labels[axis], value.emits[axis]
    batch = [axis for axis in range(len(shape)) if axis not in numbers.offset_dims]
    rows = operands[1].labels[:-1]
    for axis, row in zip(batch, rows, strict=True):
        labels[axis] = row
    pairs = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    for mine, theirs in pairs:
        frame.unite(value.labels[mine], rows[theirs], "looked up by", equation)
    for axis in range(len(value.labels)):
        looked_up = axis not in numbers.operand_batching_dims and sizes[axis] < len(
            value.labels[axis]
        )
        if looked_up:
            frame.pin(value.labels[axis], "rows looked up by an index", equation)
    return [Value(tuple(labels), tuple(emits))]


def positions(
    equation: Equation, shape: Sequence[int], indices: np.ndarray
) -> list[np.ndarray] | None:
    """For a lookup by constants: per axis of the operand, which index each result entry reads."""
    found = []
    for axis, n in enumerate(shape):
        grid = np.broadcast_to(
            np.arange(n, dtype=np.int32).reshape(
                [-1 if a == axis else 1 for a in range(len(shape))]
            ),
            shape,
        )
        params = {**equation.params, "fill_value": -1}
        with jax.ensure_compile_time_eval():
            [result] = equations.apply(equation._replace(params=params), [grid, indices])
        found.append(np.asarray(result))
        if (found[-1] < 0).any():
            return None
    return found


def _constant_lookup(
    frame: Frame, equation: Equation, value: Value, indices: np.ndarray
) -> Value | None:
    """Labels follow the entries, if every axis of the result reads along at most one live axis."""
    shape = tuple(len(l) for l in value.labels)
    classes = frame.walk.classes
    if not any(classes.live(l) for l in value.labels):
        return None
    read = positions(equation, shape, indices)
    if read is None:
        return None
    rank = read[0].ndim
    labels: list[np.ndarray] = [frame.walk.fixed(n) for n in read[0].shape]
    emits: list[Emits] = [None] * rank
    taken: set[int] = set()
    for axis, where in enumerate(read):
        if not classes.live(value.labels[axis]):
            continue
        along = [
            a for a in range(rank) if where.shape[a] > 1 and (where != where.take([0], a)).any()
        ]
        if len(along) == 1 and along[0] not in taken:
            line = first_line(where, along[0]).ravel()
            labels[along[0]] = value.labels[axis][line]
            emits[along[0]] = known(value.emits[axis], shape[axis])[line]
            taken.add(along[0])
        else:
            frame.pin(value.labels[axis][np.unique(where)], "looked up by a constant", equation)
    return Value(tuple(labels), tuple(emits))


def _dynamic_slice(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    value, shape = operands[0], frame.shape(equation)
    return [_whole_axes(frame, equation, value, value, shape)]


def _whole_axes(
    frame: Frame, equation: Equation, value: Value, cut: Value, shape: Sequence[int]
) -> Value:
    labels, emits = [], []
    for axis, n in enumerate(shape):
        if len(value.labels[axis]) == n:
            labels.append(value.labels[axis])
            emits.append(value.emits[axis])
        else:
            frame.pin(value.labels[axis], "cut at a position computed by the model", equation)
            labels.append(frame.walk.fixed(n))
            emits.append(None)
    return Value(tuple(labels), tuple(emits), value.whole)


def _dynamic_update(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    value, update = operands[:2]
    emits: list[Emits] = []
    partial = [
        a
        for a, (l, u) in enumerate(zip(value.labels, update.labels, strict=True))
        if len(l) != len(u)
    ]
    for axis, (mine, theirs) in enumerate(zip(value.labels, update.labels, strict=True)):
        if axis in partial:
            frame.pin(mine, "written at a position computed by the model", equation)
            frame.pin(theirs, "written at a position computed by the model", equation)
            emits.append(None)
            continue
        frame.unite(mine, theirs, "written into an axis that keeps its length", equation)
        a, b = known(value.emits[axis], len(mine)), known(update.emits[axis], len(mine))
        emits.append(np.where(a == b, a, np.nan))
    return [Value(value.labels, tuple(emits))]


def _scatter(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    value, _, updates = operands
    numbers = equation.params["dimension_numbers"]
    gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    windows = [axis for axis in range(len(value.labels)) if axis not in gone]
    emits: list[Emits] = [None] * len(value.labels)
    whole = set()
    for axis, theirs in zip(windows, numbers.update_window_dims, strict=True):
        mine, new = value.labels[axis], updates.labels[theirs]
        if len(mine) == len(new):
            whole.add(axis)
            frame.unite(mine, new, "written into an axis that keeps its length", equation)
            a, b = known(value.emits[axis], len(mine)), known(updates.emits[theirs], len(mine))
            emits[axis] = _zero_of_zeros(equation, (a == 0) & (b == 0))
        else:
            frame.pin(new, "written into a part of an axis", equation)
    for axis, labels in enumerate(value.labels):
        if axis not in whole:
            frame.pin(labels, "written at positions of an index", equation)
    for axis, labels in enumerate(updates.labels):
        if axis not in numbers.update_window_dims:
            frame.pin(labels, "written at positions of an index", equation)
    return [Value(value.labels, tuple(emits))]


def _zero_of_zeros(equation: Equation, zeros: np.ndarray) -> Emits:
    """0 where a slice and what is written there are 0; nothing of `.at[...].apply(function)`."""
    update = equation.params.get("update_jaxpr")
    writes = equation.name != "scatter" or update is None or update.outvars == [update.invars[1]]
    return np.where(zeros, 0.0, np.nan) if writes else None


RULES: dict[str, Rule] = {
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update,
    **dict.fromkeys(
        (
            "scatter",
            "scatter-add",
            "scatter_add",
            "scatter-sub",
            "scatter-mul",
            "scatter-min",
            "scatter-max",
        ),
        _scatter,
    ),
}
