"""First-order saliencies: what the loss does, to first order, when a weight becomes zero."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import objective
from jaxprune.saliency.measured import from_means
from jaxprune.types import Batch, Loss, Params, PyTree, Saliency, Scores


def _mean_gradient(apply: Any, loss: Loss | None) -> Any:
    mean_loss = objective.mean_loss(apply, loss)

    @jax.jit
    def means(params: Params, batch: Batch) -> PyTree:
        with jax.default_matmul_precision("highest"):
            return objective.gradient(mean_loss, params, batch)

    return means


def taylor(apply: Any, loss: Loss | None = None) -> Saliency:
    """First-order Taylor importance: `s = (w g)^2`, the squared first-order change of the loss.

    g is the gradient of the mean loss over all the data measured. At a minimum of the training
    loss g is nearly zero, and second order is the better guide.

    Args:
      apply: `(params, inputs) -> outputs`; or, without `loss`, a plain `loss(params, batch)`.
      loss: `(outputs, targets) -> [N]`, per-example losses.

    Raises:
      ValueError: a missing or empty batch, or a loss of another shape.

    References:
      Molchanov et al. 2019, Importance Estimation for Neural Network Pruning, equation 8.

    Example:
      >>> scores = taylor(lambda w, x: x @ w, lambda y, t: (y - t) ** 2)
      >>> scores(jnp.array([2.0, 1.0]), (jnp.array([[1.0, 0.0]]), jnp.array([0.0])))
      Array([64.,  0.], dtype=float32)
    """

    def score(params: Params, gradient: PyTree) -> Scores:
        return jax.tree.map(lambda w, g: jnp.square(objective.wide(w) * g), params, gradient)

    return from_means(_mean_gradient(apply, loss), score, entrywise=True)


def snip(apply: Any, loss: Loss | None = None) -> Saliency:
    """Connection sensitivity: `s = |w g| / sum |w g|`, the sum over the whole tree.

    Made to be taken at initialisation, before any training. It ranks as `taylor` does: the two
    differ by a monotone function, and are here so that each paper's number can be compared.

    Args:
      apply: `(params, inputs) -> outputs`; or, without `loss`, a plain `loss(params, batch)`.
      loss: `(outputs, targets) -> [N]`, per-example losses.

    Raises:
      ValueError: a missing or empty batch, or a loss of another shape.

    References:
      Lee et al. 2019, SNIP: Single-shot Network Pruning, equation 6.

    Example:
      >>> scores = snip(lambda w, x: x @ w, lambda y, t: (y - t) ** 2)
      >>> scores(jnp.array([2.0, 1.0]), (jnp.array([[1.0, 2.0]]), jnp.array([0.0])))
      Array([0.5, 0.5], dtype=float32)
    """

    def score(params: Params, gradient: PyTree) -> Scores:
        sizes = jax.tree.map(lambda w, g: jnp.abs(objective.wide(w) * g), params, gradient)
        total = sum(jnp.sum(s) for s in jax.tree.leaves(sizes))
        return jax.tree.map(lambda s: s / jnp.where(total > 0, total, 1).astype(s.dtype), sizes)

    return from_means(_mean_gradient(apply, loss), score)
