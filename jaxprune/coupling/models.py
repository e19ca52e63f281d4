"""The coupled model on other arrays: with units left out, or with a gate on every unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.coupling.finding import Source
from jaxprune.coupling.groups import Coupling, Kept
from jaxprune.jaxpr.reading import Reading, read
from jaxprune.jaxpr.replay import Replay
from jaxprune.jaxpr.replay_rules import RULES
from jaxprune.types import Apply, PyTree


def source_of(coupling: Coupling) -> Source:
    """The model that was coupled.

    Raises:
      ValueError: the coupling was loaded from a file, which holds no code.
    """
    if coupling.source is None:
        raise ValueError(
            "This coupling was loaded from a file and has no model. Give it one with "
            "`with_model(coupling, apply, variables, *inputs)`, or couple the model anew."
        )
    return coupling.source


class _Readings:
    """Readings of one model, one per shape of the inputs."""

    def __init__(self, coupling: Coupling) -> None:
        self.coupling, self.source = coupling, source_of(coupling)
        self._by_shape: dict[Any, tuple[Reading, np.ndarray]] = {}

    def of(self, inputs: tuple[PyTree, ...]) -> tuple[Reading, np.ndarray]:
        """The reading for inputs of these shapes, and the unit of every label's class."""
        leaves, structure = jax.tree.flatten(inputs)
        shapes = tuple((np.shape(x), jnp.result_type(x)) for x in leaves)
        key = (structure, shapes)
        if key not in self._by_shape:
            like = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
            source = self.source
            reading = read(
                source.apply,
                source.variables,
                jax.tree.unflatten(structure, like),
                inexact=source.inexact,
                choices=source.choices,
            )
            self._by_shape[key] = reading, self.coupling.units_of(reading)
        return self._by_shape[key]


def shrunk_apply(coupling: Coupling, kept: Kept) -> Apply:
    """The model on shrunk variables, whatever widths its code has written in it.

    For every new shape of the inputs the ORIGINAL code is traced with the dense shapes and the
    rewritten jaxpr is evaluated on the small arrays: numbers that the code derived from a width
    (a mean's divisor) stay the dense model's. It can be jitted and differentiated.

    Args:
      coupling: from `couple`.
      kept: the units that were kept, `{group: bool[units]}`.

    Returns:
      `apply(small, *inputs) -> outputs`.

    Raises:
      ValueError: a loaded coupling without a model; `kept` of another model; when called, a tree
        whose leaves have other shapes than the shrunk ones; the leaf is named.
    """
    readings = _Readings(coupling)
    flags = coupling.vector(kept)
    shapes = [tuple(int(np.count_nonzero(flags[ids])) for ids in axes) for axes in coupling.labels]

    def apply(small: PyTree, *inputs: PyTree) -> PyTree:
        leaves = jax.tree.leaves(small)
        found = [tuple(np.shape(leaf)) for leaf in leaves]
        if found != shapes:
            wrong = next(
                (n, f, s)
                for n, f, s in zip(coupling.names, found + [()] * len(shapes), shapes, strict=False)
                if f != s
            )
            raise ValueError(
                f"The leaf '{wrong[0]}' of the shrunk variables has shape {wrong[1]}, expected "
                f"{wrong[2]}. Pass what `shrink` returned for the same units."
            )
        reading, units = readings.of(inputs)
        replay = Replay(reading.walk, RULES, ~flags[units])
        outs = replay.run(reading.frame, [*leaves, *jax.tree.leaves(inputs)])
        return jax.tree.unflatten(jax.tree.structure(reading.outputs), outs)

    return apply


def gated(coupling: Coupling, variables: PyTree) -> Callable[..., Any]:
    """The model with a gate on every unit: what the unit contributes is multiplied by its gate.

    The gate sits where a unit is contracted (or summed) by whatever reads it, on every such
    place: gates of 1 are the model, a gate of 0 is the model without the unit. The gates are an
    ordinary pytree, so every saliency and curvature here takes it for its parameters.

    Args:
      coupling: from `couple`.
      variables: the parameters and statistics.

    Returns:
      `apply(gates, *inputs) -> outputs`, `gates = {group: [units]}` (`ones(coupling)` to start).
    """
    apply = gated_apply(coupling)
    return lambda gates, *inputs: apply(variables, gates, *inputs)


def gated_apply(coupling: Coupling) -> Callable[..., Any]:
    """`gated` for any variables: the model is read once for all of them.

    Args:
      coupling: from `couple`.

    Returns:
      `apply(variables, gates, *inputs) -> outputs`. A group without gates is left as it is.

    Raises:
      ValueError: a loaded coupling without a model; when called, variables that were not coupled,
        an unknown group, or another number of gates than it has units.
    """
    readings = _Readings(coupling)

    def apply(variables: PyTree, gates: Mapping[str, Any], *inputs: PyTree) -> PyTree:
        coupling.check(variables)
        for name, gate in gates.items():
            if np.shape(gate) != (coupling.group(name).units,):
                raise ValueError(
                    f"The gates of {name!r} have shape {np.shape(gate)}, the group has "
                    f"{coupling.group(name).units} units."
                )
        reading, units = readings.of(inputs)
        has = np.zeros(coupling.numbers, bool)
        for name in gates:
            has[coupling.group(name).ids] = True
        replay = Replay(
            reading.walk,
            RULES,
            np.zeros(len(reading.walk.classes), bool),
            lambda roots: _along(coupling, gates, units[roots]),
            has[units],
        )
        outs = replay.run(reading.frame, [*jax.tree.leaves(variables), *jax.tree.leaves(inputs)])
        return jax.tree.unflatten(jax.tree.structure(reading.outputs), outs)

    return apply


def _along(coupling: Coupling, gates: Mapping[str, Any], units: np.ndarray) -> Any:
    """The gate of every slice of an axis, 1 where there is none.

    Gates of other groups stay out of it, so that a reader of the jaxpr sees which depends on which.
    """
    places = np.zeros(coupling.numbers, np.int64)
    parts: list[Any] = [jnp.ones(1, jnp.result_type(float, *gates.values()))]
    count = 1
    for name, gate in gates.items():
        ids = coupling.groups[name].ids
        if np.array_equal(ids, units):
            return jnp.asarray(gate)
        if np.isin(ids, units).any():
            places[ids] = np.arange(count, count + len(ids))
            parts.append(gate)
            count += len(ids)
    where = places[units]
    if len(parts) == 2 and where.all():
        parts, where = parts[1:], where - 1
    whole = jnp.concatenate(parts) if len(parts) > 1 else jnp.asarray(parts[0])
    return whole.at[where].get(mode="promise_in_bounds", wrap_negative_indices=False)


def ones(coupling: Coupling, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    """Gates of 1 for every unit, `{group: [units]}`."""
    return {name: jnp.ones(group.units, dtype) for name, group in coupling.groups.items()}
