"""The coupled model on other arrays: with units left out, or with a gate on every unit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.coupling import batches
from jaxprune.coupling.finding import Source
from jaxprune.coupling.groups import Coupling, Kept
from jaxprune.jaxpr.reading import Reading, abstract, read
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
            "This coupling was loaded from a file, or is a part of one, and has no model. Give it "
            "one with `with_model(coupling, apply, variables, *inputs)`, or couple anew."
        )
    return coupling.source


def check_concrete(tree: PyTree, what: str) -> None:
    """Raise inside jit.

    Raises:
      TypeError: a leaf is traced, so that the shapes that it decides are not known.
    """
    if trees.is_traced(tree):
        raise TypeError(
            f"The shapes of a shrunk model depend on {what}, whose values are not known inside "
            "jit, vmap or grad. Shrink outside, and jit what runs on the result."
        )


class _Readings:
    """Readings of one model, one per shape of the inputs; `apply` in place of what was coupled."""

    def __init__(
        self, coupling: Coupling, apply: Callable[..., Any] | None = None, has_aux: bool = False
    ) -> None:
        self.coupling, self.source = coupling, source_of(coupling)
        self.apply, self.has_aux = apply or self.source.apply, has_aux
        self._by_shape: dict[Any, tuple[Reading, np.ndarray]] = {}

    def of(self, inputs: tuple[PyTree, ...]) -> tuple[Reading, np.ndarray]:
        """The reading for inputs of these shapes, and the unit of every label's class."""
        like, source = abstract(inputs), self.source
        leaves, structure = jax.tree.flatten(like)
        key = (structure, tuple((x.shape, x.dtype) for x in leaves))
        if key not in self._by_shape:
            own = self.apply is source.apply
            reading = read(
                self.apply,
                source.variables,
                like,
                inexact=source.inexact,
                choices=source.choices if own else None,
                has_aux=self.has_aux,
            )
            self._by_shape[key] = reading, self.coupling.units_of(reading)
        return self._by_shape[key]


def shrunk_apply(coupling: Coupling, kept: Kept) -> Apply:
    """The model on shrunk variables, whatever widths its code has written in it.

    For every new shape of the inputs the ORIGINAL code is traced with the dense shapes and the
    rewritten jaxpr is evaluated on the small arrays: numbers that the code derived from a width
    (a mean's divisor) stay the dense model's. It can be jitted and differentiated; `jax.checkpoint`
    inside the model is not kept, put it around the result.

    Args:
      coupling: from `couple`.
      kept: the units that were kept, `{group: bool[units]}`. After `shrink` by a mask these are
        `structure.dead_units(variables, mask, coupling).kept`: `coupling.kept(mask)` also keeps
        units that are pruned on one side only.

    Returns:
      `apply(small, *inputs) -> outputs`.

    Raises:
      ValueError: a loaded coupling without a model; `kept` of another model; when called, a tree
        whose leaves have other shapes than the shrunk ones; the leaf is named.
      TypeError: `kept` is traced.
    """
    readings = _Readings(coupling)
    check_concrete(kept, "the units kept")
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
                f"{wrong[2]}. Pass what `shrink` returned for the same units: after shrinking by a "
                "mask these are `structure.dead_units(variables, mask, coupling).kept`, which may "
                "be fewer than `coupling.kept(mask)`."
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


