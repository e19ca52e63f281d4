"""Abstract interpretation of a program: a label for every index of every axis of every value.

Labels of indices that must live or die together are united. With every axis goes what its slices
emit when they are removed (or, for a given mask, what they hold now): a constant, or NaN. The rules
of primitives are in the modules `label_*`; a primitive without one pins what it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.jaxpr import equations
from jaxprune.jaxpr.classes import FIXED, Classes
from jaxprune.jaxpr.equations import Constant, Equation, Program

Place = tuple[int, ...]  # of an equation: indices of the equations around it, then its own
Emits = np.ndarray | None  # float64 per index of an axis, NaN = not a constant; None = all NaN


class Value(NamedTuple):
    """What is known of one variable.

    Attributes:
      labels: an int array per axis.
      emits: per axis, the constant that each slice holds; None if no slice is known.
      whole: the number that every entry is, or NaN.
      varies: True if it depends on the model's inputs.
    """

    labels: tuple[np.ndarray, ...]
    emits: tuple[Emits, ...]
    whole: float = np.nan
    varies: bool = False


class Event(NamedTuple):
    """A place where slices stop being told apart: a contraction, a sum, a maximum.

    Attributes:
      kind: "contraction", "sum", "mean" or another primitive's name.
      labels: of the axis that ends there.
      exact: which of its slices can be left out there without changing the result.
      emits: what the slices of the operand that varies hold.
      frame, at, operand, axis: the equation, which operand varies, and its axis.
      reason: the number of the reason that pins what is not exact.
    """

    kind: str
    labels: np.ndarray
    exact: np.ndarray
    emits: Emits
    frame: Frame
    at: int
    operand: int
    axis: int
    reason: int


class Product(NamedTuple):
    """A matrix product or convolution: its cost is `flops` times the lengths of `axes`.

    Attributes:
      flops: per index of each of the axes.
      axes: labels of the axes whose lengths multiply the cost.
      outputs: labels of the axes of its result.
      itemsize: bytes of an entry of the result.
      repeats: how often a loop runs it.
    """

    flops: int
    axes: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]
    itemsize: int
    repeats: int


class Reason(NamedTuple):
    """Why a slice can never be removed: words, and the equation (None: not in the code)."""

    text: str
    equation: Equation | None = None

    def __str__(self) -> str:
        where = equations.line_of(self.equation) if self.equation else ""
        return f"{self.text} at {where}" if where else self.text


class Walk:
    """One reading of a model.

    Attributes:
      rules: of the primitives.
      classes: the labels.
      reasons: why slices are pinned, by number.
      events, products: see there.
      unknown: equations of primitives without a rule that touched what could be removed.
      choices: for reshapes that split an axis, which of its parts is the unit (default: the first).
      splits: the reshapes met that had to choose: place, number of parts, labels of the chosen.
    """

    def __init__(
        self,
        rules: Mapping[str, Rule],
        choices: dict[Place, int] | None = None,
        inexact: str = "pin",
    ) -> None:
        self.rules = rules
        self.classes = Classes()
        self.reasons: list[Reason] = []
        self.events: list[Event] = []
        self.products: list[Product] = []
        self.unknown: list[Equation] = []
        self.choices = choices or {}
        self.splits: list[tuple[Place, int, np.ndarray]] = []
        self.inexact = inexact
        self.repeats = 1
        self._fixed: dict[int, np.ndarray] = {}

    def fixed(self, n: int) -> np.ndarray:
        """Labels of an axis that keeps its length."""
        if n not in self._fixed:
            self._fixed[n] = np.full(n, FIXED)
        return self._fixed[n]

    def fresh(self, n: int, *, weight: bool = False) -> np.ndarray:
        """New labels for an axis; one of length 1 keeps its length."""
        return self.classes.fresh(n, weight=weight) if n > 1 else self.fixed(n)

    def data(self, shape: Sequence[int], *, whole: float = np.nan, varies: bool = False) -> Value:
        """A value none of whose slices can be removed."""
        emits = tuple(None if np.isnan(whole) else np.full(n, whole) for n in shape)
        return Value(tuple(self.fixed(n) for n in shape), emits, whole, varies)

    def reason(self, text: str, equation: Equation | None = None) -> int:
        """The number of a new reason."""
        self.reasons.append(Reason(text, equation))
        return len(self.reasons) - 1

    def pin(self, value: Value, text: str, equation: Equation | None = None) -> None:
        """Pin every slice of a value."""
        for labels in value.labels:
            if self.classes.live(labels):
                self.classes.pin(labels, self.reason(text, equation))

    def enter(
        self, program: Program, arguments: Sequence[Value], path: tuple[int, ...] = ()
    ) -> Frame:
        """Interpret a program; `path` says where in the model it is called."""
        frame = Frame(self, program, path)
        frame.interpret(arguments)
        return frame

    def rewind(self) -> Callable[[], None]:
        """A function that forgets the events and products from here on (a loop is read again)."""
        lists: tuple[list[Any], ...] = (self.events, self.products, self.unknown, self.splits)
        marks = [len(kept) for kept in lists]

        def forget() -> None:
            for kept, mark in zip(lists, marks, strict=True):
                del kept[mark:]

        return forget


class Frame:
    """A program with the values of its variables.

    Attributes:
      walk, program, path: what is read, and where in the model it is called.
      values: by variable.
      parameters: how many of the arguments are parameters of the model.
      inner: by the index of an equation that calls programs, their frames.
    """

    def __init__(self, walk: Walk, program: Program, path: tuple[int, ...] = ()) -> None:
        self.walk, self.program, self.path = walk, program, path
        self.values: list[Any] = [None] * len(program.shapes)
        self.inner: dict[int, list[Frame]] = {}
        self.index = 0
        self.parameters = 0
        self._defined: dict[int, int] = {
            v: i for i, equation in enumerate(program.equations) for v in equation.results
        }
        self._consumers: dict[int, list[int]] | None = None
        self._known: dict[int, Any] = {}

    def interpret(self, arguments: Sequence[Value]) -> None:
        """Give every variable its value."""
        for variable, value in zip(self.program.arguments, arguments, strict=True):
            self.values[variable] = value
        for index, equation in enumerate(self.program.equations):
            self.index = index
            operands = [self.value(operand) for operand in equation.operands]
            results = self.walk.rules.get(equation.name, unknown)(self, equation, operands)
            varies = any(operand.varies for operand in operands)
            for number, (variable, value) in enumerate(zip(equation.results, results, strict=True)):
                self._check(equation, number, value)
                self.values[variable] = value if value.varies else value._replace(varies=varies)

    def _check(self, equation: Equation, result: int, value: Value) -> None:
        """Raise unless a rule gave every index of a result a label."""
        found = tuple(map(len, value.labels))
        shape = tuple(getattr(self.program.shapes[equation.results[result]], "shape", ()))
        if found != shape:
            raise ValueError(
                f"The rule for '{equation.name}' at {equations.line_of(equation)} gives labels for "
                f"the shape {found}, the result has the shape {shape}: a defect of jaxprune. "
                "Please report it with that line."
            )

    def value(self, operand: int | Constant) -> Value:
        """The value of an operand."""
        if not isinstance(operand, Constant):
            return self.values[operand]
        array = operand.value
        number = np.nan
        if np.size(array) and not _is_key(array):
            plain = np.asarray(array)
            if plain.dtype.kind in "biuf" and (plain.ndim == 0 or (plain == plain.flat[0]).all()):
                number = float(plain.flat[0])
        return self.walk.data(np.shape(array), whole=number)

    @property
    def outputs(self) -> list[Value]:
        """The values of the program's outputs."""
        return [self.value(output) for output in self.program.outputs]

    def shape(self, equation: Equation, result: int = 0) -> tuple[int, ...]:
        """The shape of a result of an equation."""
        return self.program.shapes[equation.results[result]].shape

    def definition(self, variable: int) -> int:
        """The index of the equation that defines a variable."""
        return self._defined[variable]

    def dtypes(self, equation: Equation) -> list[Any]:
        """The dtypes of an equation's operands."""
        return [
            np.result_type(o.value) if isinstance(o, Constant) else self.program.shapes[o].dtype
            for o in equation.operands
        ]

    def consumers(self, variable: int) -> list[int]:
        """The equations that read a variable."""
        if self._consumers is None:
            self._consumers = {}
            for index, equation in enumerate(self.program.equations):
                for operand in equation.operands:
                    if not isinstance(operand, Constant):
                        self._consumers.setdefault(operand, []).append(index)
        return self._consumers.get(variable, [])

    def static(self, operand: int | Constant) -> Any:
        """An operand's value as a NumPy array if it depends on no argument, otherwise None."""
        if isinstance(operand, Constant):
            return _array(operand.value)
        if operand not in self._known:
            self._known[operand] = None
            index = self._defined.get(operand)
            equation = self.program.equations[index] if index is not None else None
            if equation and not any(equations.inner_jaxprs(equation.params)):
                operands = [self.static(o) for o in equation.operands]
                if all(o is not None and o.size < 1 << 20 for o in operands) and operands:
                    with jax.ensure_compile_time_eval():
                        results = equations.apply(equation, operands)
                    for variable, found in zip(equation.results, results, strict=True):
                        self._known[variable] = _array(found)
        return self._known[operand]

    def unite(self, a: np.ndarray, b: np.ndarray, text: str, equation: Equation) -> None:
        """Let a[i] and b[i] live or die together."""
        if a is not b:
            self.walk.classes.unite(a, b, self.walk.reason(text, equation))

    def pin(self, labels: np.ndarray, text: str, equation: Equation) -> None:
        """Pin the slices of an axis."""
        if self.walk.classes.live(labels):
            self.walk.classes.pin(labels, self.walk.reason(text, equation))

    def end(
        self,
        kind: str,
        operand: int,
        axis: int,
        values: Sequence[Value],
        exact: np.ndarray,
        text: str,
    ) -> None:
        """An axis ends here: remember it, and pin what could not be left out exactly."""
        labels = values[operand].labels[axis]
        if not self.walk.classes.live(labels):
            return
        equation = self.program.equations[self.index]
        reason = self.walk.reason(text, equation)
        emits = values[operand].emits[axis]
        self.walk.events.append(
            Event(kind, labels, exact, emits, self, self.index, operand, axis, reason)
        )
        if self.walk.inexact == "pin" and not exact.all():
            self.walk.classes.pin(labels[~exact], reason)


Rule = Callable[[Frame, Equation, Sequence[Value]], list[Value]]


def unknown(frame: Frame, equation: Equation, operands: Sequence[Value]) -> list[Value]:
    """No rule: nothing that it touches can be removed, and it is listed if that costs anything."""
    walk = frame.walk
    if any(walk.classes.has_weight(labels) for value in operands for labels in value.labels):
        walk.unknown.append(equation)
    for value in operands:
        walk.pin(value, f"no rule for the primitive '{equation.name}'", equation)
    return [walk.data(getattr(frame.program.shapes[v], "shape", ())) for v in equation.results]


def _is_key(array: Any) -> bool:
    return jax.dtypes.issubdtype(getattr(array, "dtype", np.float32), jax.dtypes.extended)


def _array(value: Any) -> Any:
    """A NumPy array; PRNG keys, which NumPy does not know, as they are."""
    return value if _is_key(value) else np.asarray(value)


def known(emits: Emits, n: int) -> np.ndarray:
    """What an axis emits, as an array."""
    return np.full(n, np.nan) if emits is None else emits


def zeros_of(emits: Emits, n: int) -> np.ndarray:
    """Which slices of an axis hold zeros."""
    return np.zeros(n, bool) if emits is None else emits == 0
