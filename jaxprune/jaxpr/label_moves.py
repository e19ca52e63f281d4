"""Labels through primitives that move entries: reshapes, slices, joins, lookups."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxprune.jaxpr.equations import Equation
from jaxprune.jaxpr.labels import Emits, Frame, Rule, Value, known


def _take(emits: Any, where: Any) -> Any:
    return None if emits is None else emits[where]


def _broadcast(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    value, shape = operands[0], frame.shape(equation)
    fill = None if np.isnan(value.whole) else value.whole
    labels: list[np.ndarray | None] = [None] * len(shape)
    emits: list[Emits] = [None if fill is None else np.full(n, fill) for n in shape]
    for axis, target in enumerate(equation.params["broadcast_dimensions"]):
        if len(value.labels[axis]) == shape[target]:
            labels[target], emits[target] = value.labels[axis], value.emits[axis]
        else:
            frame.pin(value.labels[axis], "one slice, read by a whole axis", equation)
    full = tuple(
        frame.walk.fresh(n) if l is None else l for n, l in zip(shape, labels, strict=True)
    )
    return [Value(full, tuple(emits), value.whole)]


def _transpose(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    order = equation.params["permutation"]
    value = operands[0]
    return [_along(value, order)]


def _along(value: Value, axes: Sequence[int]) -> Value:
    """The value with these of its axes, in this order."""
    return value._replace(
        labels=tuple(value.labels[a] for a in axes), emits=tuple(value.emits[a] for a in axes)
    )


def _squeeze(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    value, gone = operands[0], equation.params["dimensions"]
    rest = [a for a in range(len(value.labels)) if a not in gone]
    for axis in gone:
        frame.pin(value.labels[axis], "one slice, picked out of its axis", equation)
    return [_along(value, rest)]


def _expand(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    value, new = operands[0], equation.params["dimensions"]
    labels, emits = iter(value.labels), iter(value.emits)
    rank = len(value.labels) + len(new)
    return [
        value._replace(
            labels=tuple(frame.walk.fixed(1) if a in new else next(labels) for a in range(rank)),
            emits=tuple(None if a in new else next(emits) for a in range(rank)),
        )
    ]


def _reverse(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    return [
        _indexed(operands[0], {a: slice(None, None, -1) for a in equation.params["dimensions"]})
    ]


def _slice(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    p = equation.params
    steps = p["strides"] or (1,) * len(p["start_indices"])
    where = map(slice, p["start_indices"], p["limit_indices"], steps)
    return [_indexed(operands[0], dict(enumerate(where)))]


def _split(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    ends = list(itertools.accumulate(map(int, equation.params["sizes"]), initial=0))
    axis = equation.params["axis"]
    return [_indexed(operands[0], {axis: slice(a, b)}) for a, b in itertools.pairwise(ends)]


def _indexed(value: Value, where: dict[int, Any]) -> Value:
    """The value with some of its axes indexed."""
    get = lambda parts, axis: _take(parts[axis], where.get(axis, slice(None)))
    axes = range(len(value.labels))
    labels = tuple(get(value.labels, a) for a in axes)
    return value._replace(labels=labels, emits=tuple(get(value.emits, a) for a in axes))


def _tile(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    value, reps = operands[0], equation.params["reps"]
    labels = tuple(np.tile(l, r) if r > 1 else l for l, r in zip(value.labels, reps, strict=True))
    emits = tuple(e if e is None else np.tile(e, r) for e, r in zip(value.emits, reps, strict=True))
    return [value._replace(labels=labels, emits=emits)]


def _concatenate(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    return [_joined(frame, equation, operands, equation.params["dimension"])]


def _joined(frame: Frame, equation: Equation, operands: Sequence[Value], axis: int) -> Value:
    labels, emits = list(operands[0].labels), list(operands[0].emits)
    for a in range(len(labels)):
        parts = [value.labels[a] for value in operands]
        holds = [known(value.emits[a], len(value.labels[a])) for value in operands]
        if a == axis:
            labels[a], emits[a] = np.concatenate(parts), np.concatenate(holds)
            continue
        for other in parts[1:]:
            frame.unite(
                parts[0], other, "concatenated with an axis that keeps its length", equation
            )
        same = np.all([hold == holds[0] for hold in holds], axis=0)
        emits[a] = np.where(same, holds[0], np.nan) if same.any() else None
    return Value(tuple(labels), tuple(emits), _common(v.whole for v in operands))


def _common(numbers: Any) -> float:
    found = set(numbers)
    return found.pop() if len(found) == 1 else np.nan


def _stack(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    axis = equation.params["axis"]
    insert = lambda parts, new: (*parts[:axis], new, *parts[axis:])
    ones = [
        v._replace(labels=insert(v.labels, frame.walk.fixed(1)), emits=insert(v.emits, None))
        for v in operands
    ]
    return [_joined(frame, equation, ones, axis)]


def _unstack(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    axis, value = equation.params["axis"], operands[0]
    frame.pin(value.labels[axis], "unstacked", equation)
    drop = lambda parts: (*parts[:axis], *parts[axis + 1 :])
    one = value._replace(labels=drop(value.labels), emits=drop(value.emits))
    return [one] * len(equation.results)


def _pad(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    """Padding is constant along every axis: what it adds can be removed with what it meets."""
    value, filler = operands
    labels: list[np.ndarray] = []
    emits: list[Emits] = []
    config = equation.params["padding_config"]
    moved = [axis for axis, amounts in enumerate(config) if any(amounts)]
    for axis, (low, high, inside) in enumerate(config):
        old, holds = value.labels[axis], known(value.emits[axis], len(value.labels[axis]))
        if axis not in moved:
            labels.append(old)
            others = [a for a in moved if a != axis]
            emits.append(np.where(holds == filler.whole, holds, np.nan) if others else holds)
            continue
        if inside or low < 0 or high < 0:
            frame.pin(old, "padded inside, or cut", equation)
            labels.append(frame.walk.fixed(frame.shape(equation)[axis]))
            emits.append(None)
            continue
        around = [frame.walk.classes.fresh(n) for n in (int(low), int(high))]
        labels.append(np.concatenate([around[0], old, around[1]]))
        fill = [np.full(n, filler.whole) for n in (int(low), int(high))]
        inner = np.where(holds == filler.whole, holds, np.nan) if len(moved) > 1 else holds
        emits.append(np.concatenate([fill[0], inner, fill[1]]))
    return [Value(tuple(labels), tuple(emits))]


def _iota(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    """Positions along one axis, which therefore keeps its length; the same along all others."""
    shape, counted = frame.shape(equation), equation.params["dimension"]
    labels = tuple(
        frame.walk.fixed(n) if axis == counted else frame.walk.fresh(n)
        for axis, n in enumerate(shape)
    )
    return [Value(labels, (None,) * len(shape))]


def _reshape(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    value, new = operands[0], frame.shape(equation)
    if equation.params.get("dimensions") is not None:
        frame.walk.pin(value, "a reshape in another order", equation)
        return [frame.walk.data(new)]
    old = tuple(len(l) for l in value.labels)
    labels: list[np.ndarray] = []
    emits: list[Emits] = []
    for i, j in blocks(old, new):
        a, b = list(i), list(j)
        wide = [axis for axis in b if new[axis] > 1]
        if len(a) == len(b) == 1:
            labels.append(value.labels[a[0]])
            emits.append(value.emits[a[0]])
            continue
        for axis in a:
            if old[axis] == 1:
                frame.pin(value.labels[axis], "one slice, picked out of its axis", equation)
        grid, holds = _merged(frame, equation, value, a, [old[axis] for axis in a])
        sizes = [new[axis] for axis in b]
        parts, numbers = _parted(
            frame, equation, grid.reshape(sizes), holds.reshape(sizes), wide, b
        )
        labels += parts
        emits += numbers
    return [Value(tuple(labels), tuple(emits), value.whole)]


def blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[range, range]]:
    """Runs of axes of two shapes of one size, each run holding the same entries.

    Example:
      >>> blocks((2, 3, 4), (6, 2, 2))
      [(range(0, 2), range(0, 1)), (range(2, 3), range(1, 3))]
    """
    found, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        a, b = min(i + 1, len(old)), min(j + 1, len(new))
        while math.prod(old[i:a]) != math.prod(new[j:b]):
            if math.prod(old[i:a]) < math.prod(new[j:b]):
                a += 1
            else:
                b += 1
        if math.prod(old[i:a]) == 0:
            a, b = len(old), len(new)
        found.append((range(i, a), range(j, b)))
        i, j = a, b
    return found


def _merged(
    frame: Frame, equation: Equation, value: Value, axes: list[int], sizes: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Labels (and what is emitted) of several axes made one: at most one stays removable."""
    classes = frame.walk.classes
    live = [axis for axis in axes if classes.live(value.labels[axis])]
    weighty = [axis for axis in live if classes.has_weight(value.labels[axis])]
    keep = next(iter([*weighty, *live, *axes]), None)
    for axis in live:
        if axis != keep:
            frame.pin(value.labels[axis], "two axes of units made one", equation)
    grid = np.zeros(sizes or [1], np.int64)
    holds = np.full(sizes or [1], np.nan)
    if keep is not None:
        place = [-1 if axis == keep else 1 for axis in axes]
        grid = np.broadcast_to(value.labels[keep].reshape(place), sizes)
        n = len(value.labels[keep])
        holds = np.broadcast_to(known(value.emits[keep], n).reshape(place), sizes)
    if np.isfinite(value.whole):
        holds = np.full(holds.shape, value.whole)
    return grid, holds


