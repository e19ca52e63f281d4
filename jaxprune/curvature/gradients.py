"""Moments over examples of per-example gradients: the empirical Fisher and its centred kin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxprune import objective
from jaxprune.curvature.examples import mean_over_examples, widened, with_mean_only
from jaxprune.curvature.gauss_newton import diagonal_from_factor
from jaxprune.curvature.likelihoods import Likelihood
from jaxprune.curvature.roots import widened_outputs
from jaxprune.curvature.rows import sums_of_rows
from jaxprune.curvature.squares import sum_of_gradients
from jaxprune.jaxpr.pullback import pull_back
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


def fisher_diagonal(
    apply: Apply, loss: Loss, *, second_moment: bool = True, microbatch: int | None = None
) -> Curvature:
    """The diagonal of the empirical Fisher, `F_ii = mean_n g_n,i^2`, and its second moment.

    Costs about one gradient of the batch: the squares of a dense layer's per-example gradients add
    up to one matrix product of squared inputs and squared deltas.

    Args:
      apply: `(params, inputs) -> outputs`.
      loss: `(outputs, targets) -> [N]`.
      second_moment: also take the mean of `g^4`.
      microbatch: examples at once; by default as many as keep the deltas in a CPU's last cache.

    Returns:
      `(params, batch) -> Diagonal`, `is_hessian` False; `fallback_paths` as in
      `gauss_newton_diagonal`.

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

    def factor(outputs: PyTree, targets: PyTree) -> tuple[jax.Array, None]:
        slopes = jax.tree.leaves(objective.output_slopes(loss, outputs, targets))
        flat = [s.reshape(s.shape[0], -1) for s in slopes]
        return jax.numpy.concatenate(flat, axis=1)[:, :, None], None

    measure = diagonal_from_factor(apply, factor, second_moment, microbatch, loss)

    def curvature(params: Params, batch: Batch) -> Diagonal:
        found = measure(params, batch)
        return Diagonal(found.mean, found.second_moment, False, found.fallback_paths)

    if not second_moment:
        return curvature
    lean = fisher_diagonal(apply, loss, second_moment=False, microbatch=microbatch)
    return with_mean_only(curvature, lean)


def true_fisher_diagonal(
    apply: Apply,
    likelihood: Likelihood,
    *,
    key: jax.Array | None = None,
    samples: int = 1,
    second_moment: bool = True,
    microbatch: int | None = None,
) -> Curvature:
    """The diagonal of the Fisher, `F_ii = mean_n E_y~model (d log p(y) / dw_i)^2`.

    Targets are the model's own, not the data's, so the batch's targets are not read. Without a
    `key` the expectation is exact (a Gauss-Newton diagonal, in K - 1 columns for K classes); with
    one it is the mean over `samples` targets drawn for every example, unbiased, in as many columns.

    Args:
      apply: `(params, inputs) -> outputs`.
      likelihood: `categorical`, `bernoulli` or `normal` of `jp.curvature`, or your own.
      key: PRNG key to sample with, or None for the exact expectation.
      samples: targets drawn for each example.
      second_moment: also take the mean over examples of the squared diagonal.
      microbatch: examples at once; the draws do not depend on it.

    Returns:
      `(params, batch) -> Diagonal`; exact ones say whether they are the Hessian's, of that
      likelihood with targets as it makes them; for one of your own only if its root is that of the
      loss.

    References:
      Martens 2020, New Insights and Perspectives on the Natural Gradient Method, section 5.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune.curvature import normal
      >>> diagonal = true_fisher_diagonal(lambda w, x: x @ w, normal)
      >>> diagonal(jnp.zeros(2), (jnp.array([[1.0, 3.0]]), jnp.zeros(1))).mean
      Array([1., 9.], dtype=float32)
    """
    if key is None:
        exact: Any = lambda outputs, targets: (
            likelihood.root(widened_outputs(outputs), None),
            None,
        )
        return diagonal_from_factor(apply, exact, second_moment, microbatch)

    def drawn(outputs: PyTree, keys: jax.Array) -> tuple[jax.Array, None]:
        return likelihood.scores(keys, widened_outputs(outputs), samples) / samples**0.5, None

    measure = diagonal_from_factor(apply, drawn, second_moment, microbatch)

    def curvature(params: Params, batch: Batch) -> Diagonal:
        inputs, _ = objective.split_batch(batch)
        keys = jax.random.split(key, objective.batch_size(batch))
        found = measure(params, (inputs, keys))
        return Diagonal(found.mean, found.second_moment, False, found.fallback_paths)

    return curvature


def gradient_moments(
    apply: Apply, loss: Loss, *, microbatch: int | None = None
) -> Callable[[Params, Batch], GradientMoments]:
    """Means over examples of the gradient and of its square: their gap is the centred Fisher.

    Args:
      apply: `(params, inputs) -> outputs`.
      loss: `(outputs, targets) -> [N]`.
      microbatch: examples at once; by default as many as keep the deltas in a CPU's last cache.

    Returns:
      `(params, batch) -> GradientMoments`.

    Example:
      >>> import jax.numpy as jnp
      >>> moments = gradient_moments(lambda w, x: x @ w, lambda y, t: (y - t) ** 2)
      >>> batch = (jnp.array([[1.0], [2.0]]), jnp.array([0.0, 0.0]))
      >>> moments(jnp.array([1.0]), batch)
      GradientMoments(mean=Array([5.], dtype=float32), second_moment=Array([34.], dtype=float32))
    """

    def sums(params: Params, batch: Batch, independent: bool) -> GradientMoments:
        inputs, targets = batch
        leaves, merge, flags = widened(params)
        with jax.default_matmul_precision("highest"):
            if independent:
                found = pull_back(apply, merge(leaves), inputs)
                slopes = jax.tree.map(
                    lambda s: s[None], objective.output_slopes(loss, found.outputs, targets)
                )
                total = sum_of_gradients(found, found.pull(slopes))
            else:
                outputs, pull = jax.vjp(lambda some: apply(merge(some), inputs), leaves)
                slopes = jax.tree.map(
                    lambda s: s[None], objective.output_slopes(loss, outputs, targets)
                )
                total = sums_of_rows(pull, slopes)
        fill = lambda new: objective.filled(params, flags, new)
        assert total.second is not None
        return GradientMoments(fill(total.first), fill(total.second))

    return mean_over_examples(apply, sums, lambda outputs, targets: 1, microbatch, loss)
