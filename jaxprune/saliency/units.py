"""Scores of whole units: channels, heads, neurons, whatever a `Coupling` says lives together.

A score is `{group: [units]}`, larger = more important. Unless said otherwise `params` is the tree
that was coupled, and `batch = (inputs, targets)`. `inputs` is what `apply(params, inputs)` takes;
of a model coupled with several, `couple(apply, variables, a, b)`, it is the tuple `(a, b)`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import objective, trees
from jaxprune.coupling.groups import REDUCTIONS, Coupling, Member
from jaxprune.coupling.models import gated_apply, ones, source_of
from jaxprune.jaxpr.examples import independent_examples
from jaxprune.saliency.measured import from_means, without_data
from jaxprune.saliency.weights import magnitude
from jaxprune.types import (
    Apply,
    Batch,
    Loss,
    Params,
    Predicate,
    PyTree,
    Saliency,
    ScoreFunction,
    Scores,
    Stats,
)

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
    if isinstance(how, str) and how not in REDUCTIONS:
        raise ValueError(f"Unknown reduction {how!r}. Known: {list(REDUCTIONS)}, or a function.")
    reduced = lambda scores: coupling.reduce(scores, how, prunable=prunable)
    if not isinstance(saliency, Saliency):
        return lambda params, batch=None: reduced(saliency(params, batch))

    def measure(params: Params, batch: Batch) -> Stats:
        coupling.check(params)
        return saliency.measure(params, batch)

    return Saliency(measure, lambda params, stats: reduced(saliency.score(params, stats)))


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
      ValueError: no units, an unknown `how`; when called, groups without a scale, by name.

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
        fill = {n: jnp.full(coupling.groups[n].units, missing, jnp.float32) for n in without}
        return {name: {**found, **fill}[name] for name in coupling.groups}

    check_units(coupling)
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


def on_gates(
    coupling: Coupling, loss: Loss, make: Callable[[Apply, Loss], Saliency]
) -> Saliency:
    """A saliency of the gates on all units: every one that weights have, for units.

    A gate of 1 is the model and a gate of 0 the model without the unit (see `jp.coupling.gated`),
    so what a saliency says about removing the gate `1` is what it says about removing the unit.
    Places that share a unit share its gate: their gradients add before anything is squared.

    Args:
      coupling: from `couple`.
      loss: `(outputs, targets) -> [N]`.
      make: `(apply, loss) -> Saliency`, for `apply(gates, inputs)`. It runs inside jit.

    Returns:
      A `Saliency` of `params`, whose stats are those of the gates. Derivatives are taken in the
      dtype that the model computes in.

    Raises:
      ValueError: no units, or a loaded coupling without a model; when called, a tree that was not
        coupled, or inputs that are no tuple where several were coupled.
      TypeError: when called, `make` returned no `Saliency`.

    Example:
      >>> from jaxprune.coupling import couple
      >>> from jaxprune.saliency import taylor
      >>> w = [jnp.array([[1.0, 2.0]]), jnp.array([[3.0], [0.5]])]
      >>> coupling = couple(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], w, jnp.ones((1, 1)))
      >>> squared = lambda y, t: ((y - t) ** 2)[:, 0]
      >>> on_gates(coupling, squared, taylor)(w, (jnp.ones((1, 1)), jnp.zeros((1, 1))))
      {'0': Array([576.,  64.], dtype=float32)}
    """
    model = gated_model(coupling)

    def made(params: Params) -> Saliency:
        saliency: Any = make(model(params), loss)
        if not isinstance(saliency, Saliency):
            raise TypeError(
                "`make(apply, loss)` returns a `Saliency`, such as `jp.saliency.fisher(...)`; got "
                f"{type(saliency).__name__}."
            )
        return saliency

    def measure(params: Params, batch: Batch) -> Stats:
        return made(params).measure(open_gates(coupling, params), batch)

    def score(params: Params, stats: Stats) -> Scores:
        return made(params).score(open_gates(coupling, params), stats)

    return Saliency(jax.jit(measure), jax.jit(score))


def unit_taylor(coupling: Coupling, loss: Loss) -> Saliency:
    """First-order Taylor importance of units: `s = |d loss / d gate|`, of the mean loss.

    The derivative is `sum a dloss/da` over all places where the unit's activations a are read.
    Costs less than a gradient of the batch: no weight's gradient is formed.

    Args:
      coupling: from `couple`.
      loss: `(outputs, targets) -> [N]`.

    Raises:
      ValueError: see `on_gates`.

    References:
      Mozer and Smolensky 1989, Skeletonization; Molchanov et al. 2019, Importance Estimation for
      Neural Network Pruning, on gates (they square it, which ranks alike).

    Example:
      >>> from jaxprune.coupling import couple
      >>> w = [jnp.array([[1.0, 2.0]]), jnp.array([[3.0], [0.5]])]
      >>> coupling = couple(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], w, jnp.ones((1, 1)))
      >>> scores = unit_taylor(coupling, lambda y, t: ((y - t) ** 2)[:, 0])
      >>> scores(w, (jnp.ones((1, 1)), jnp.zeros((1, 1))))
      {'0': Array([24.,  8.], dtype=float32)}
    """
    model = gated_model(coupling)

    @jax.jit
    def means(params: Params, batch: Batch) -> PyTree:
        mean_loss = objective.mean_loss(model(params), loss)
        with jax.default_matmul_precision("highest"):
            return objective.gradient(mean_loss, open_gates(coupling, params), batch)

    return from_means(means, lambda params, gradient: jax.tree.map(jnp.abs, gradient))


def unit_fisher(coupling: Coupling, loss: Loss) -> Saliency:
    """Fisher pruning: `s = mean_n (d loss_n / d gate)^2 / 2`, gradients of single examples.

    One backward pass: of each example only its gradients in the gates are kept, [N, units]. Where
    examples depend on each other (training-mode BatchNorm) it is one backward pass an example.

    Args:
      coupling: from `couple`.
      loss: `(outputs, targets) -> [N]`.

    Raises:
      ValueError: see `on_gates`.

    References:
      Theis et al. 2018, Faster gaze prediction with dense networks and Fisher pruning, equation
      10; Crowley et al. 2018, Pruning neural networks: is it time to nip it in the bud?

    Example:
      >>> from jaxprune.coupling import couple
      >>> w = [jnp.array([[1.0, 2.0]]), jnp.array([[3.0], [0.5]])]
      >>> coupling = couple(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], w, jnp.ones((1, 1)))
      >>> scores = unit_fisher(coupling, lambda y, t: ((y - t) ** 2)[:, 0])
      >>> scores(w, (jnp.ones((1, 1)), jnp.zeros((1, 1))))
      {'0': Array([288.,  32.], dtype=float32)}
    """
    model, whole = gated_model(coupling), one_input(coupling)

    @jax.jit
    def means(params: Params, batch: Batch) -> PyTree:
        losses = objective.example_losses(model(params), loss)
        gates = open_gates(coupling, params)
        inputs, _ = objective.split_batch(batch)
        with jax.default_matmul_precision("highest"):
            if independent_examples(whole(source_of(coupling).apply), params, inputs):
                single = lambda gates, one: losses(gates, jax.tree.map(lambda x: x[None], one))[0]
                rows = jax.vmap(jax.grad(single), (None, 0))(gates, tuple(batch))
            else:
                values, pull = jax.vjp(lambda gates: losses(gates, batch), gates)
                rows = jax.lax.map(lambda one: pull(one)[0], jnp.eye(len(values), dtype=values.dtype))
        return jax.tree.map(lambda g: jnp.mean(jnp.square(g), axis=0) / 2, rows)

    return from_means(means, lambda params, halves: halves)


def per_cost(
    scores: Any, coupling: Coupling, what: str | Mapping[str, Any] = "parameters"
) -> Any:
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
