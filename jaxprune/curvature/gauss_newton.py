"""Gauss-Newton diagonals: square roots of the output Hessian pulled back to every layer at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import objective, trees
from jaxprune.curvature.examples import mean_over_examples, widened, with_mean_only
from jaxprune.curvature.roots import Root, output_factor
from jaxprune.curvature.rows import squares_of_rows
from jaxprune.curvature.squares import Sums, sum_of_squares
from jaxprune.jaxpr.linear import linear_leaves
from jaxprune.jaxpr.pullback import pull_back
from jaxprune.types import Apply, Batch, Curvature, Diagonal, Loss, Params, PyTree

Factor = Callable[[PyTree, PyTree], tuple[jax.Array, jax.Array | None]]
"""`(outputs, targets) -> (columns [N, K, C], signs [N, C] or None for all one)`."""


def gauss_newton_diagonal(
    apply: Apply,
    loss: Loss,
    *,
    root: Root | None = None,
    second_moment: bool = True,
    microbatch: int | None = None,
) -> Curvature:
    """The diagonal of the generalised Gauss-Newton matrix `J' H_out J`, and its second moment.

    `h_n,ii = sum_c (J_n' r_nc)_i^2`, J the Jacobian of the outputs and r the columns of a root of
    the output Hessian. The columns are pulled back to the outputs of the layers, all at once, and
    no gradient of a dense layer is formed: its sum of squares is one matrix product of squared
    inputs and squared deltas. For a network that is piecewise linear in each weight (ReLU,
    max-pooling, residual connections, frozen BatchNorm) it IS the diagonal of the Hessian; that is
    read off the jaxpr.

    Args:
      apply: `(params, inputs) -> outputs`.
      loss: `(outputs, targets) -> [N]`.
      root: `(outputs, targets) -> [N, K, C]`, such as `softmax_root`; by default the output
        Hessian comes from autodiff, for up to 64 outputs.
      second_moment: also take the mean over examples of h squared, for another matrix product.
      microbatch: examples at once; by default as many as keep the deltas in a CPU's last cache.

    Returns:
      `(params, batch) -> Diagonal`. `is_hessian` is True if the outputs are piecewise linear in
      every floating leaf. `fallback_paths` names leaves whose per-example gradients are formed
      whole: those used in other ways than by a layer, a lookup, a sum or a product. Where examples
      depend on each other (training-mode BatchNorm), that is every leaf, and the batch stays whole.

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
    factor: Factor = lambda outputs, targets: output_factor(loss, root, outputs, targets)
    return diagonal_from_factor(apply, factor, second_moment, microbatch, loss)


def diagonal_from_factor(
    apply: Apply,
    factor: Factor,
    second_moment: bool,
    microbatch: int | None,
    loss: Loss | None = None,
) -> Curvature:
    """The diagonal of `J' R R' J` for any columns R of the outputs, those of a loss if given."""

    def sums(params: Params, batch: Batch, independent: bool) -> Diagonal:
        inputs, targets = batch
        leaves, merge, flags = widened(params)
        whole = merge(leaves)
        with jax.default_matmul_precision("highest"):
            if independent:
                found = pull_back(apply, whole, inputs)
                columns, signs = factor(found.outputs, targets)
                cotangents = columns_like(columns, found.outputs)
                signs = None if signs is None else signs.T
                deltas = found.pull(cotangents)
                total = sum_of_squares(found, deltas, signs, second=second_moment)
                slow = found.tapped.slow
            else:
                outputs, pull = jax.vjp(lambda some: apply(merge(some), inputs), leaves)
                columns, signs = factor(outputs, targets)
                cotangents = columns_like(columns, outputs)
                total = squares_of_rows(pull, cotangents, signs, second=second_moment)
                slow = tuple(range(len(flags)))
        linear = linear_leaves(apply, whole, inputs)
        exact = all(line for line, flag in zip(linear, flags, strict=True) if flag)
        return as_diagonal(params, flags, total, exact, slow)

    def columns(outputs: PyTree, targets: PyTree) -> int:
        return jax.eval_shape(factor, outputs, targets)[0].shape[2]

    curvature = mean_over_examples(apply, sums, columns, microbatch, loss)
    if not second_moment:
        return curvature
    lean = diagonal_from_factor(apply, factor, False, microbatch, loss)
    return with_mean_only(curvature, lean)


def as_diagonal(
    params: Params, flags: list[bool], total: Sums, is_hessian: bool, slow: tuple[int, ...]
) -> Diagonal:
    """Sums over the floating leaves as a tree like `params`, zeros elsewhere."""
    fill = lambda new: objective.filled(params, flags, new)
    second = None if total.second is None else fill(total.second)
    names = trees.paths(params)
    fallback = tuple(names[i] for i in slow if flags[i])
    return Diagonal(fill(total.first), second, is_hessian, fallback)


def columns_like(columns: jax.Array, outputs: PyTree) -> PyTree:
    """Columns [N, K, C] of the flattened outputs as a tree of [C, N, ...] like the outputs."""
    leaves, structure = jax.tree.flatten(outputs)
    cuts = np.cumsum([leaf.size // leaf.shape[0] for leaf in leaves])[:-1]
    pieces = jnp.split(jnp.moveaxis(columns, 2, 0), cuts, axis=2)
    shaped: list[Any] = [
        piece.reshape(piece.shape[0], *leaf.shape).astype(leaf.dtype)
        for piece, leaf in zip(pieces, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, shaped)
