"""Products of curvature matrices with vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import objective, trees
from jaxprune.curvature.examples import (
    check_microbatch,
    mean_over_examples,
    widened,
    widened_inputs,
)
from jaxprune.types import Apply, Batch, Loss, Params, PyTree

Product = Callable[[Params, Batch, PyTree], PyTree]
"""`(params, batch, v) -> M v`."""


def hvp(apply: Any, loss: Loss | None = None, *, microbatch: int | None = None) -> Product:
    """Hessian-vector products, forward over reverse: `H v = d/dt grad(w + t v) at t = 0`.

    Costs about two gradients and no extra memory to speak of.

    Args:
      apply: `(params, inputs) -> outputs`; or, without `loss`, a plain mean `loss(params, batch)`.
      loss: per-example losses.
      microbatch: examples at once, or None: all. Needs `loss`; a model whose examples depend on
        each other is taken whole.

    Returns:
      `(params, batch, v) -> H v`, H the Hessian of the mean loss; v and the result have the
      structure of `params`. Leaves that are not real floating-point give zeros.

    Raises:
      ValueError: v has another structure or shape; a microbatch of a plain loss, or below 1.

    References:
      Pearlmutter 1994, Fast Exact Multiplication by the Hessian.

    Example:
      >>> import jax.numpy as jnp
      >>> product = hvp(lambda w, batch: jnp.sum(w**3))
      >>> product(jnp.array([1.0, 2.0]), (jnp.ones(1),), jnp.array([1.0, 10.0]))
      Array([  6., 120.], dtype=float32)
    """
    mean_loss = objective.mean_loss(apply, loss)
    if microbatch is not None and loss is None:
        raise ValueError(
            "`microbatch` needs per-example losses: a plain `loss(params, batch)` cannot say that "
            "it is a mean over examples. Pass `(apply, loss)`."
        )

    def product(params: Params, batch: Batch, vector: PyTree) -> PyTree:
        leaves, merge, flags, tangents = _directions(params, vector)
        batch = widened_inputs(params, batch)
        grad = jax.grad(lambda some: mean_loss(merge(some), batch))
        with jax.default_matmul_precision("highest"):
            turned = jax.jvp(grad, (leaves,), (tangents,))[1]
        return objective.filled(params, flags, turned)

    return _in_parts(apply, product, microbatch)


def gauss_newton_vp(apply: Apply, loss: Loss, *, microbatch: int | None = None) -> Product:
    """Gauss-Newton-vector products, `G v = mean_n J_n' H_n J_n v`.

    J_n is the Jacobian of example n's outputs and H_n the Hessian of its loss in them: one forward
    derivative, a Hessian-vector product of the loss alone, one pull-back. That is about two
    gradients for any number of outputs, no root is needed, and H need not be positive. In a
    piecewise linear network G has the Hessian's blocks of single layers; the blocks between layers
    differ by the curvature of the model, which vanishes where the loss is stationary.

    Args:
      apply: `(params, inputs) -> outputs`; examples may depend on each other. It must have forward
        derivatives, so no `custom_vjp`.
      loss: `(outputs, targets) -> [N]`.
      microbatch: examples at once, or None: all. A model whose examples depend on each other is
        taken whole.

    Returns:
      `(params, batch, v) -> G v`; v and the result have the structure of `params`. Leaves that are
      not real floating-point give zeros.

    Raises:
      ValueError: v has another structure or shape; a missing or empty batch, a loss of the wrong
        shape, `microbatch` < 1.

    References:
      Schraudolph 2002, Fast Curvature Matrix-Vector Products; Martens 2010, Deep Learning via
      Hessian-free Optimization.

    Example:
      >>> import jax.numpy as jnp
      >>> product = gauss_newton_vp(lambda w, x: x @ w, lambda y, t: (y - t) ** 2)
      >>> batch = (jnp.array([[1.0, 2.0]]), jnp.zeros(1))
      >>> product(jnp.array([0.5, 0.5]), batch, jnp.array([1.0, 10.0]))  # 2 x x' v
      Array([42., 84.], dtype=float32)
    """

    def product(params: Params, batch: Batch, vector: PyTree) -> PyTree:
        leaves, merge, flags, tangents = _directions(params, vector)
        inputs, targets = objective.split_batch(widened_inputs(params, batch))
        n = objective.batch_size(batch)
        model = lambda some: apply(merge(some), inputs)
        mean = lambda y: jnp.mean(objective.check_losses(loss(y, targets), n))
        with jax.default_matmul_precision("highest"):
            outputs, pull = jax.vjp(model, leaves)
            moved = jax.jvp(model, (leaves,), (tangents,))[1]
            bent = jax.jvp(jax.grad(mean), (outputs,), (moved,))[1]
            (turned,) = pull(bent)
        return objective.filled(params, flags, turned)

    return _in_parts(apply, product, microbatch)


def _directions(
    params: Params, vector: PyTree
) -> tuple[list[Any], Callable[[list[Any]], Params], list[bool], list[Any]]:
    """The parameters `widened`, and the vector at those leaves."""
    trees.check_like(params, vector, "vector")
    leaves, merge, flags = widened(params)
    pairs = zip(trees.select_leaves(vector, flags), leaves, strict=True)
    return leaves, merge, flags, [v.astype(leaf.dtype) for v, leaf in pairs]


def _in_parts(apply: Apply, product: Product, microbatch: int | None) -> Product:
    """A product that is a mean over examples, a microbatch at a time."""
    check_microbatch(microbatch)

    def cast(leaf: Any, found: jax.Array) -> jax.Array:
        return found.astype(trees.dtype_of(leaf)) if trees.is_float(leaf) else found

    if microbatch is None:
        return jax.jit(lambda p, batch, v: jax.tree.map(cast, p, product(p, batch, v)))

    def sums(pair: tuple[Params, PyTree], batch: Batch, independent: bool) -> PyTree:
        n = objective.batch_size(batch)
        return jax.tree.map(lambda x: n * x, product(pair[0], batch, pair[1]))

    both = lambda pair, inputs: apply(pair[0], inputs)
    mean = mean_over_examples(both, sums, lambda outputs, targets: 1, microbatch)

    return lambda params, batch, vector: jax.tree.map(cast, params, mean((params, vector), batch))
