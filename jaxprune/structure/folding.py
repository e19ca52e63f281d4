"""A constant that removed units still emit, moved into a bias (or a mean) downstream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.jaxpr import equations
from jaxprune.jaxpr.equations import Constant, Equation
from jaxprune.jaxpr.labels import Event, Frame, known
from jaxprune.structure.slices import numbers

_PASSES = ("convert_element_type", "copy", "copy_p")
_MOVES = (*_PASSES, "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose")


class Fold(NamedTuple):
    """What a leaf takes over: its number, and what is added to it (of its shape, float64)."""

    leaf: int
    amount: np.ndarray


def fold(frame: Frame, event: Event, where: np.ndarray, values: Sequence[np.ndarray]) -> Fold | str:
    """The constants of some slices, contracted and moved into a bias; or why that is impossible.

    Args:
      frame: of the whole model.
      event: the contraction where the slices end.
      where: which of its slices emit the constants `event.emits`.
      values: the masked leaves.
    """
    equation = event.frame.program.equations[event.at]
    line = equations.line_of(equation)
    if event.kind != "contraction":
        return f"'{equation.name}' at {line} takes a constant that nothing can take over"
    if event.frame is not frame:
        return f"the constant is contracted inside a loop or a branch, at {line}"
    weights = _value(frame, equation.operands[1 - event.operand], values)
    if weights is None:
        return f"the constant meets a value that depends on the inputs, at {line}"
    constants = np.where(where, known(event.emits, len(where)), 0.0)
    if equation.name == "dot_general":
        found = _contracted(equation, event, weights, constants)
    else:
        found = _convolved(equation, event, weights, constants)
    if found is None:
        return f"zero padding makes the constant differ at the border, at {line}"
    total, axes = found
    bias = _bias(frame, equation, axes, total)
    return bias or f"no bias after {line} can take the constant"


def _contracted(
    equation: Equation, event: Event, weights: np.ndarray, constants: np.ndarray
) -> tuple[np.ndarray, list[int]] | None:
    contracted, batched = equation.params["dimension_numbers"]
    if batched[0]:
        return None
    mine, theirs = contracted[event.operand], contracted[1 - event.operand]
    place = theirs[mine.index(event.axis)]
    shape = [-1 if axis == place else 1 for axis in range(weights.ndim)]
    total = (weights * constants.reshape(shape)).sum(axis=tuple(theirs))
    free = weights.ndim - len(theirs)
    rank = free + len(event.frame.value(equation.operands[event.operand]).labels) - len(mine)
    first = 0 if event.operand == 1 else rank - free
    return total, list(range(first, first + free))


def _convolved(
    equation: Equation, event: Event, weights: np.ndarray, constants: np.ndarray
) -> tuple[np.ndarray, list[int]] | None:
    p = equation.params
    padded = any(any(pair) for pair in p["padding"]) or any(d > 1 for d in p["lhs_dilation"])
    numbers = p["dimension_numbers"]
    if padded or p["feature_group_count"] > 1 or p["batch_group_count"] > 1 or event.operand == 1:
        return None
    out, channel = numbers.rhs_spec[:2]
    shape = [-1 if axis == channel else 1 for axis in range(weights.ndim)]
    rest = tuple(axis for axis in range(weights.ndim) if axis != out)
    return (weights * constants.reshape(shape)).sum(axis=rest), [numbers.out_spec[1]]


def _value(frame: Frame, operand: Any, values: Sequence[np.ndarray]) -> np.ndarray | None:
    """An operand that depends on parameters alone, in float64 if it is a parameter, moved."""
    found = frame.static(operand)
    if found is not None:
        return numbers(found)
    if operand in frame.program.arguments:
        number = frame.program.arguments.index(operand)
        return values[number] if number < len(values) else None
    index = frame.definition(operand)
    equation = frame.program.equations[index]
    operands = [_value(frame, o, values) for o in equation.operands]
    if index in frame.inner or any(o is None for o in operands):
        return None
    if equation.name in _PASSES:
        return operands[0]
    with jax.ensure_compile_time_eval():
        results = equations.apply(
            equation,
            [np.asarray(o, s) for o, s in zip(operands, frame.dtypes(equation), strict=True)],
        )
    return numbers(results[equation.results.index(operand)])


def _read_once(frame: Frame, variable: int) -> bool:
    return len(frame.consumers(variable)) == 1 and variable not in frame.program.outputs


def _bias(frame: Frame, equation: Equation, axes: list[int], total: np.ndarray) -> Fold | None:
    """The leaf added to (or subtracted from) the result of an equation, and its share."""
    variable = equation.results[0]
    while True:
        if not _read_once(frame, variable):
            return None
        reader = frame.program.equations[frame.consumers(variable)[0]]
        if reader.name not in _PASSES:
            break
        variable = reader.results[0]
    if reader.name not in ("add", "add_any", "sub") or reader.operands[0] == reader.operands[1]:
        return None
    mine = reader.operands.index(variable)
    if reader.name == "sub" and mine == 1:
        return None
    chain: list[Equation] = []
    operand = reader.operands[1 - mine]
    while not isinstance(operand, Constant) and operand not in frame.program.arguments:
        moved = frame.program.equations[frame.definition(operand)]
        if moved.name not in _MOVES or not _read_once(frame, operand):
            return None
        chain.insert(0, moved)
        operand = moved.operands[0]
    if isinstance(operand, Constant) or not _read_once(frame, operand):
        return None
    leaf = frame.program.arguments.index(operand)
    shape = frame.program.shapes[operand].shape
    if leaf >= frame.parameters or int(np.prod(shape)) != total.size:
        return None
    probe: Any = np.arange(total.size, dtype=np.int32).reshape(shape)
    with jax.ensure_compile_time_eval():
        for moved in chain:
            if moved.name not in _PASSES:
                [probe] = equations.apply(moved, [probe])
    probe = np.asarray(probe)
    if probe.ndim != len(frame.shape(reader)):
        return None
    line = probe[tuple(slice(None) if a in axes else slice(1) for a in range(probe.ndim))]
    if (line != probe).any() or line.size != total.size:
        return None
    if np.iscomplexobj(total) and not np.issubdtype(frame.program.shapes[operand].dtype, complex):
        return None
    amount = np.zeros(total.size, total.dtype)
    amount[line.reshape(-1)] = total.reshape(-1) * (1 if reader.name != "sub" else -1)
    return Fold(leaf, amount.reshape(shape))
