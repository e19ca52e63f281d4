"""What makes a unit: its incoming weights, with the affine map that follows them folded in.

`z = w . x` is what the product gives, `o = slope z + offset` what the additions and products with
parameters after it make of that: a bias, BatchNorm at inference (slope = gamma / sigma, offset =
beta - mu gamma / sigma), a layer scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.coupling.groups import Group, Member
from jaxprune.jaxpr import equations
from jaxprune.jaxpr.equations import Constant, Equation
from jaxprune.jaxpr.labels import Frame
from jaxprune.structure.slices import numbers
from jaxprune.structure.ways import PASSES, Ways, Wiring

_ADDITIVE = ("add", "add_any", "sub", "concatenate", "gather")


class Source(NamedTuple):
    """A product that makes the units.

    Attributes:
      weights: [units, n], incoming weights times their slope.
      offsets: [units, m], one for each slice of the unit.
      scaled: True if the slope depends on parameters (a BatchNorm follows).
      end: the variable after the affine map.
    """

    weights: np.ndarray
    offsets: np.ndarray
    scaled: bool
    end: int


class Incoming(NamedTuple):
    """All that makes the units of a group.

    Attributes:
      sources: the products.
      rest: [units, n], other incoming slices as they are.
      other: leaves among these that do more than being added.
      products: lines where what one source makes is multiplied with what another makes.
    """

    sources: tuple[Source, ...]
    rest: np.ndarray
    other: tuple[str, ...]
    products: tuple[str, ...]


def incoming(wired: Wiring, group: Group, ways: Ways, values: Sequence[np.ndarray]) -> Incoming:
    """What makes the units of a group, float64.

    Args:
      wired, group, ways: the model, the group, its ways in.
      values: every leaf, in float64.
    """
    known = Known(wired.frame, values)
    sources: list[Source] = []
    seen: set[int] = set()
    starts: dict[int, int] = {}
    for at, equation in enumerate(wired.frame.program.equations):
        made = _made(wired, equation, group)
        if made is not None:
            source, leaves = _source(wired, known, at, group, *made)
            starts[equation.results[0]] = len(sources)
            sources.append(source)
            seen |= leaves
    names = wired.coupling.names
    rest = [m for m in ways.ins if names.index(m.leaf) not in seen]
    parts = [_slices(values[names.index(m.leaf)], m) for m in rest]
    other = [m.leaf for m in rest if not _only_added(wired, names.index(m.leaf))]
    empty = np.zeros((group.units, 0))
    products = _products(wired, group, starts)
    return Incoming(tuple(sources), np.concatenate([empty, *parts], axis=1), tuple(other), products)


def _products(wired: Wiring, group: Group, starts: dict[int, int]) -> tuple[str, ...]:
    """Lines where units of different sources are multiplied or divided: gated units, say."""
    if len(starts) < 2:
        return ()
    frame, lines = wired.frame, []
    made: dict[int, frozenset[int]] = {v: frozenset([number]) for v, number in starts.items()}
    for equation in frame.program.equations:
        found = [made.get(o, frozenset()) for o in equation.operands if isinstance(o, int)]
        meet = {sources for sources in found if sources}
        if len(meet) > 1 and equation.name in ("mul", "div", "dot_general"):
            lines.append(equations.line_of(equation))
        for variable in equation.results:
            labels = frame.values[variable].labels
            if meet and any(np.isin(wired.ids(axis), group.ids).any() for axis in labels):
                made.setdefault(variable, frozenset().union(*meet))
    return tuple(dict.fromkeys(lines))


def slices(values: np.ndarray, member: Member) -> np.ndarray:
    """The slices of every unit, [units, slices per unit, entries]."""
    rows = np.moveaxis(values, member.axis, 0)
    rows = rows.reshape(len(rows), -1)
    return rows[member.positions]


def _slices(values: np.ndarray, member: Member) -> np.ndarray:
    return slices(values, member).reshape(len(member.positions), -1)


def _only_added(wired: Wiring, leaf: int) -> bool:
    names = [wired.equation(use.at).name for use in wired.uses[leaf] if use.at >= 0]
    return all(name in _ADDITIVE for name in names)


class Known:
    """Values that depend on parameters alone, evaluated when they are asked for."""

    def __init__(self, frame: Frame, values: Sequence[np.ndarray]) -> None:
        self.frame = frame
        arguments = frame.program.arguments[: frame.parameters]
        self._values: dict[int, np.ndarray] = dict(zip(arguments, values, strict=False))
        self._leaves = {variable: {leaf} for leaf, variable in enumerate(arguments)}

    def __call__(self, operand: int | Constant) -> np.ndarray | None:
        """A value in float64; None if it depends on the inputs."""
        found = self.frame.static(operand)
        if found is not None:
            return numbers(found)
        if isinstance(operand, Constant) or self.frame.value(operand).varies:
            return None
        if operand not in self._values:
            index = self.frame.definition(operand)
            equation = self.frame.program.equations[index]
            if equation.name in PASSES:
                return self(equation.operands[0])
            dtypes = self.frame.dtypes(equation)
            pairs = zip(equation.operands, dtypes, strict=True)
            with jax.ensure_compile_time_eval():
                results = equations.apply(equation, [np.asarray(self(o), d) for o, d in pairs])
            for variable, result in zip(equation.results, results, strict=True):
                self._values[variable] = numbers(result)
        return self._values[operand]

    def leaves(self, operand: int | Constant) -> set[int]:
        """The leaves that a value depends on."""
        if isinstance(operand, Constant):
            return set()
        if operand not in self._leaves:
            self._leaves[operand] = set()
            if operand not in self.frame.program.arguments:
                equation = self.frame.program.equations[self.frame.definition(operand)]
                self._leaves[operand] = set().union(*map(self.leaves, equation.operands))
        return self._leaves[operand]


def _made(wired: Wiring, equation: Equation, group: Group) -> tuple[int, int, int] | None:
    """(operand, its axis, axis of the result) where a product makes the group's units."""
    if equation.name not in ("dot_general", "conv_general_dilated", "gather"):
        return None
    if not wired.frame.value(equation.results[0]).varies:
        return None
    for side, operand in enumerate(equation.operands[:2]):
        value = wired.frame.value(operand)
        if value.varies:
            continue
        for axis, result in _free(equation, side, len(value.labels)):
            if wired.places(group, value.labels[axis]).size:
                return side, axis, result
    return None


