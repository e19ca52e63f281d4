"""Labels through entrywise primitives, products, convolutions and reductions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxprune.jaxpr.emitted import emitted
from jaxprune.jaxpr.equations import Constant, Equation
from jaxprune.jaxpr.labels import Emits, Frame, Product, Rule, Value, known, zeros_of
from jaxprune.jaxpr.primitives import ELEMENTWISE

_PASSES = ("broadcast_in_dim", "convert_element_type", "reshape", "expand_dims", "squeeze")


def _entrywise(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    shape = frame.shape(equation)
    text = f"'{equation.name}' with an axis that keeps its length"
    labels: list[np.ndarray] = []
    emits: list[Emits] = []
    if len(operands) == 1:
        labels = list(operands[0].labels)
    for axis, n in enumerate(shape):
        spans = [len(v.labels) == len(shape) and len(v.labels[axis]) == n for v in operands]
        if len(operands) > 1:
            full = [v for v, spanned in zip(operands, spans, strict=True) if spanned]
            for v, spanned in zip(operands, spans, strict=True):
                if v.labels and not spanned:
                    frame.pin(v.labels[axis], "one slice, read by a whole axis", equation)
            for other in full[1:]:
                frame.unite(full[0].labels[axis], other.labels[axis], text, equation)
            labels.append(full[0].labels[axis])
        parts = [v.emits[axis] if s else None for v, s in zip(operands, spans, strict=True)]
        if all(part is None for part in parts):
            emits.append(None)
            continue
        holds = [
            known(p, n) if s else v.whole for v, p, s in zip(operands, parts, spans, strict=True)
        ]
        result = emitted(equation.name, equation.params, holds)
        emits.append(None if np.isnan(result).all() else np.broadcast_to(result, (n,)))
    wholes = [v.whole for v in operands]
    whole = float(emitted(equation.name, equation.params, wholes)) if _some(wholes) else np.nan
    return [Value(tuple(labels), tuple(emits), whole)]


def _some(wholes: Sequence[float]) -> bool:
    return not all(math.isnan(number) for number in wholes)


def _same(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    return list(operands)


def _dot(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    contracted, batched = equation.params["dimension_numbers"]
    left, right = operands
    for (a, b), text in [
        (p, "contracted with an axis that keeps its length") for p in zip(*contracted, strict=True)
    ] + [
        (p, "a batch axis of a product, which keeps its length") for p in zip(*batched, strict=True)
    ]:
        frame.unite(left.labels[a], right.labels[b], text, equation)
    varying = 0 if left.varies or not right.varies else 1
    for pair in zip(*contracted, strict=True):
        n = len(left.labels[pair[0]])
        exact = zeros_of(left.emits[pair[0]], n) | zeros_of(right.emits[pair[1]], n)
        frame.end("contraction", varying, pair[varying], operands, exact, "contracted")
    labels, emits = [], []
    for a, b in zip(*batched, strict=True):
        n = len(left.labels[a])
        labels.append(left.labels[a])
        emits.append(_zero(zeros_of(left.emits[a], n) | zeros_of(right.emits[b], n)))
    for value, ended in ((left, contracted[0] + batched[0]), (right, contracted[1] + batched[1])):
        for axis, axis_labels in enumerate(value.labels):
            if axis not in ended:
                labels.append(axis_labels)
                emits.append(_zero(zeros_of(value.emits[axis], len(axis_labels))))
    ended_labels = tuple(left.labels[a] for a in contracted[0])
    _count(frame, equation, 2, (*ended_labels, *labels), labels)
    return [Value(tuple(labels), tuple(emits))]


def _zero(where: np.ndarray) -> Emits:
    return np.where(where, 0.0, np.nan) if where.any() else None


def _count(
    frame: Frame, equation: Equation, flops: int, axes: Sequence[np.ndarray], labels: Sequence
) -> None:
    itemsize = frame.program.shapes[equation.results[0]].dtype.itemsize
    product = Product(flops, tuple(axes), tuple(labels), itemsize, frame.walk.repeats)
    frame.walk.products.append(product)


def _convolution(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    numbers = equation.params["dimension_numbers"]
    (lhs_batch, lhs_in, *lhs_space), (rhs_out, rhs_in, *rhs_space) = numbers[:2]
    groups = equation.params["feature_group_count"]
    inputs, kernel = operands
    shape = frame.shape(equation)
    for value, space in ((inputs, lhs_space), (kernel, rhs_space)):
        for axis in space:
            frame.pin(value.labels[axis], "a spatial axis of a convolution", equation)
    if equation.params["batch_group_count"] > 1:
        frame.pin(inputs.labels[lhs_batch], "a convolution with groups of examples", equation)
        frame.pin(kernel.labels[rhs_out], "a convolution with groups of examples", equation)
    channels, outs = inputs.labels[lhs_in], kernel.labels[rhs_out]
    dead = zeros_of(kernel.emits[rhs_out], len(outs))
    varying = 0 if inputs.varies or not kernel.varies else 1
    axis = (lhs_in, rhs_in)[varying]
    if groups == 1:
        frame.unite(
            channels,
            kernel.labels[rhs_in],
            "channels of a convolution, which keep their length",
            equation,
        )
        n = len(channels)
        exact = zeros_of(inputs.emits[lhs_in], n) | zeros_of(kernel.emits[rhs_in], n)
        frame.end("contraction", varying, axis, operands, exact, "contracted")
        counted = (channels, outs)
    else:
        frame.pin(kernel.labels[rhs_in], "channels inside a group of a convolution", equation)
        a, b = channels.reshape(groups, -1), outs.reshape(groups, -1)
        text = "a group of a convolution"
        for block in (a, b):
            first = np.broadcast_to(a[:, :1], block.shape)
            frame.unite(np.ravel(block), np.ravel(first), text, equation)
        empty = zeros_of(inputs.emits[lhs_in], len(channels)).reshape(groups, -1).all(1)
        dead = dead | np.repeat(empty, len(outs) // groups)
        counted = (kernel.labels[rhs_in], outs)
    labels = [frame.walk.fixed(n) for n in shape]
    emits: list[Emits] = [None] * len(shape)
    out = numbers[2]
    labels[out[0]], labels[out[1]] = inputs.labels[lhs_batch], outs
    emits[out[0]] = _zero(zeros_of(inputs.emits[lhs_batch], shape[out[0]]))
    if equation.params["batch_group_count"] == 1:
        emits[out[1]] = _zero(dead)
    else:
        labels[out[0]], emits[out[0]] = frame.walk.fixed(shape[out[0]]), None
    # An inserted zero of a transposed convolution is not counted: its input positions are.
    dilated = equation.params["lhs_dilation"]
    positions = math.prod(
        len(inputs.labels[lhs_space[i]]) if d > 1 else shape[out[2 + i]]
        for i, d in enumerate(dilated)
    )
    size = math.prod(len(kernel.labels[axis]) for axis in rhs_space)
    axes = (labels[out[0]], *counted)
    _count(frame, equation, 2 * positions * size, axes, labels)
    return [Value(tuple(labels), tuple(emits))]


_NEUTRAL = {"reduce_sum": 0.0, "reduce_prod": 1.0, "reduce_or": 0.0, "reduce_and": 1.0}


def _reduction(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    name = equation.name
    axes = equation.params.get("axes", equation.params.get("dimensions", ()))
    live = any(frame.walk.classes.live(operands[0].labels[axis]) for axis in axes)
    kind, text = name, f"'{name}' over the axis"
    if name == "reduce_sum" and live and _is_mean(frame, equation, operands[0], axes):
        kind, text = "mean", "a mean over the axis: the code divides by its length"
    elif name == "reduce_sum":
        kind, text = "sum", "a sum over slices that are not zero when removed"
    for number, value in enumerate(operands[: len(equation.results)]):
        for axis in axes:
            n = len(value.labels[axis])
            if name in _NEUTRAL and kind != "mean":
                exact = known(value.emits[axis], n) == _NEUTRAL[name]
            else:
                exact = np.zeros(n, bool)
            frame.end(kind, number, axis, operands, exact, text)
    entries = math.prod(len(operands[0].labels[axis]) for axis in axes)
    results = []
    for value in operands[: len(equation.results)]:
        rest = [axis for axis in range(len(value.labels)) if axis not in axes]
        emits = [_reduced(name, value.emits[axis], entries, live) for axis in rest]
        whole = np.nan if live else float(_total(name, value.whole, entries))
        results.append(Value(tuple(value.labels[axis] for axis in rest), tuple(emits), whole))
    for value, result in zip(operands[1:], results[1:], strict=False):
        for axis in range(len(result.labels)):
            frame.unite(results[0].labels[axis], result.labels[axis], "reduced together", equation)
        frame.unite(operands[0].labels[axes[0]], value.labels[axes[0]], "together", equation)
    return results


def _reduced(name: str, emits: Emits, entries: int, live: bool) -> Emits:
    if emits is None:
        return None
    total = np.asarray(_total(name, emits, entries))
    return np.where(emits == 0, total, np.nan) if live else total


def _total(name: str, constant: Any, entries: int) -> Any:
    """`entries` times the same constant, reduced."""
    if name == "reduce_sum":
        return constant * entries
    if name == "reduce_prod":
        return constant**entries
    if name in ("reduce_max", "reduce_min", "reduce_or", "reduce_and"):
        return constant
    return constant * np.nan


def _is_mean(frame: Frame, equation: Equation, value: Value, axes: Sequence[int]) -> bool:
    """True if the sum is divided by (or multiplied by one over) a length of what it sums."""
    n = math.prod(len(value.labels[axis]) for axis in axes)
    lengths = np.array([n, n - 1.0, 1 / n, 1 / max(n - 1, 1)])
    ahead = [equation.results[0]]
    while ahead:
        for index in frame.consumers(ahead.pop()):
            reader = frame.program.equations[index]
            if reader.name in _PASSES:
                ahead.append(reader.results[0])
            for operand in reader.operands if reader.name in ("div", "mul") else ():
                if isinstance(operand, Constant) and np.ndim(operand.value) == 0:
                    number = float(operand.value)
                    if n > 1 and np.isclose(number, lengths, rtol=1e-5, atol=0).any():
                        return True
    return False


def _cumulative(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    axis = equation.params["axis"]
    value = operands[0]
    n = len(value.labels[axis])
    exact = np.zeros(n, bool)  # a unit's slice would hold what came before it, not its own
    frame.end(equation.name, 0, axis, operands, exact, f"'{equation.name}' along the axis")
    emits = tuple(
        _zero(zeros_of(e, len(l))) if i != axis and equation.name == "cumsum" else None
        for i, (e, l) in enumerate(zip(value.emits, value.labels, strict=True))
    )
    return [Value(value.labels, emits)]


def _window(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    p = equation.params
    value, shape = operands[0], frame.shape(equation)
    padded = any(any(pair) for pair in p["padding"])
    size = math.prod(p["window_dimensions"])
    for other in operands[1 : len(equation.results)]:
        for a, b in zip(value.labels, other.labels, strict=True):
            frame.unite(a, b, f"operands of '{equation.name}'", equation)
    labels, emits = [], []
    for axis, (n, width) in enumerate(zip(shape, p["window_dimensions"], strict=True)):
        if width == 1 and n == len(value.labels[axis]):
            labels.append(value.labels[axis])
            emits.append(_pooled(equation.name, value.emits[axis], size, padded))
        else:
            frame.pin(value.labels[axis], "windows along the axis", equation)
            labels.append(frame.walk.fixed(n))
            emits.append(None)
    return [Value(tuple(labels), tuple(emits))] * len(equation.results)


def _pooled(name: str, emits: Emits, size: int, padded: bool) -> Emits:
    if emits is None or name == "reduce_window":
        return None
    if name == "reduce_window_sum":
        return np.where(emits == 0, 0.0, np.nan if padded else emits * size)
    return emits


def _along_an_axis(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    """All entries along some axes are mixed; the other axes pass."""
    first, p = operands[0], equation.params
    rank = len(first.labels)
    named = (p[key] for key in ("dimension", "axis", "reduction_dimension") if key in p)
    mixed = {next(named, rank - 1) % rank}
    if equation.name == "fft":
        mixed = set(range(rank - len(p["fft_lengths"]), rank))
    for value in operands[1:]:
        for a, b in zip(first.labels, value.labels, strict=True):
            frame.unite(a, b, f"operands of '{equation.name}'", equation)
    for axis in mixed:
        exact = np.zeros(len(first.labels[axis]), bool)
        frame.end(equation.name, 0, axis, operands, exact, f"'{equation.name}' along the axis")
        frame.pin(first.labels[axis], f"'{equation.name}' along the axis", equation)
    results = []
    for result in range(len(equation.results)):
        shape = frame.shape(equation, result)
        labels = [
            frame.walk.fixed(n) if axis in mixed else first.labels[axis]
            for axis, n in enumerate(shape)
        ]
        results.append(Value(tuple(labels), (None,) * len(shape)))
    return results


RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE - {"copy"}, _entrywise),
    **dict.fromkeys(("name", "pcast", "pvary", "sharding_constraint"), _entrywise),
    **dict.fromkeys(("optimization_barrier", "copy", "copy_p"), _same),
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    **dict.fromkeys(
        (
            "reduce_sum",
            "reduce_max",
            "reduce_min",
            "reduce_prod",
            "reduce_or",
            "reduce_and",
            "reduce_xor",
            "argmax",
            "argmin",
            "reduce",
        ),
        _reduction,
    ),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _cumulative),
    **dict.fromkeys(
        ("reduce_window_sum", "reduce_window_max", "reduce_window_min", "reduce_window"), _window
    ),
    **dict.fromkeys(("sort", "top_k", "approx_top_k", "fft"), _along_an_axis),
}
