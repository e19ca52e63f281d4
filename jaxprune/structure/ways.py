"""Where the units of a group come from and who reads them: ways in, ways out.

A unit ends where it is contracted. If the other operand of that product is a parameter, as it
stands or moved (reshaped, transposed, sliced, cast), that leaf is a way OUT on the axis that is
contracted. Every other slice of a unit is a way IN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.coupling.groups import Coupling, Group, Member
from jaxprune.coupling.models import source_of
from jaxprune.jaxpr import equations
from jaxprune.jaxpr.equations import Equation
from jaxprune.jaxpr.labels import Event, Frame
from jaxprune.jaxpr.reading import Reading, read
from jaxprune.jaxpr.taps import MOVES
from jaxprune.jaxpr.taps import SAME_VALUE as PASSES
from jaxprune.types import PyTree


class Use(NamedTuple):
    """A place where a leaf is an operand, after moves that change none of its entries.

    Attributes:
      leaf: number of the leaf.
      at, operand: the equation (-1: an output of the model), and which operand of it.
      moves: the equations on the way.
      once: False if an entry of the leaf occurs more than once (it was broadcast).
    """

    leaf: int
    at: int
    operand: int
    moves: tuple[Equation, ...] = ()
    once: bool = True

    def moved(self, leaf: Any) -> Any:
        """The leaf as the equation sees it, in the leaf's own dtype."""
        for move in self.moves:
            if move.name not in PASSES:
                [leaf] = equations.apply(move, [leaf])
        return leaf

    def back(self, operand: Any, shape: tuple[int, ...]) -> Any:
        """An array of the operand's shape, moved back to the leaf's; 0 where nothing was read."""
        like = jax.ShapeDtypeStruct(shape, operand.dtype)
        return jax.linear_transpose(self.moved, like)(operand)[0]


class Wiring(NamedTuple):
    """A model with the uses of its leaves.

    Attributes:
      coupling: what was coupled.
      reading: its labels, for the inputs at hand.
      units: the unit of every class of labels, 0 = never removed.
      uses: by number of the leaf.
    """

    coupling: Coupling
    reading: Reading
    units: np.ndarray
    uses: dict[int, list[Use]]

    @property
    def frame(self) -> Frame:
        """The whole model."""
        return self.reading.frame

    def equation(self, at: int) -> Equation:
        """An equation of the model."""
        return self.frame.program.equations[at]

    def ids(self, labels: np.ndarray) -> np.ndarray:
        """The units on an axis, as the coupling numbers them."""
        return self.units[self.reading.walk.classes.find(labels)]

    def places(self, group: Group, labels: np.ndarray) -> np.ndarray:
        """Where the units of a group sit on an axis: int [units, n], n = 0 if they do not."""
        return places(group, self.ids(labels))

    def events(self, group: Group) -> list[Event]:
        """The places where units of a group end."""
        every = self.reading.walk.events
        return [event for event in every if np.isin(self.ids(event.labels), group.ids).any()]


