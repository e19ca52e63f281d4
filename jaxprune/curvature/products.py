"""Products of curvature matrices with vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxprune import objective, trees
from jaxprune.types import Batch, Loss, Params, PyTree


def hvp(apply: Any, loss: Loss | None = None) -> Callable[[Params, Batch, PyTree], PyTree]:
    """Hessian-vector products, forward over reverse: `H v = d/dt grad(w + t v) at t = 0`.

    Costs about two gradients and no extra memory to speak of.

    Args:
      apply: `(params, inputs) -> outputs`; or, without `loss`, a plain mean `loss(params, batch)`.
      loss: per-example losses.

    Returns:
      `(params, batch, v) -> H v`, H the Hessian of the mean loss; v and the result have the
      structure of `params`. Leaves that are not real floating-point give zeros.

    References:
      Pearlmutter 1994, Fast Exact Multiplication by the Hessian.

    Example:
      >>> import jax.numpy as jnp
      >>> product = hvp(lambda w, batch: jnp.sum(w**3))
      >>> product(jnp.array([1.0, 2.0]), (jnp.ones(1),), jnp.array([1.0, 10.0]))
      Array([  6., 120.], dtype=float32)
    """
    mean_loss = objective.mean_loss(apply, loss)

    @jax.jit
    def product(params: Params, batch: Batch, vector: PyTree) -> PyTree:
        trees.check_like(params, vector, "vector")
        leaves, merge, flags = objective.by_leaves(params)
        tangents = [
            v.astype(leaf.dtype)
            for v, leaf in zip(trees.select_leaves(vector, flags), leaves, strict=True)
        ]
        grad = jax.grad(lambda some: mean_loss(merge(some), batch))
        with jax.default_matmul_precision("highest"):
            turned = jax.jvp(grad, (leaves,), (tangents,))[1]
        return trees.replace_leaves(params, flags, turned, objective.zeros)

    return product