def gated_apply(
    coupling: Coupling, apply: Callable[..., Any] | None = None, *, has_aux: bool = False
) -> Callable[..., Any]:
    """`gated` for any variables: the model is read once for all of them.

    With gates of single examples, `{group: [N, units]}`, one backward pass gives every example's
    derivative in every gate besides the gradient of the parameters: what Fisher pruning needs, out
    of the train step itself (see `jp.remove_units`).

    Where units end inside a function with a custom derivative, gates have the derivative of the
    function as it is written, and everything else the author's rule, applied to the operands with
    their units times the gates: at gates of 1 the model's gradient, at gates of 0 and 1 that of the
    masked model. `jax.checkpoint` inside the model is not kept.

    Args:
      coupling: from `couple`.
      apply: in place of the model that was coupled another function of the same variables, such as
        the model in training, `apply(variables, *inputs) -> outputs`.
      has_aux: it returns `(outputs, aux)`, such as updated statistics.

    Returns:
      `apply(variables, gates, *inputs) -> outputs`. A group without gates is left as it is.

    Raises:
      ValueError: a loaded coupling without a model; when called, variables that were not coupled,
        an unknown group, or another number of gates than it has units; gates of examples on a
        group that is read where examples are not an axis of their own; gates on a group whose
        units are read as integers or truth values.

    Example:
      >>> from jaxprune.coupling import couple
      >>> w = [jnp.array([[1.0, 2.0]]), jnp.array([[3.0], [0.5]])]
      >>> coupling = couple(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], w, jnp.ones((1, 1)))
      >>> total = lambda gates, x: gated_apply(coupling)(w, gates, x).sum()
      >>> jax.grad(total)(ones(coupling, examples=2), jnp.array([[1.0], [2.0]]))
      {'0': Array([[3., 1.],
             [6., 2.]], dtype=float32)}
    """
    readings = _Readings(coupling, apply, has_aux)

    def run(variables: PyTree, gates: Mapping[str, Any], *inputs: PyTree) -> PyTree:
        coupling.check(variables)
        examples = _check_gates(coupling, gates)
        reading, units = readings.of(inputs)
        rows = None
        if examples is not None:
            twice = batches.twice(lambda x: readings.of(x)[0], inputs, examples)
            rows = batches.example_axes(reading, twice, examples, coupling, units)
        has = np.zeros(coupling.numbers, bool)
        for name in gates:
            has[coupling.group(name).ids] = True
        replay = Replay(
            reading.walk,
            RULES,
            np.zeros(len(reading.walk.classes), bool),
            lambda roots: _along(coupling, gates, units[roots]),
            has[units],
            rows,
            lambda roots: batches.groups_of(coupling, units[roots]),
        )
        outs = replay.run(reading.frame, [*jax.tree.leaves(variables), *jax.tree.leaves(inputs)])
        return jax.tree.unflatten(jax.tree.structure(reading.outputs), outs)

    return run


def _check_gates(coupling: Coupling, gates: Mapping[str, Any]) -> int | None:
    """How many examples the gates are of; None if all examples share them."""
    leading = {np.shape(gate)[:-1] for gate in gates.values()}
    for name, gate in gates.items():
        shape, units = np.shape(gate), coupling.group(name).units
        if shape[-1:] != (units,) or len(shape) > 2 or len(leading) > 1:
            raise ValueError(
                f"The gates of {name!r} have shape {shape}, the group has {units} units: give all "
                "groups one gate a unit, or all one for every unit of every example, [N, units]."
            )
    rows = next(iter(leading), ())
    return rows[0] if rows else None


def _along(coupling: Coupling, gates: Mapping[str, Any], units: np.ndarray) -> Any:
    """The gate of every slice of an axis, 1 where there is none.

    Gates of other groups stay out of it, so that a reader of the jaxpr sees which depends on which.
    """
    places = np.zeros(coupling.numbers, np.int64)
    rows = next((np.shape(gate)[:-1] for gate in gates.values()), ())
    parts: list[Any] = [jnp.ones((*rows, 1), jnp.result_type(float, *gates.values()))]
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
    whole = jnp.concatenate(parts, axis=-1) if len(parts) > 1 else jnp.asarray(parts[0])
    return whole.at[..., where].get(mode="promise_in_bounds", wrap_negative_indices=False)


def ones(
    coupling: Coupling,
    dtype: Any = jnp.float32,
    *,
    groups: Iterable[str] | None = None,
    examples: int | None = None,
) -> dict[str, jax.Array]:
    """Gates of 1, `{group: [units]}`.

    Args:
      coupling: from `couple`.
      dtype: of the gates.
      groups: names of those that get gates; by default all.
      examples: gates of single examples, `{group: [examples, units]}`.

    Raises:
      ValueError: an unknown group.
    """
    rows = () if examples is None else (examples,)
    names = coupling.groups if groups is None else groups
    return {name: jnp.ones((*rows, coupling.group(name).units), dtype) for name in names}