def places(group: Group, ids: np.ndarray) -> np.ndarray:
    """Where the units of a group are among `ids`: int [units, n].

    Raises:
      ValueError: some units are there more often than others.
    """
    where = np.flatnonzero(np.isin(ids, group.ids))
    where = where[np.argsort(ids[where], kind="stable")]
    if (np.bincount(ids[where], minlength=int(group.ids.max()) + 1)[group.ids] != len(where)
            // group.units).any():  # fmt: skip
        raise ValueError(
            f"Units of the group {group.name!r} are on one axis a different number of times each. "
            "Leave that group out."
        )
    return where.reshape(group.units, -1)


class Ways(NamedTuple):
    """How units get in and out.

    Attributes:
      ins: slices that make the units: kernels' columns, biases, norms and their statistics.
      outs: slices that read them: rows of the next kernels. A leaf whose two axes are both
        the group's is in both.
      why: why the ways out cannot all be identified; empty if they can.
    """

    ins: tuple[Member, ...]
    outs: tuple[Member, ...]
    why: str = ""


def ways_in_and_out(coupling: Coupling) -> dict[str, Ways]:
    """For every group, which slices of its units make them and which read them.

    Args:
      coupling: from `couple`.

    Returns:
      `{group: Ways}`; `why` is not empty where a unit ends in something else than a product with
      a parameter (a sum, a product of two activations, a loop), or where the parameter is tied.

    Raises:
      ValueError: a coupling without a model.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune.coupling import couple
      >>> apply = lambda w, x: jax.nn.relu(x @ w["a"] + w["b"]) @ w["c"].T
      >>> w = {"a": jnp.ones((3, 4)), "b": jnp.ones(4), "c": jnp.ones((2, 4))}
      >>> ways = ways_in_and_out(couple(apply, w, jnp.ones((1, 3))))["a"]
      >>> [(m.leaf, m.axis) for m in ways.ins], [(m.leaf, m.axis) for m in ways.outs]
      ([('a', 1), ('b', 0)], [('c', 1)])
    """
    wired = wiring(coupling)
    return {name: ways_of(wired, group) for name, group in coupling.groups.items()}


def wiring(coupling: Coupling, inputs: Sequence[PyTree] | None = None) -> Wiring:
    """The model read once more, for inputs of these shapes (default: those it was coupled with).

    Raises:
      ValueError: a coupling without a model, or inputs for which it couples other slices.
    """
    source = source_of(coupling)
    with jax.default_matmul_precision("highest"):
        reading = read(
            source.apply,
            source.variables,
            source.inputs if inputs is None else tuple(inputs),
            inexact=source.inexact,
            choices=source.choices,
        )
    return Wiring(coupling, reading, coupling.units_of(reading), _uses(reading.frame))


def _uses(frame: Frame) -> dict[int, list[Use]]:
    """Where every leaf is used in the model's own equations; a loop that it enters is one use."""
    program = frame.program
    moved = {v: Use(leaf, -1, 0) for leaf, v in enumerate(program.arguments[: frame.parameters])}
    found: dict[int, list[Use]] = {use.leaf: [] for use in moved.values()}
    for at, equation in enumerate(program.equations):
        for operand, variable in enumerate(equation.operands):
            if not isinstance(variable, int) or variable not in moved:
                continue
            use = moved[variable]
            if equation.name in (*MOVES, *PASSES) and len(equation.operands) == 1:
                before, after = program.shapes[variable], program.shapes[equation.results[0]]
                once = use.once and math.prod(after.shape) <= math.prod(before.shape)
                moves = (*use.moves, equation)
                moved[equation.results[0]] = use._replace(moves=moves, once=once)
            else:
                found[use.leaf].append(use._replace(at=at, operand=operand))
    for variable in program.outputs:
        if isinstance(variable, int) and variable in moved:
            found[moved[variable].leaf].append(moved[variable])
    return found


def ways_of(wired: Wiring, group: Group) -> Ways:
    """The ways of one group."""
    outs: dict[tuple[str, int], Member] = {}
    reads: dict[int, set[tuple[int, int]]] = {}
    why = []
    for event in wired.events(group):
        use = read_by(wired, event)
        if isinstance(use, str):
            why.append(use)
            continue
        operand = wired.equation(event.at).operands[1 - event.operand]
        weight = wired.frame.value(operand)
        axis = _axis(wired, use.leaf, weight.labels[_contracted_with(wired, event)])
        name = wired.coupling.names[use.leaf]
        member = next((m for m in group.members if (m.leaf, m.axis) == (name, axis)), None)
        if member is None:
            why.append(f"an axis of {name!r} was split on the way to {_line(wired, event.at)}")
            continue
        outs[name, member.axis] = member
        reads.setdefault(use.leaf, set()).add((use.at, use.operand))
    for leaf, known in reads.items():
        for use in wired.uses[leaf]:
            if (use.at, use.operand) not in known:
                name, line = wired.coupling.names[leaf], _line(wired, use.at)
                why.append(f"the leaf {name!r} reads its units, and is used for more at {line}")
    ins = tuple(m for m in group.members if (m.leaf, m.axis) not in outs)
    return Ways(ins, tuple(outs.values()), "; ".join(dict.fromkeys(why)))


def read_by(wired: Wiring, event: Event) -> Use | str:
    """The leaf that reads what ends in an event, or why there is none."""
    equation = event.frame.program.equations[event.at]
    line = equations.line_of(equation)
    if event.frame is not wired.frame:
        return f"its units are read inside a loop, a branch or a custom derivative, at {line}"
    if event.kind != "contraction":
        return f"'{equation.name}' at {line} takes its units without a weight"
    key = (event.at, 1 - event.operand)
    for uses in wired.uses.values():
        for use in uses:
            if (use.at, use.operand) == key:
                return use if use.once else f"a weight is broadcast on its way to {line}"
    return f"what its units are multiplied with at {line} is no parameter as it stands"


def _contracted_with(wired: Wiring, event: Event) -> int:
    """The axis of the other operand that an event's axis is contracted with."""
    equation = wired.equation(event.at)
    if equation.name == "dot_general":
        contracted = equation.params["dimension_numbers"][0]
        place = contracted[event.operand].index(event.axis)
        return int(contracted[1 - event.operand][place])
    numbers = equation.params["dimension_numbers"]
    return int((numbers.lhs_spec, numbers.rhs_spec)[1 - event.operand][1])


def _axis(wired: Wiring, leaf: int, labels: np.ndarray) -> int:
    """Which axis of a leaf the labels of its moved copy come from."""
    for axis, mine in enumerate(wired.reading.labels[leaf]):
        if np.isin(labels, mine).all():
            return axis
    return -1


def _line(wired: Wiring, at: int) -> str:
    return equations.line_of(wired.equation(at)) if at >= 0 else "the model's output"


def in_flow(wired: Wiring, names: Sequence[str]) -> list[str]:
    """Groups in the order in which they are read, the first layer's first."""
    at = {
        name: min((e.at for e in wired.events(wired.coupling.group(name))), default=0)
        for name in names
    }
    return sorted(names, key=lambda name: at[name])
