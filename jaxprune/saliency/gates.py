"""Scores of units read off gates: every gate is 1, and a gate of 0 is the model without the unit.

`params` is the tree that was coupled, `batch = (inputs, targets)`. `inputs` is what
`apply(params, inputs)` takes; where several were coupled, `couple(apply, variables, a, b)`, it is
the tuple `(a, b)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import objective, trees
from jaxprune.coupling.groups import Coupling
from jaxprune.coupling.models import gated_apply, ones, source_of
from jaxprune.jaxpr.examples import independent_examples
from jaxprune.saliency.measured import from_means
from jaxprune.types import Apply, Batch, Loss, Params, PyTree, Saliency, Scores, Stats


def check_units(coupling: Any) -> None:
    """Raise unless there is a unit to score.

    Raises:
      ValueError: a coupling without units. TypeError: no coupling.
    """
    if not isinstance(coupling, Coupling):
        raise TypeError(
            f"Units are scored for a `Coupling`, `jp.couple(apply, params, inputs)`; got "
            f"{type(coupling).__name__}."
        )
    if not coupling.groups:
        raise ValueError(
            "The coupling has no removable units to score; `coupling.pinned` says why, by leaf."
        )


def several_inputs(coupling: Coupling) -> Callable[[PyTree], tuple[PyTree, ...]]:
    """From a batch's inputs to the inputs that were coupled: a tuple of them if several were.

    Raises:
      ValueError: no model; when called, no tuple of as many.
    """
    number = len(source_of(coupling).inputs)

    def several(inputs: PyTree) -> tuple[PyTree, ...]:
        if number == 1:
            return (inputs,)
        if not isinstance(inputs, tuple | list) or len(inputs) != number:
            got = len(inputs) if isinstance(inputs, tuple | list) else type(inputs).__name__
            raise ValueError(
                f"The model was coupled with {number} inputs, so the inputs of a batch are a tuple "
                f"of {number}; got {got}."
            )
        return tuple(inputs)

    return several


def gated_model(coupling: Coupling) -> Callable[[Params], Apply]:
    """`params -> apply(gates, inputs)`; the model is read once for all params."""
    check_units(coupling)
    apply, several = gated_apply(coupling), several_inputs(coupling)
    return lambda params: lambda gates, inputs: apply(params, gates, *several(inputs))


def open_gates(coupling: Coupling, params: Params) -> dict[str, jax.Array]:
    """Gates of 1, float64 for a model with float64 leaves and float32 for every other."""
    wide = any(trees.score_dtype(leaf) == jnp.float64 for leaf in jax.tree.leaves(params))
    return ones(coupling, jnp.float64 if wide else jnp.float32)


def on_gates(coupling: Coupling, loss: Loss, make: Callable[[Apply, Loss], Saliency]) -> Saliency:
    """A saliency of the gates on all units: every one that weights have, for units.

    A gate of 1 is the model and a gate of 0 the model without the unit (see `jp.coupling.gated`),
    so what a saliency says about removing the gate `1` is what it says about removing the unit.
    Places that share a unit share its gate: their gradients add before anything is squared. The
    outputs of a ReLU network are piecewise linear in the gates of a group that is read once, and
    `exact_diagonal` costs what Gauss-Newton does; for others (residual streams) it takes a
    Hessian-vector product a unit.

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
      Theis et al. 2018, Faster gaze prediction with dense networks and Fisher pruning; Crowley
      et al. 2018, Pruning neural networks: is it time to nip it in the bud?

    Example:
      >>> from jaxprune.coupling import couple
      >>> w = [jnp.array([[1.0, 2.0]]), jnp.array([[3.0], [0.5]])]
      >>> coupling = couple(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], w, jnp.ones((1, 1)))
      >>> scores = unit_fisher(coupling, lambda y, t: ((y - t) ** 2)[:, 0])
      >>> scores(w, (jnp.ones((1, 1)), jnp.zeros((1, 1))))
      {'0': Array([288.,  32.], dtype=float32)}
    """
    model, several = gated_model(coupling), several_inputs(coupling)
    whole = lambda params, inputs: source_of(coupling).apply(params, *several(inputs))

    @jax.jit
    def means(params: Params, batch: Batch) -> PyTree:
        coupling.check(params)
        losses = objective.example_losses(model(params), loss)
        gates = open_gates(coupling, params)
        inputs, _ = objective.split_batch(batch)
        with jax.default_matmul_precision("highest"):
            if independent_examples(whole, params, inputs):
                single = lambda gates, one: losses(gates, jax.tree.map(lambda x: x[None], one))[0]
                rows = jax.vmap(jax.grad(single), (None, 0))(gates, tuple(batch))
            else:
                values, pull = jax.vjp(lambda gates: losses(gates, batch), gates)
                rows = jax.lax.map(
                    lambda one: pull(one)[0], jnp.eye(len(values), dtype=values.dtype)
                )
        return jax.tree.map(lambda g: jnp.mean(jnp.square(g), axis=0) / 2, rows)

    return from_means(means, lambda params, halves: halves)
