"""A program evaluated with slices left out, or with a gate on every unit: the rewritten model.

The program was traced on the whole (dense) shapes; every axis whose labels are partly removed is
shorter in the operands that come in. Most primitives then need nothing but to be applied; those
whose parameters name sizes have an entry in `replay_rules`. Numbers that the code derived from a
width (the divisor of a mean, the root of a head's size) stay those of the dense model, which is
what makes the result that of the masked model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.jaxpr import equations
from jaxprune.jaxpr.equations import Constant, Equation
from jaxprune.jaxpr.labels import Frame, Value, Walk

Rule = Callable[["Replay", Frame, Equation, list[Any]], list[Any]]
_REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_or", "reduce_and")


class Replay:
    """How to evaluate the frames of a reading.

    Attributes:
      walk: the reading.
      rules: of the primitives whose parameters name sizes.
      removed: bool per label (representatives of classes count).
      gates: a number per label, or None; what a unit contributes is multiplied by its gate where
        it is contracted or summed. Of rank 2, it has a row for every example.
      gated: bool per label: which have a gate.
      rows: for gates of rank 2, the axis of an operand that runs over examples.
      names: of the groups that some labels belong to, to name them.
    """

    def __init__(
        self,
        walk: Walk,
        rules: Mapping[str, Rule],
        removed: np.ndarray,
        gates: Callable[[np.ndarray], Any] | None = None,
        gated: np.ndarray | None = None,
        rows: Callable[[Frame, int | Constant, np.ndarray], int] | None = None,
        names: Callable[[np.ndarray], list[str]] | None = None,
    ) -> None:
        self.walk, self.rules, self.removed = walk, rules, removed
        self.gates, self.gated, self.rows, self.names = gates, gated, rows, names

    def keeps(self, labels: np.ndarray) -> np.ndarray | None:
        """Which slices of an axis are kept; None if all are."""
        gone = self.removed[self.walk.classes.find(labels)]
        return ~gone if gone.any() else None

    def kept(self, value: Value) -> list[np.ndarray | None]:
        """The same for every axis."""
        return [self.keeps(labels) for labels in value.labels]

    def sizes(self, frame: Frame, equation: Equation, result: int = 0) -> tuple[int, ...]:
        """The shape of a result."""
        value = frame.values[equation.results[result]]
        keeps = zip(value.labels, self.kept(value), strict=True)
        return tuple(len(l) if k is None else int(k.sum()) for l, k in keeps)

    def touches(self, values: Sequence[Value]) -> bool:
        """True if any axis of any value is shorter."""
        return any(self.keeps(labels) is not None for value in values for labels in value.labels)

    def run(self, frame: Frame, arguments: Sequence[Any]) -> list[Any]:
        """The outputs of a program on (shorter) arguments."""
        values: list[Any] = [None] * len(frame.program.shapes)
        for variable, argument in zip(frame.program.arguments, arguments, strict=True):
            values[variable] = argument
        for index, equation in enumerate(frame.program.equations):
            operands = [self._operand(values, operand) for operand in equation.operands]
            frame.index = index
            results = self._evaluate(frame, index, equation, operands)
            for variable, result in zip(equation.results, results, strict=True):
                values[variable] = result
        return [self._operand(values, output) for output in frame.program.outputs]

    def _operand(self, values: list[Any], operand: int | Constant) -> Any:
        return equations.read(values, operand)

    def _evaluate(
        self, frame: Frame, index: int, equation: Equation, operands: list[Any]
    ) -> list[Any]:
        holds = [frame.value(operand) for operand in equation.operands]
        results = [frame.values[variable] for variable in equation.results]
        if index in frame.inner and (
            self.touches([*holds, *results]) or self.gated_inside(frame).size
        ):
            return self.rules[equation.name](self, frame, equation, operands)
        found = self._gated_axes(equation, holds)
        operands = self.times_gates(frame, equation, operands, found)
        if not self.touches([*holds, *results]):
            return equations.apply(equation, operands)
        short = self.rules.get(equation.name)
        if short is not None:
            return short(self, frame, equation, operands)
        return equations.apply(equation, operands)

    def gated_inside(self, frame: Frame) -> np.ndarray:
        """The classes of labels with a gate anywhere inside the equation at `frame.index`."""
        roots = [np.zeros(0, np.int64)]
        inside = [frame.inner[frame.index]] if self.gated is not None else []
        while inside:
            for called in inside.pop():
                for index, equation in enumerate(called.program.equations):
                    holds = [called.value(operand) for operand in equation.operands]
                    for operand, axis in self._gated_axes(equation, holds):
                        roots.append(self.walk.classes.find(holds[operand].labels[axis]))
                    if index in called.inner:
                        inside.append(called.inner[index])
        return np.unique(np.concatenate(roots))

    def _gated_axes(self, equation: Equation, holds: Sequence[Value]) -> list[tuple[int, int]]:
        """(operand, axis) for every axis that ends in this equation and carries gates."""
        found: list[tuple[int, int]] = []
        if self.gated is None:
            return found
        pairs: list[tuple[int, ...]] = []
        if equation.name == "dot_general":
            pairs = list(zip(*equation.params["dimension_numbers"][0], strict=True))
        elif equation.name == "conv_general_dilated":
            if equation.params["feature_group_count"] == 1:
                numbers = equation.params["dimension_numbers"]
                pairs = [(numbers.lhs_spec[1], numbers.rhs_spec[1])]
        elif equation.name in _REDUCTIONS:
            pairs = [(axis,) for axis in equation.params["axes"]]
        for axes in pairs:
            operand = 1 if len(axes) > 1 and holds[1].varies and not holds[0].varies else 0
            labels = holds[operand].labels[axes[operand]]
            if self.gated[self.walk.classes.find(labels)].any():
                found.append((operand, axes[operand]))
        return found

    def times_gates(
        self,
        frame: Frame,
        equation: Equation,
        operands: list[Any],
        found: Sequence[tuple[int, int]],
        *,
        constant: bool = False,
    ) -> list[Any]:
        """The operands, multiplied by the gates along the axes (operand, axis) that were found.

        What is multiplied over the axis is moved towards 1 instead: a gate of 0 leaves the others.

        Args:
          frame, equation, operands: what is evaluated.
          found: the axes.
          constant: the gates have no derivative here.

        Raises:
          ValueError: integers or truth values, which a gate between 0 and 1 cannot multiply.
        """
        if not found or self.gates is None:
            return operands
        operands = list(operands)
        for operand, axis in found:
            x = operands[operand]
            roots = self.walk.classes.find(frame.value(equation.operands[operand]).labels[axis])
            if not jnp.issubdtype(jnp.result_type(x), jnp.inexact):
                raise ValueError(
                    f"The units of {self.names(roots) if self.names else 'some groups'} are read "
                    f"as {jnp.result_type(x)} at {equations.line_of(equation)}, which no gate can "
                    "multiply. Give no gates to these groups."
                )
            gates, along = self.gates(roots), [axis]
            if constant:
                gates = jax.lax.stop_gradient(gates)
            if gates.ndim == 2:
                assert self.rows is not None, "gates of examples come with their axis"
                along = [self.rows(frame, equation.operands[operand], roots), axis]
                gates = gates if along[0] < axis else gates.T
            shape = [jnp.shape(x)[a] if a in along else 1 for a in range(jnp.ndim(x))]
            gates = gates.astype(x.dtype).reshape(shape)
            operands[operand] = x * gates
            if equation.name == "reduce_prod":
                operands[operand] += 1 - gates
        return operands

    def shorten(self, array: Any, keeps: Sequence[np.ndarray | None]) -> Any:
        """A whole array without the slices that are removed."""
        for axis, keep in enumerate(keeps):
            if keep is not None:
                array = take(array, np.flatnonzero(keep), axis)
        return array

    def lengthen(self, array: Any, keeps: Sequence[np.ndarray | None]) -> Any:
        """A shorter array with zeros where slices were removed."""
        for axis, keep in enumerate(keeps):
            if keep is not None:
                shape = list(jnp.shape(array))
                shape[axis] = len(keep)
                where = (slice(None),) * axis + (np.flatnonzero(keep),)
                array = jnp.zeros(shape, array.dtype).at[where].set(array)
        return array


def take(array: Any, where: np.ndarray, axis: int) -> Any:
    """Entries of an axis: a slice if they are evenly spaced, a lookup otherwise."""
    steps = np.unique(np.diff(where))
    if len(where) == 1 or (len(steps) == 1 and steps[0] > 0):
        step = int(steps[0]) if len(steps) else 1
        return jax.lax.slice_in_dim(array, int(where[0]), int(where[-1]) + 1, step, axis)
    return jnp.take(array, where, axis=axis, unique_indices=True, mode="clip")
