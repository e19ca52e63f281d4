"""Scores of whole units: channels, heads, neurons, whatever a `Coupling` says lives together.

A score is `{group: [units]}`, larger = more important; `params` is the tree that was coupled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.coupling.groups import Coupling, Member
from jaxprune.coupling.reducing import REDUCTIONS
from jaxprune.saliency.gates import check_units
from jaxprune.saliency.measured import without_data
from jaxprune.saliency.weights import magnitude
from jaxprune.types import Batch, Params, Predicate, Saliency, ScoreFunction, Stats

UnitScores = dict[str, jax.Array]
"""`{group: [units]}`."""


def on_units(
    coupling: Coupling,
    saliency: ScoreFunction,
    how: str | Callable[..., Any] = "sum",
    *,
    prunable: Predicate = trees.default_prunable,
) -> Any:
    """An elementwise saliency, reduced over all weights of each unit.

    Args:
      coupling: from `couple`.
      saliency: a `Saliency`, or a plain `(params, batch) -> scores`.
      how: "sum", "mean", "max", "norm", or a function, see `Coupling.reduce`.
      prunable: which leaves count; by default weights, not biases or statistics.

    Returns:
      A `Saliency`, or a plain function if it was given one.

    Raises:
      ValueError: no units, an unknown `how`; when called, a tree that was not coupled, or a group
        without any leaf that counts.

    Example:
      >>> from jaxprune.coupling import couple
      >>> w = [jnp.array([[1.0, -2.0]]), jnp.array([[3.0], [0.5]])]
      >>> coupling = couple(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], w, jnp.ones((1, 1)))
      >>> on_units(coupling, magnitude())(w)
      {'0': Array([4. , 2.5], dtype=float32)}
    """
    check_units(coupling)
    _check_reduction(how)
    reduced = lambda scores: coupling.reduce(scores, how, prunable=prunable)
    if not isinstance(saliency, Saliency):
        return lambda params, batch=None: reduced(saliency(params, batch))

    def measure(params: Params, batch: Batch) -> Stats:
        coupling.check(params)
        return saliency.measure(params, batch)

    return Saliency(measure, lambda params, stats: reduced(saliency.score(params, stats)))


def _check_reduction(how: Any) -> None:
    if not callable(how) and how not in REDUCTIONS:
        raise ValueError(f"Unknown reduction {how!r}. Known: {list(REDUCTIONS)}, or a function.")


def unit_magnitude(
    coupling: Coupling,
    order: int = 1,
    *,
    incoming: bool = False,
    prunable: Predicate = trees.default_prunable,
) -> Saliency:
    """The norm of each unit's weights: `s = sum |w|` (order 1) or `sqrt(sum w^2)` (order 2).

    Args:
      coupling: from `couple`.
      order: 1 or 2.
      incoming: only the filters that produce a unit: of each leaf of rank >= 2 its slices of the
        last axis; where a group has none of these (heads of a [width, heads, size] kernel), its
        slices of any axis but the first. All producers of a residual stream count.
      prunable: which leaves count; by default weights, not biases or statistics.

    Returns:
      A `Saliency`; it measures nothing, so its batch may be None.

    Raises:
      ValueError: no units, another order, a group that no leaf produces; when called, a tree that
        was not coupled, or a group without any leaf that counts.

    References:
      Li et al. 2017, Pruning Filters for Efficient ConvNets (order 1, incoming); He et al. 2018,
      Soft Filter Pruning (order 2, incoming).

    Example:
      >>> from jaxprune.coupling import couple
      >>> w = [jnp.array([[1.0, -2.0]]), jnp.array([[3.0], [0.5]])]
      >>> coupling = couple(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], w, jnp.ones((1, 1)))
      >>> unit_magnitude(coupling, incoming=True)(w)
      {'0': Array([1., 2.], dtype=float32)}
    """
    if order not in (1, 2):
        raise ValueError(f"The order of the norm is 1 or 2, got {order!r}.")
    if incoming:
        kept = {name: _producers(name, g.members, coupling) for name, g in coupling.groups.items()}
        coupling = _with_members(coupling, kept)
    return on_units(coupling, magnitude(), "sum" if order == 1 else "norm", prunable=prunable)


def _producers(name: str, members: tuple[Member, ...], coupling: Coupling) -> tuple[Member, ...]:
    ranks = dict(zip(coupling.names, map(len, coupling.shapes), strict=True))
    matrices = [m for m in members if ranks[m.leaf] >= 2]
    found = [m for m in matrices if m.axis == ranks[m.leaf] - 1]
    found = found or [m for m in matrices if m.axis > 0]
    if not found:
        raise ValueError(
            f"No leaf of the group {name!r} produces its units: "
            f"{[(m.leaf, m.axis) for m in members]} has no axis but the first of a leaf of rank "
            ">= 2. Leave `incoming` False."
        )
    return tuple(found)


def _with_members(coupling: Coupling, members: dict[str, tuple[Member, ...]]) -> Coupling:
    groups = {name: coupling.groups[name]._replace(members=m) for name, m in members.items()}
    return dataclasses.replace(coupling, groups=groups)


def _is_scale(name: str, leaf: Any) -> bool:
    return name.rsplit("/", 1)[-1] == "scale" and np.ndim(leaf) == 1


def batch_norm_scale(
    coupling: Coupling,
    *,
    scales: Predicate = _is_scale,
    how: str | Callable[..., Any] = "mean",
    missing: float | None = None,
) -> Saliency:
    """Network slimming: `s = |gamma|`, the scale of the normalisation that follows the unit.

    Args:
      coupling: from `couple`.
      scales: which leaves are such scales; by default those of rank 1 named `scale`.
      how: how several scales of a unit (those of a residual stream) become one.
      missing: the score of units of groups without a scale; by default that is an error.

    Returns:
      A `Saliency`; it measures nothing, so its batch may be None.

    Raises:
      ValueError: no units, an unknown `how`, `missing` not finite; when called, groups without a
        scale, by name.

    References:
      Liu et al. 2017, Learning Efficient Convolutional Networks through Network Slimming; the
      network is trained with an L1 penalty on the scales.

    Example:
      >>> from jaxprune.coupling import couple
      >>> w = {"in": jnp.ones((1, 2)), "scale": jnp.array([0.5, -2.0]), "out": jnp.ones((2, 1))}
      >>> apply = lambda w, x: jax.nn.relu(x @ w["in"] * w["scale"]) @ w["out"]
      >>> batch_norm_scale(couple(apply, w, jnp.ones((1, 1))))(w)
      {'in': Array([0.5, 2. ], dtype=float32)}
    """

    def score(params: Params) -> UnitScores:
        coupling.check(params)
        leaves = dict(trees.named_leaves(params))
        members = {
            name: tuple(m for m in group.members if scales(m.leaf, leaves[m.leaf]))
            for name, group in coupling.groups.items()
        }
        without = [name for name, found in members.items() if not found]
        if without and missing is None:
            raise ValueError(
                f"No normalisation scales the units of {without}. Say which leaves are scales with "
                "`scales=lambda name, leaf: ...`, or give those units a score with `missing=`."
            )
        some = _with_members(coupling, {name: found for name, found in members.items() if found})
        found = on_units(some, magnitude(), how, prunable=scales)(params) if some.groups else {}
        fill = {n: jnp.full(coupling.groups[n].units, missing or 0, jnp.float32) for n in without}
        return {name: {**found, **fill}[name] for name in coupling.groups}

    check_units(coupling)
    _check_reduction(how)
    if missing is not None and not np.isfinite(missing):
        raise ValueError(f"`missing` is a finite score, got {missing!r}: pruners refuse others.")
    return without_data(score)


def random_units(coupling: Coupling, key: jax.Array) -> Saliency:
    """Uniform random unit scores in [0, 1): the baseline every method has to beat.

    Args:
      coupling: from `couple`.
      key: a PRNG key; the same key gives the same scores.

    Raises:
      ValueError: no units.

    Example:
      >>> from jaxprune.coupling import couple
      >>> w = [jnp.ones((1, 2)), jnp.ones((2, 1))]
      >>> coupling = couple(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], w, jnp.ones((1, 1)))
      >>> random_units(coupling, jax.random.key(0))(w)["0"].shape
      (2,)
    """
    check_units(coupling)
    keys = lambda: jax.random.split(key, len(coupling.groups))
    return without_data(
        lambda params: {
            name: jax.random.uniform(k, (group.units,))
            for k, (name, group) in zip(keys(), coupling.groups.items(), strict=True)
        }
    )


def per_cost(scores: Any, coupling: Coupling, what: str | Mapping[str, Any] = "parameters") -> Any:
    """Importance per cost: unit scores divided by what removing one unit, and no other, saves.

    Args:
      scores: `{group: [units]}`, or a `Saliency` or plain function that gives such.
      coupling: from `couple`.
      what: "parameters", "bytes", "flops", "activations" (see `Coupling.unit_costs`), or
        `{group: number or [units]}`, such as measured milliseconds.

    Returns:
      What it was given: scores, a `Saliency`, a function.

    Raises:
      ValueError: an unknown kind of cost, a group without one or of another size, a cost that is
        not positive; scores of other groups.
      TypeError: scores of another kind.

    Example:
      >>> from jaxprune.coupling import couple
      >>> w = [jnp.ones((3, 2)), jnp.ones((2, 1))]
      >>> coupling = couple(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], w, jnp.ones((1, 3)))
      >>> per_cost({"0": jnp.array([1.0, 2.0])}, coupling)
      {'0': Array([0.25, 0.5 ], dtype=float32)}
    """
    costs = _costs(coupling, what)

    def divided(found: Any) -> UnitScores:
        if not isinstance(found, Mapping) or set(found) != set(costs):
            got = sorted(found) if isinstance(found, Mapping) else type(found).__name__
            raise ValueError(
                f"`per_cost` divides unit scores, a mapping with the groups {sorted(costs)}; got "
                f"{got}. Reduce elementwise scores with `on_units` first."
            )
        return {n: jnp.asarray(s) / costs[n].astype(trees.score_dtype(s)) for n, s in found.items()}

    if isinstance(scores, Saliency):
        return Saliency(scores.measure, lambda params, stats: divided(scores.score(params, stats)))
    if isinstance(scores, Mapping):
        return divided(scores)
    if not callable(scores):
        raise TypeError(f"Scores are a mapping, a Saliency or a function, got {type(scores)}.")
    return lambda params, batch=None: divided(scores(params, batch))


def _costs(coupling: Coupling, what: str | Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What one unit costs, `{group: [units]}`, checked."""
    check_units(coupling)
    if isinstance(what, Mapping):
        if set(what) != set(coupling.groups):
            raise ValueError(
                f"Costs are given for {sorted(what)}, the groups are {sorted(coupling.groups)}. "
                "Give every group a number, or one for each of its units."
            )
        found = {name: np.asarray(what[name], np.float64) for name in coupling.groups}
    else:
        found = coupling.unit_costs(what)
    for name, cost in found.items():
        units = coupling.groups[name].units
        if cost.shape not in ((), (units,)):
            raise ValueError(
                f"The costs of {name!r} have shape {cost.shape}, the group has {units} units."
            )
        if not (np.isfinite(cost) & (cost > 0)).all():
            raise ValueError(
                f"A unit of {name!r} costs {cost.min():g} {what if isinstance(what, str) else ''}"
                ": costs are positive and finite. Take another kind of cost, or average repeated "
                "measurements until they are."
            )
    return {name: np.broadcast_to(c, coupling.groups[name].units) for name, c in found.items()}
