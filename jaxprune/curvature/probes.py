"""Hutchinson's stochastic estimate of the Hessian's diagonal."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import objective, trees
from jaxprune.curvature.examples import check_count, widened, widened_inputs
from jaxprune.types import Batch, Curvature, Diagonal, Loss, Params


def hutchinson_diagonal(
    apply: Any, loss: Loss | None = None, *, key: jax.Array, probes: int = 32
) -> Curvature:
    """An unbiased estimate of the Hessian's diagonal: the mean over probes of `z * (H z)`.

    z is Rademacher. The variance of entry i is `sum_{j != i} H_ij^2 / probes`: the error falls as
    the square root of the probes, slowly. It is for models to which nothing else applies.

    Args:
      apply: `(params, inputs) -> outputs`; or, without `loss`, a plain mean `loss(params, batch)`.
      loss: per-example losses.
      key: PRNG key; the same key draws the same probes for every batch, so that sums over batches
        equal one big batch.
      probes: Hessian-vector products taken, each about two gradients.

    Returns:
      `(params, batch) -> Diagonal`: mean only, `is_hessian` False.

    Raises:
      ValueError: a missing or empty batch, a loss of the wrong shape, probes < 1.

    References:
      Hutchinson 1990; Bekas, Kokiopoulou, Saad 2007, An estimator for the diagonal of a matrix.

    Example:
      >>> diagonal = hutchinson_diagonal(
      ...     lambda w, batch: jnp.sum(w**3), key=jax.random.key(0), probes=1)
      >>> diagonal(jnp.array([1.0, 2.0]), (jnp.ones(1),)).mean  # a diagonal Hessian: exact
      Array([ 6., 12.], dtype=float32)
    """
    check_count("probes", probes)
    mean_loss = objective.mean_loss(apply, loss)

    @jax.jit
    def probe(params: Params, batch: Batch, key: jax.Array) -> list[jax.Array]:
        """`z * (H z)` for one z."""
        leaves, merge, _ = widened(params)
        grad = jax.grad(lambda some: mean_loss(merge(some), batch))
        keys = jax.random.split(key, len(leaves))
        signs = [
            jax.random.rademacher(k, leaf.shape, leaf.dtype)
            for k, leaf in zip(keys, leaves, strict=True)
        ]
        with jax.default_matmul_precision("highest"):
            turned = jax.jvp(grad, (leaves,), (signs,))[1]
        return [z * h for z, h in zip(signs, turned, strict=True)]

    add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b), donate_argnums=0)

    def curvature(params: Params, batch: Batch) -> Diagonal:
        keys = jax.random.split(key, probes)
        if isinstance(batch, tuple) and len(batch) == 2:
            batch = (widened_inputs(params, batch[0]), batch[1])
        if not trees.is_traced(params, batch, key):  # convolutions in a loop are slow on a CPU
            total = probe(params, batch, keys[0])
            for one in keys[1:]:
                total = add(total, probe(params, batch, one))
        else:
            step = lambda total, one: (add(total, probe(params, batch, one)), None)
            total = jax.lax.scan(step, probe(params, batch, keys[0]), keys[1:])[0]
        mean = [t / probes for t in total]
        flags = objective.by_leaves(params)[2]
        return Diagonal(objective.filled(params, flags, mean))

    return curvature
