"""Inputs and output curvature of dense layers and convolutions, read through taps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import objective, trees
from jaxprune.curvature.examples import widened
from jaxprune.curvature.roots import Root, output_factor
from jaxprune.jaxpr.taps import Site, Tapped, tap
from jaxprune.types import Apply, Batch, LayerMoments, Loss, Params


def layer_moments(
    apply: Apply, loss: Loss, *, root: Root | None = None
) -> Callable[[Params, Batch], LayerMoments]:
    """Means over examples of each weight's input, its square, and the output curvature.

    For `z_j = sum_i x_i w_ij`: mean x_i, mean x_i^2 and the Gauss-Newton `d^2 loss / dz_j^2`,
    each broadcastable against w. In a convolution x is the input channel averaged over positions,
    and the curvature is summed over positions, as one weight acts at all of them.

    Args:
      apply: `(params, inputs) -> outputs`, where each example's outputs depend on its inputs only.
      loss: `(outputs, targets) -> [N]`.
      root: a root of the output Hessian, as in `gauss_newton_diagonal`.

    Returns:
      `(params, batch) -> LayerMoments`. A leaf that does not enter exactly one dense layer or
      ungrouped convolution, and nothing else, is NaN.

    Raises:
      ValueError: a missing or empty batch, a loss or root of the wrong shape, or more than 64
        outputs without a root.

    Example:
      >>> moments = layer_moments(lambda w, x: x @ w, lambda y, t: jnp.sum((y - t) ** 2, -1))
      >>> batch = (jnp.array([[1.0], [3.0]]), jnp.zeros((2, 1)))
      >>> m = moments(jnp.array([[1.0]]), batch)
      >>> float(m.input_mean[0, 0]), float(m.input_second_moment[0, 0])
      (2.0, 5.0)
    """

    @jax.jit
    def measure(params: Params, batch: Batch) -> LayerMoments:
        inputs, targets = objective.split_batch(batch)
        n = objective.batch_size(batch)
        leaves, merge, _ = widened(params)
        with jax.default_matmul_precision("highest"):
            tapped = tap(apply, merge(leaves), inputs)
            taps = [jnp.zeros(site.output.shape, site.output.dtype) for site in tapped.sites]
            run = lambda some: tapped.run(merge(leaves), inputs, some)
            outputs, pull, captures = jax.vjp(run, taps, has_aux=True)
            columns, signs = output_factor(loss, root, outputs, targets)
            bent = _curvatures(pull, columns, signs, outputs)
        return _assemble(params, tapped, captures, bent, n)

    return measure


def _curvatures(pull: Any, columns: jax.Array, signs: jax.Array, outputs: Any) -> list[jax.Array]:
    """`sum_c signs_c delta_c^2` at every site's output."""
    leaves, structure = jax.tree.flatten(outputs)
    cuts = np.cumsum([leaf.size // leaf.shape[0] for leaf in leaves])[:-1]

    def one(column: jax.Array, sign: jax.Array) -> list[jax.Array]:
        pieces = zip(jnp.split(column, cuts, axis=1), leaves, strict=True)
        cotangent = [piece.reshape(o.shape).astype(o.dtype) for piece, o in pieces]
        deltas = pull(jax.tree.unflatten(structure, cotangent))[0]
        return [d * d * sign.reshape(-1, *(1,) * (d.ndim - 1)) for d in deltas]

    each = [one(columns[:, :, c], signs[:, c]) for c in range(columns.shape[2])]
    return [sum(parts) for parts in zip(*each, strict=True)]


def _assemble(
    params: Params, tapped: Tapped, captures: list[Any], bent: list[Any], n: int
) -> LayerMoments:
    """One triple of moments per leaf, NaN where no single site says what they are."""
    leaves, structure = jax.tree.flatten(params)
    triples: list[Any] = [(objective.zeros(leaf) + jnp.nan,) * 3 for leaf in leaves]
    used = [*tapped.elsewhere, *(site.leaf for site in tapped.sites)]
    for site, captured, curve in zip(tapped.sites, captures, bent, strict=True):
        leaf = leaves[site.leaf]
        if used.count(site.leaf) > 1 or jnp.shape(captured)[:1] != (n,):
            continue
        found = _moments(site, captured, curve, np.shape(leaf), n)
        if found is not None:
            dtype = trees.score_dtype(leaf)
            triples[site.leaf] = tuple(f.astype(dtype) + objective.zeros(leaf) for f in found)
    return LayerMoments(*(jax.tree.unflatten(structure, p) for p in zip(*triples, strict=True)))


def _moments(site: Site, x: Any, curve: Any, shape: tuple[int, ...], n: int) -> Any:
    """(mean x, mean x^2, mean curvature), each shaped to broadcast against the weight."""
    if site.primitive == "dot_general":
        (left, right), (batch, _) = site.params["dimension_numbers"]
        mine, theirs = (left, right) if site.side == 0 else (right, left)
        if batch or len(mine) != 1:
            return None
        contracted, inputs_axis = mine[0], theirs[0]
        free = len(shape) - 1  # the weight's free axes in the output: first or last
        out_axes = range(free) if site.side == 0 else range(curve.ndim - free, curve.ndim)
        example_axis = len(shape) - 1 if site.side == 0 else 0
    else:
        numbers, groups = site.params["dimension_numbers"], site.params["feature_group_count"]
        if site.side != 1 or groups != 1 or site.params["batch_group_count"] != 1:
            return None
        contracted, inputs_axis = numbers.rhs_spec[1], numbers.lhs_spec[1]
        out_axes, example_axis = (numbers.out_spec[1],), numbers.out_spec[0]
        if numbers.lhs_spec[0] != 0:
            return None
    x = jnp.moveaxis(x, inputs_axis, -1)
    x = x.reshape(-1, x.shape[-1]).astype(curve.dtype)
    spread = [1] * len(shape)
    spread[contracted] = shape[contracted]
    mean, square = (jnp.mean(v, axis=0).reshape(spread) for v in (x, x * x))
    if curve.shape[example_axis] != n:
        return None
    others = tuple(a for a in range(curve.ndim) if a not in tuple(out_axes))
    bend = jnp.sum(curve, axis=others) / n
    if site.primitive == "dot_general":
        return mean, square, jnp.expand_dims(bend, contracted)
    out_shape = [1] * len(shape)
    out_shape[site.params["dimension_numbers"].rhs_spec[0]] = bend.size
    return mean, square, bend.reshape(out_shape)
