"""Moments over examples of per-example gradients: the empirical Fisher and its centred kin."""

from __future__ import annotations

from collections.abc import Callable

import jax

from jaxprune import objective, trees
from jaxprune.curvature.examples import MICROBATCH, check_positive, mean_over_examples, widened
from jaxprune.types import (
    Apply,
    Batch,
    Curvature,
    Diagonal,
    GradientMoments,
    Loss,
    Params,
    PyTree,
)


def fisher_diagonal(apply: Apply, loss: Loss, *, microbatch: int = MICROBATCH) -> Curvature:
    """The diagonal of the empirical Fisher, `F_ii = mean_n g_n,i^2`, and its second moment.

    Args:
      apply: `(params, inputs) -> outputs`, where each example's outputs depend on its inputs only.
      loss: `(outputs, targets) -> [N]`.
      microbatch: examples in memory at once; each holds a copy of the parameters.

    Returns:
      `(params, batch) -> Diagonal`, `is_hessian` False.

    Raises:
      ValueError: a missing or empty batch, a loss of the wrong shape.

    References:
      Amari 1998 for the Fisher; Kunstner et al. 2019 on how the empirical one differs from it.

    Example:
      >>> import jax.numpy as jnp
      >>> diagonal = fisher_diagonal(lambda w, x: x @ w, lambda y, t: (y - t) ** 2)
      >>> batch = (jnp.array([[1.0], [2.0]]), jnp.array([0.0, 0.0]))
      >>> diagonal(jnp.array([1.0]), batch).mean
      Array([34.], dtype=float32)
    """
    check_positive("microbatch", microbatch)
    gradients = _per_example(apply, loss)

    @jax.jit
    def curvature(params: Params, batch: Batch) -> Diagonal:
        def powers(example: Batch) -> tuple[PyTree, PyTree]:
            squares = [g * g for g in gradients(params, example)]
            return squares, [s * s for s in squares]

        return Diagonal(*_filled(params, powers, batch, microbatch))

    return curvature


def gradient_moments(
    apply: Apply, loss: Loss, *, microbatch: int = MICROBATCH
) -> Callable[[Params, Batch], GradientMoments]:
    """Means over examples of the gradient and of its square: their gap is the centred Fisher.

    Args:
      apply: `(params, inputs) -> outputs`, where each example's outputs depend on its inputs only.
      loss: `(outputs, targets) -> [N]`.
      microbatch: examples in memory at once; each holds a copy of the parameters.

    Returns:
      `(params, batch) -> GradientMoments`.

    Example:
      >>> import jax.numpy as jnp
      >>> moments = gradient_moments(lambda w, x: x @ w, lambda y, t: (y - t) ** 2)
      >>> batch = (jnp.array([[1.0], [2.0]]), jnp.array([0.0, 0.0]))
      >>> moments(jnp.array([1.0]), batch)
      GradientMoments(mean=Array([5.], dtype=float32), second_moment=Array([34.], dtype=float32))
    """
    check_positive("microbatch", microbatch)
    gradients = _per_example(apply, loss)

    @jax.jit
    def moments(params: Params, batch: Batch) -> GradientMoments:
        def powers(example: Batch) -> tuple[PyTree, PyTree]:
            grads = gradients(params, example)
            return grads, [g * g for g in grads]

        return GradientMoments(*_filled(params, powers, batch, microbatch))

    return moments


def _per_example(apply: Apply, loss: Loss) -> Callable[[Params, Batch], list[jax.Array]]:
    losses = objective.example_losses(apply, loss)

    def gradients(params: Params, example: Batch) -> list[jax.Array]:
        leaves, merge, _ = widened(params)
        return jax.grad(lambda some: losses(merge(some), example)[0])(leaves)

    return gradients


def _filled(
    params: Params,
    powers: Callable[[Batch], tuple[PyTree, PyTree]],
    batch: Batch,
    microbatch: int,
) -> tuple[PyTree, PyTree]:
    """Both means as trees like `params`, zeros where there is no derivative."""
    objective.split_batch(batch)
    with jax.default_matmul_precision("highest"):
        first, second = mean_over_examples(powers, batch, microbatch)
    flags = objective.by_leaves(params)[2]
    fill = lambda new: trees.replace_leaves(params, flags, new, objective.zeros)
    return fill(first), fill(second)