def _free(equation: Equation, side: int, rank: int) -> list[tuple[int, int]]:
    """(axis of an operand, axis of the result) for the axes that a product only hands on."""
    p = equation.params
    if equation.name == "conv_general_dilated":
        plain = side == 1 and p["feature_group_count"] == 1
        numbers = p["dimension_numbers"]
        return [(numbers.rhs_spec[0], numbers.out_spec[1])] if plain else []
    if equation.name == "gather":
        numbers = p["dimension_numbers"]
        gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
        spread = [axis for axis in range(rank) if axis not in gone]
        return list(zip(spread, numbers.offset_dims, strict=True)) if side == 0 else []
    contracted, batched = p["dimension_numbers"]
    busy = (*contracted[side], *batched[side])
    free = [axis for axis in range(rank) if axis not in busy]
    first = len(batched[0])
    if side == 1:
        first = -len(free)
    return [(axis, first + i) for i, axis in enumerate(free)]


def _source(
    wired: Wiring, known: Known, at: int, group: Group, side: int, axis: int, result: int
) -> tuple[Source, set[int]]:
    equation = wired.equation(at)
    operand = equation.operands[side]
    weights = known(operand)
    assert weights is not None, "the operand does not vary"
    rows = np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)
    rank = len(wired.frame.value(equation.results[0]).labels)
    chain = _affine(known, equation.results[0], result % rank, len(rows))
    where = wired.places(group, wired.frame.value(operand).labels[axis])
    flat = (chain.slope[:, None] * rows)[where].reshape(group.units, -1)
    source = Source(flat, chain.offset[where], chain.scaled, chain.end)
    return source, known.leaves(operand) | chain.leaves


class _Chain(NamedTuple):
    slope: np.ndarray
    offset: np.ndarray
    scaled: bool
    leaves: set[int]
    end: int


def _affine(known: Known, variable: int, axis: int, n: int) -> _Chain:
    """Sums and products with parameters, one after the other, that only one reader sees."""
    frame = known.frame
    slope, offset, scaled = np.ones(n), np.zeros(n), False
    leaves: set[int] = set()
    while True:
        readers = frame.consumers(variable)
        if len(readers) != 1 or variable in frame.program.outputs:
            break
        reader = frame.program.equations[readers[0]]
        if reader.name == "neg":
            slope, offset = -slope, -offset
        elif reader.name not in PASSES:
            mine = reader.operands.index(variable)
            if reader.name not in ("add", "add_any", "sub", "mul", "div") or (
                reader.name == "div" and mine == 1
            ):
                break
            other = reader.operands[1 - mine]
            line = _along(known(other), axis, n)
            if line is None:
                break
            leaves |= known.leaves(other)
            if reader.name in ("mul", "div"):
                line = line if reader.name == "mul" else 1 / line
                slope, offset = slope * line, offset * line
                scaled = scaled or bool(known.leaves(other))
            elif reader.name == "sub":
                sign = 1 if mine == 0 else -1
                slope, offset = sign * slope, sign * (offset - line)
            else:
                offset = offset + line
        variable = reader.results[0]
    return _Chain(slope, offset, scaled, leaves, variable)


def _along(values: Any, axis: int, n: int) -> np.ndarray | None:
    """The numbers along one axis; None if they vary along another too."""
    if values is None:
        return None
    if values.ndim == 0:
        return np.full(n, float(values))
    line = values[tuple(slice(None) if a == axis else slice(1) for a in range(values.ndim))]
    return np.broadcast_to(line.ravel(), (n,)) if (values == line).all() else None
