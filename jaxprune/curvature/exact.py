"""The exact diagonal of the Hessian, parameter by parameter: slow, and right for any model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import objective, trees
from jaxprune.curvature.examples import check_positive, widened
from jaxprune.curvature.roots import Root
from jaxprune.types import Apply, Batch, Curvature, Diagonal, Loss, Params


def exact_diagonal(
    apply: Apply, loss: Loss, *, root: Root | None = None, chunk: int = 64
) -> Curvature:
    """The diagonal of the Hessian of the mean loss, and its second moment over examples.

    For each parameter i, `h_n,ii = d^2 loss_n(w + t e_i) / dt^2 at t = 0` for all n at once, by
    forward over forward differentiation. Where the model has no forward derivative (a
    `custom_vjp`) the mean alone is taken, forward over reverse, and the leaf is listed in
    `fallback_paths`. It costs a few forward passes a
    PARAMETER: minutes at 100,000 parameters. A ReLU network's Hessian diagonal is its Gauss-Newton
    diagonal, which `gauss_newton_diagonal` gives for far less.

    Args:
      apply: `(params, inputs) -> outputs`.
      loss: `(outputs, targets) -> [N]`, twice differentiable.
      root: accepted for symmetry with `gauss_newton_diagonal`; this path needs no root.
      chunk: parameters taken at once.

    Returns:
      `(params, batch) -> Diagonal` with `is_hessian` True; float32 (float64 for float64 leaves).

    Raises:
      ValueError: a missing or empty batch, a loss of the wrong shape.

    References:
      LeCun, Denker, Solla 1990, Optimal Brain Damage, for the use of this diagonal.

    Example:
      >>> diagonal = exact_diagonal(lambda w, x: x @ w, lambda y, t: (y - t) ** 2)
      >>> batch = (jnp.array([[1.0, 2.0]]), jnp.array([0.0]))
      >>> diagonal(jnp.array([0.5, 0.5]), batch).mean
      Array([2., 8.], dtype=float32)
    """
    del root
    check_positive("chunk", chunk)
    losses = objective.example_losses(apply, loss)

    @jax.jit
    def curvature(params: Params, batch: Batch) -> Diagonal:
        leaves, merge, flags = widened(params)
        found = []
        with jax.default_matmul_precision("highest"):
            for i in range(len(leaves)):
                found.append(_leaf_diagonal(losses, leaves, i, merge, batch, chunk))
        fill = lambda new: trees.replace_leaves(params, flags, new, objective.zeros)
        names = [n for n, flag in zip(trees.paths(params), flags, strict=True) if flag]
        slow = tuple(n for n, (_, s) in zip(names, found, strict=True) if s is None)
        second = None if slow else fill([s for _, s in found])
        return Diagonal(fill([m for m, _ in found]), second, True, slow)

    return curvature


def _leaf_diagonal(
    losses: Any, leaves: list[jax.Array], i: int, merge: Any, batch: Batch, chunk: int
) -> tuple[jax.Array, jax.Array | None]:
    """Mean and second moment over examples of one leaf's Hessian diagonal."""
    leaf = leaves[i]
    if not leaf.size:
        return leaf, leaf

    def along(index: jax.Array, t: jax.Array) -> jax.Array:
        moved = leaf.ravel().at[index].add(t).reshape(leaf.shape)
        return losses(merge([*leaves[:i], moved, *leaves[i + 1 :]]), batch)

    zero, one = jnp.zeros((), leaf.dtype), jnp.ones((), leaf.dtype)

    def per_example(index: jax.Array) -> jax.Array:
        slope = lambda t: jax.jvp(lambda u: along(index, u), (t,), (one,))[1]
        return jax.jvp(slope, (zero,), (one,))[1]

    def mean_only(index: jax.Array) -> jax.Array:
        slope = jax.grad(lambda t: jnp.mean(along(index, t)))
        return jax.jvp(slope, (zero,), (one,))[1]

    indices = jnp.arange(leaf.size)
    run = lambda f: jax.lax.map(f, indices, batch_size=min(chunk, leaf.size))
    if not _has_forward(per_example):
        return run(mean_only).reshape(leaf.shape).astype(leaf.dtype), None

    def moments(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        each = per_example(index).astype(leaf.dtype)
        return jnp.mean(each), jnp.mean(each * each)

    mean, second = run(moments)
    return mean.reshape(leaf.shape), second.reshape(leaf.shape)


def _has_forward(function: Any) -> bool:
    try:
        jax.eval_shape(function, jnp.zeros((), jnp.int32))
    except (NotImplementedError, TypeError) as error:
        # A custom_vjp's forward derivative is a stub, `custom_lin`, that has none of its own.
        if not any(word in str(error) for word in ("custom_vjp", "custom_lin")):
            raise
        return False
    return True