def _parted(
    frame: Frame,
    equation: Equation,
    grid: np.ndarray,
    holds: np.ndarray,
    wide: list[int],
    axes: list[int],
) -> tuple[list[np.ndarray], list[Emits]]:
    """Labels of one axis made several: one is the unit, the others keep their length."""
    fixed = [frame.walk.fixed(n) for n in grid.shape]
    if not wide:
        return fixed, [None] * len(fixed)
    roots = frame.walk.classes.find(grid.ravel()).reshape(grid.shape)
    carriers = [p for p, axis in enumerate(axes) if axis in wide]
    carries = [p for p in carriers if (roots == first_line(roots, p)).all()]
    place = (*frame.path, frame.index, axes[0])
    chosen = carries[0] if carries else carriers[frame.walk.choices.get(place, 0)]
    rows = np.moveaxis(grid, chosen, 0).reshape(grid.shape[chosen], -1)
    if not carries:
        if frame.walk.classes.live(grid.ravel()):
            frame.walk.splits.append((place, len(carriers), rows[:, 0]))
        first = np.broadcast_to(rows[:, :1], rows.shape)
        frame.unite(
            first.ravel(), rows.ravel(), "split from an axis that keeps its length", equation
        )
    values = np.moveaxis(holds, chosen, 0).reshape(rows.shape)
    same = (values == values[:, :1]).all(1)
    emits: list[Emits] = [None] * grid.ndim
    emits[chosen] = np.where(same, values[:, 0], np.nan)
    labels = list(fixed)
    labels[chosen] = rows[:, 0]
    return labels, emits


def first_line(grid: np.ndarray, axis: int) -> np.ndarray:
    """The entries along one axis, where all the others are 0."""
    where = tuple(slice(None) if a == axis else slice(1) for a in range(grid.ndim))
    return grid[where]


RULES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "expand_dims": _expand,
    "rev": _reverse,
    "slice": _slice,
    "split": _split,
    "tile": _tile,
    "concatenate": _concatenate,
    "stack": _stack,
    "unstack": _unstack,
    "pad": _pad,
    "iota": _iota,
    "reshape": _reshape,
}
