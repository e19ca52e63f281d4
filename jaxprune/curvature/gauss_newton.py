"""The Gauss-Newton diagonal, from square roots of the output Hessian pulled back."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxprune import objective, trees
from jaxprune.curvature.examples import (
    MICROBATCH,
    check_positive,
    mean_over_examples,
    widened,
)
from jaxprune.curvature.roots import Root, output_factor
from jaxprune.types import Apply, Batch, Curvature, Diagonal, Loss, Params, PyTree


def gauss_newton_diagonal(
    apply: Apply, loss: Loss, *, root: Root | None = None, microbatch: int = MICROBATCH
) -> Curvature:
    """The diagonal of the generalised Gauss-Newton matrix `J' H_out J`, and its second moment.

    `h_n,ii = sum_c (J_n' r_nc)_i^2`, J the Jacobian of the outputs and r the columns of a root of
    the output Hessian. For a network that is piecewise linear in each weight (ReLU, max-pooling,
    residual connections, frozen BatchNorm) it IS the diagonal of the Hessian.

    Args:
      apply: `(params, inputs) -> outputs`, where each example's outputs depend on its inputs only.
      loss: `(outputs, targets) -> [N]`.
      root: `(outputs, targets) -> [N, K, C]`, such as `softmax_root`; by default the output
        Hessian comes from autodiff, for up to 64 outputs.
      microbatch: examples in memory at once; each holds C copies of the parameters.

    Returns:
      `(params, batch) -> Diagonal` with `is_hessian` False (whether the network qualifies is not
      looked at here).

    Raises:
      ValueError: a missing or empty batch, a loss or root of the wrong shape, or more than 64
        outputs without a root.

    References:
      Schraudolph 2002, Fast Curvature Matrix-Vector Products; Dangel et al. 2020, BackPACK.

    Example:
      >>> diagonal = gauss_newton_diagonal(lambda w, x: x @ w, lambda y, t: (y - t) ** 2)
      >>> batch = (jnp.array([[1.0, 2.0]]), jnp.array([0.0]))
      >>> diagonal(jnp.array([0.5, 0.5]), batch).mean.round(4)
      Array([2., 8.], dtype=float32)
    """
    check_positive("microbatch", microbatch)

    @jax.jit
    def curvature(params: Params, batch: Batch) -> Diagonal:
        objective.split_batch(batch)
        leaves, merge, flags = widened(params)

        def one(example: Batch) -> tuple[PyTree, PyTree]:
            inputs, targets = example
            outputs, pull = jax.vjp(lambda some: apply(merge(some), inputs), leaves)
            columns, signs = output_factor(loss, root, outputs, targets)
            back = lambda column: pull(_like_outputs(column, outputs))[0]
            rows = jax.vmap(back, in_axes=1)(columns[0])
            diagonal = [jnp.tensordot(signs[0].astype(r.dtype), r * r, 1) for r in rows]
            return diagonal, [d * d for d in diagonal]

        with jax.default_matmul_precision("highest"):
            mean, second = mean_over_examples(one, batch, microbatch)
        fill = lambda new: trees.replace_leaves(params, flags, new, objective.zeros)
        return Diagonal(fill(mean), fill(second))

    return curvature


def _like_outputs(column: jax.Array, outputs: PyTree) -> PyTree:
    """A flat column [K] in the structure of one example's outputs (leading axis 1)."""
    leaves, structure = jax.tree.flatten(outputs)
    pieces, start = [], 0
    for leaf in leaves:
        pieces.append(column[start : start + leaf.size].reshape(leaf.shape).astype(leaf.dtype))
        start += leaf.size
    return jax.tree.unflatten(structure, pieces)
