"""A model read once: the labels of its parameters' axes, and everything met on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune import trees
from jaxprune.jaxpr import equations, label_calls, label_lookups, label_moves, label_rules
from jaxprune.jaxpr.labels import Emits, Frame, Place, Value, Walk
from jaxprune.types import PyTree

RULES = {**label_rules.RULES, **label_moves.RULES, **label_lookups.RULES, **label_calls.RULES}


class Reading(NamedTuple):
    """Labels of a model.

    Attributes:
      walk: classes, events, products.
      frame: the program and the values of its variables.
      labels: per leaf of the variables, per axis.
      outputs: the pytree of the outputs' shapes.
    """

    walk: Walk
    frame: Frame
    labels: tuple[tuple[np.ndarray, ...], ...]
    outputs: Any


def abstract(tree: PyTree) -> PyTree:
    """Shapes and dtypes instead of arrays."""
    return jax.tree.map(
        lambda x: (
            x
            if isinstance(x, jax.ShapeDtypeStruct)
            else jax.ShapeDtypeStruct(np.shape(x), _jax_dtype(x))
        ),
        tree,
    )


def _jax_dtype(x: Any) -> Any:
    """What JAX makes of it: int64 of NumPy is int32, unless 64 bits are enabled."""
    kind = trees.dtype_of(x)
    extended = jax.dtypes.issubdtype(kind, jax.dtypes.extended)  # PRNG keys
    return kind if extended else jax.dtypes.canonicalize_dtype(kind)


def read(
    apply: Callable[..., Any],
    variables: PyTree,
    inputs: Sequence[PyTree],
    *,
    inexact: str = "pin",
    choices: dict[Place, int] | None = None,
    has_aux: bool = False,
) -> Reading:
    """Read a model; of the ways to split an axis into units, the one that leaves most removable.

    Args:
      apply: `apply(variables, *inputs) -> outputs`.
      variables, inputs: pytrees of arrays or of shapes.
      inexact: "pin" what could not be removed exactly, or "allow" it.
      choices: the ways to split, from an earlier reading (`walk.choices`).
      has_aux: `apply` returns (outputs, aux); what is in aux limits no removal.
    """
    program, outputs = equations.trace(apply, abstract(variables), *abstract(tuple(inputs)))
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(variables)]
    count = len(jax.tree.leaves(outputs[0])) if has_aux else None
    again = lambda ways: read_program(program, shapes, inexact, ways, outputs=count)._replace(
        outputs=outputs
    )
    if choices is not None:
        return again(choices)
    best = again({})
    ways: dict[Place, int] = {}
    for _ in range(3):
        pinned = best.walk.classes.pinned
        lost = {place: parts for place, parts, rows in best.walk.splits if pinned(rows).all()}
        tries = {
            place: ways.get(place, 0) + 1 for place in lost if ways.get(place, 0) + 1 < lost[place]
        }
        if not tries:
            break
        ways = {**ways, **tries}
        other = again(ways)
        if _units(other) >= _units(best):
            best = other
    return best


def _units(reading: Reading) -> int:
    """How many units could be removed."""
    labels = [axis for leaf in reading.labels for axis in leaf]
    every = np.concatenate([*labels, np.zeros(1, np.int64)])
    roots = reading.walk.classes.find(every)
    return len(np.unique(roots[~reading.walk.classes.pinned(every)]))


def read_program(
    program: equations.Program,
    shapes: Sequence[tuple[int, ...]],
    inexact: str = "pin",
    choices: dict[Place, int] | None = None,
    facts: Sequence[tuple[Emits, ...]] | None = None,
    *,
    outputs: int | None = None,
) -> Reading:
    """Labels of a program whose first arguments are parameters.

    Args:
      program: the traced model.
      shapes: of the parameters; the remaining arguments are inputs.
      inexact, choices: see `read`.
      facts: what the slices of every parameter hold, per axis; by default zeros, as if removed.
      outputs: how many of the program's outputs are the model's, the first ones; by default all.
    """
    walk = Walk(RULES, choices, inexact)
    arguments = []
    for number, shape in enumerate(shapes):
        labels = tuple(walk.fresh(n, weight=True) for n in shape)
        emits = tuple(np.zeros(n) for n in shape) if facts is None else facts[number]
        arguments.append(Value(labels, emits))
    for variable in program.arguments[len(shapes) :]:
        shape = getattr(program.shapes[variable], "shape", ())
        arguments.append(walk.data(shape, varies=True))
    frame = walk.enter(program, arguments)
    frame.parameters = len(shapes)
    for value in frame.outputs[:outputs]:
        walk.pin(value, "an output of the model")
    for variable, value in zip(program.arguments, arguments[: len(shapes)], strict=False):
        if not frame.consumers(variable):
            walk.pin(value, "not used by the model")
    leaves = tuple(value.labels for value in arguments[: len(shapes)])
    return Reading(walk, frame, leaves, None)
