"""The Gauss-Newton matrix in the form of a factored Fisher: one random column an example."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxprune import objective, trees
from jaxprune.curvature.examples import examples_apart
from jaxprune.curvature.factored import FactoredFisher, factored_fisher
from jaxprune.curvature.gauss_newton import columns_like
from jaxprune.curvature.roots import Root, output_factor
from jaxprune.types import Apply, Batch, Loss, Params, PyTree


def sketched_gauss_newton(
    apply: Apply,
    loss: Loss,
    *,
    root: Root | None = None,
    key: jax.Array | None = None,
    microbatch: int | None = None,
) -> Callable[[Params, Batch], FactoredFisher]:
    """`F = mean_n g_n g_n'` whose expectation over signs is the Gauss-Newton matrix.

    `g_n = J_n' R_n z_n`: J_n the Jacobian of the outputs of example n, `R_n R_n'` the Hessian of
    its loss in them, z_n random signs. Unlike the empirical Fisher it does not vanish on examples
    that the model already gets right, which makes it the better model of pruning a trained network.
    It costs what `factored_fisher` does.

    Args:
      apply: `(params, inputs) -> outputs`.
      loss: `(outputs, targets) -> [N]`.
      root: R, as in `gauss_newton_diagonal`; by default from autodiff, for up to 64 outputs.
        Directions in which the loss is not convex in its outputs are left out.
      key: of the signs; by default `jax.random.key(0)`.
      microbatch: as in `factored_fisher`.

    Returns:
      `(params, batch) -> FactoredFisher`.

    Raises:
      ValueError: a missing or empty batch, a loss or root of the wrong shape, more than 64
        outputs without a root.

    References:
      Schraudolph 2002, Fast Curvature Matrix-Vector Products; Martens and Grosse 2015.

    Example:
      >>> loss = lambda y, t: 0.5 * (y - t) ** 2
      >>> f = sketched_gauss_newton(lambda w, x: x @ w, loss)
      >>> f(jnp.zeros(2), (jnp.array([[1.0, 2.0]]), jnp.zeros(1))).diagonal()
      Array([1., 4.], dtype=float32)
    """
    apart = examples_apart(apply, loss)
    measure = factored_fisher(apply, _inner, microbatch=microbatch)
    signs = jax.random.key(0) if key is None else key

    @jax.jit
    def directions(params: Params, inputs: PyTree, targets: PyTree) -> PyTree:
        with jax.default_matmul_precision("highest"):
            outputs = apply(params, inputs)
            columns, curved = output_factor(loss, root, outputs, targets)
            z = jax.random.rademacher(signs, columns.shape[::2], columns.dtype)
            if curved is not None:
                z = z * (curved > 0)
            flat = jnp.einsum("nkc,nc->nk", columns, z)
        return jax.tree.map(lambda u: u[0], columns_like(flat[:, :, None], outputs))

    def sketch(params: Params, batch: Batch) -> FactoredFisher:
        inputs, targets = objective.split_batch(batch)
        apart(params, batch)
        return measure(params, (inputs, directions(params, inputs, targets)))

    return sketch


def _inner(outputs: PyTree, directions: PyTree) -> jax.Array:
    """A loss whose gradient in the outputs of an example is its direction."""
    products = jax.tree.map(
        lambda y, u: jnp.sum((y * u).reshape(y.shape[0], -1), axis=1, dtype=trees.score_dtype(y)),
        outputs,
        directions,
    )
    return jnp.sum(jnp.stack(jax.tree.leaves(products)), axis=0)
