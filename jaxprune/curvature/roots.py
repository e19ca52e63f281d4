"""Square roots of the output Hessian: columns R with `R R' = d^2 loss / d outputs^2`.

A root is `(outputs, targets) -> [N, K, C]`: per example, C columns over the K flattened outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxprune import objective
from jaxprune.types import Loss, PyTree

Root = Callable[[PyTree, PyTree], jax.Array]

MOST_OUTPUTS = 64


def softmax_root(outputs: jax.Array, targets: PyTree) -> jax.Array:
    """Root of softmax cross-entropy, `diag(p) - p p'`, in its K - 1 columns.

    With `q_k = p_{k+1} + .. + p_K` by a REVERSE sum (1 - cumsum cancels on saturated logits):
    column k holds `d_k = sqrt(p_k q_k / q_{k-1})` at k and `-d_k p_j / q_k` below. A column whose
    q_k is 0 is 0.

    Args:
      outputs: logits [N, K].
      targets: not used; the Hessian does not depend on them.

    Returns:
      [N, K, K - 1] in the dtype of the logits.

    References:
      The factor is the Cholesky factor of a multinomial covariance, Tanabe and Sagae 1992.

    Example:
      >>> root = softmax_root(jnp.zeros((1, 2)), None)
      >>> (root @ jnp.swapaxes(root, 1, 2))[0]
      Array([[ 0.25, -0.25],
             [-0.25,  0.25]], dtype=float32)
    """
    if outputs.ndim != 2:
        raise ValueError(f"softmax_root takes logits of shape [N, K], got {outputs.shape}.")
    p = jax.nn.softmax(outputs, axis=-1)
    at_least = jnp.cumsum(p[:, ::-1], axis=-1)[:, ::-1]  # q_{k-1} = p_k + .. + p_K
    above, upto = at_least[:, 1:], at_least[:, :-1]
    safe = lambda x: jnp.where(x > 0, x, 1)
    diagonal = jnp.where(above > 0, jnp.sqrt(p[:, :-1] * (above / safe(upto))), 0)
    classes = p.shape[-1]
    below = jnp.tril(jnp.ones((classes, classes - 1), bool), -1)
    shares = jnp.where(below, -p[:, :, None] / safe(above)[:, None, :], 0)
    return diagonal[:, None, :] * (jnp.eye(classes, classes - 1, dtype=p.dtype) + shares)


def sigmoid_root(outputs: jax.Array, targets: PyTree) -> jax.Array:
    """Root of the sum over outputs of binary cross-entropies on logits: `diag(sqrt(p (1 - p)))`.

    Args:
      outputs: logits [N] or [N, K].
      targets: not used.

    Returns:
      [N, K, K].
    """
    flat = outputs.reshape(outputs.shape[0], -1)
    spread = jnp.sqrt(jax.nn.sigmoid(flat) * jax.nn.sigmoid(-flat))
    return jax.vmap(jnp.diag)(spread)


def squared_error_root(outputs: jax.Array, targets: PyTree) -> jax.Array:
    """Root of the sum over outputs of `(y - t)^2`: `sqrt(2) I`.

    Args:
      outputs: [N] or [N, K].
      targets: not used.

    Returns:
      [N, K, K]. For a loss of `(y - t)^2 / 2`, or a mean over outputs, scale it yourself.
    """
    n, k = outputs.shape[0], math.prod(outputs.shape[1:])
    return jnp.broadcast_to(math.sqrt(2) * jnp.eye(k, dtype=outputs.dtype), (n, k, k))


def output_factor(loss: Loss, root: Root | None, outputs: PyTree, targets: PyTree) -> tuple:
    """`(columns [N, K, C], signs [N, C])` with `sum_c signs_c r_c r_c'` the output Hessian.

    Without a root the Hessian comes from autodiff and its factor from an eigendecomposition; the
    signs keep it exact for a loss that is not convex in its outputs.

    Raises:
      ValueError: more than 64 outputs and no root; a root of the wrong shape.
    """
    objective.check_outputs(outputs)
    outputs = widened_outputs(outputs)
    flat, shape_back = _flatten_outputs(outputs)
    n, k = flat.shape
    if root is not None:
        columns = root(outputs, targets)
        if columns.ndim != 3 or columns.shape[:2] != (n, k):
            raise ValueError(
                f"`root(outputs, targets)` must return columns of shape [N, {k}, C], got "
                f"{columns.shape}."
            )
        return columns, None
    if k > MOST_OUTPUTS:
        raise ValueError(
            f"The loss has {k} outputs an example; its Hessian is taken by autodiff up to "
            f"{MOST_OUTPUTS}. Pass `root=`, such as `jp.curvature.softmax_root`."
        )

    def one(row: jax.Array, target: PyTree) -> jax.Array:
        batched = jax.tree.map(lambda t: t[None], target)
        return objective.check_losses(loss(shape_back(row[None]), batched), 1)[0]

    hessians = jax.vmap(jax.hessian(one))(flat, targets)
    values, vectors = jnp.linalg.eigh(hessians)
    return vectors * jnp.sqrt(jnp.abs(values))[:, None, :], jnp.sign(values)


def widened_outputs(outputs: PyTree) -> PyTree:
    """At least float32: a Hessian in bfloat16 is noise, and no eigendecomposition takes it."""
    return jax.tree.map(lambda y: y.astype(jnp.promote_types(y.dtype, jnp.float32)), outputs)


def _flatten_outputs(outputs: PyTree) -> tuple[jax.Array, Callable[[jax.Array], PyTree]]:
    """Outputs as [N, K], and the way back for any N."""
    leaves, structure = jax.tree.flatten(outputs)
    shapes = [leaf.shape[1:] for leaf in leaves]
    sizes = [math.prod(shape) for shape in shapes]
    flat = jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)

    def back(rows: jax.Array) -> PyTree:
        pieces, start = [], 0
        for leaf, shape, size in zip(leaves, shapes, sizes, strict=True):
            piece = rows[:, start : start + size].reshape(rows.shape[0], *shape)
            pieces.append(piece.astype(leaf.dtype))
            start += size
        return jax.tree.unflatten(structure, pieces)

    return flat, back
