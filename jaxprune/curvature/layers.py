"""Inputs and output curvature of dense layers and convolutions, read through taps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        ranks = [np.ndim(leaf) for leaf in jax.tree.leaves(params)]
        with jax.default_matmul_precision("highest"):
            tapped = tap(apply, merge(leaves), inputs)
            taps = [jnp.zeros(site.output.shape, site.output.dtype) for site in tapped.sites]
            run = lambda some: tapped.run(merge(leaves), inputs, some)
            outputs, pull, captures = jax.vjp(run, taps, has_aux=True)
            columns, signs = output_factor(loss, root, outputs, targets)
            axes = [_example_axis(site, ranks[site.leaf], n) for site in tapped.sites]
            bent = _curvatures(pull, columns, signs, outputs, axes)
        return _assemble(params, tapped, captures, bent, n)

    return measure


def _example_axis(site: Site, rank: int, n: int) -> int | None:
    """The axis of a layer's output that counts examples; None if it is no layer we have rules for.

    Those we have: one contraction of a weight of that rank, or an ungrouped convolution.
    """
    if site.primitive == "dot_general":
        (contracted, _), (batched, _) = site.params["dimension_numbers"]
        known = len(contracted) == 1 and not batched
        axis = rank - 1 if site.side == 0 else 0  # the free axes of the left operand come first
    else:
        numbers = site.params["dimension_numbers"]
        groups = (site.params["feature_group_count"], site.params["batch_group_count"])
        known = site.side == 1 and groups == (1, 1) and numbers.lhs_spec[0] == 0
        axis = numbers.out_spec[0]
    return axis if known and site.output.shape[axis : axis + 1] == (n,) else None


def _curvatures(
    pull: Any, columns: jax.Array, signs: jax.Array, outputs: Any, axes: list[int | None]
) -> list[Any]:
    """`sum_c signs_c delta_c^2` at every site's output; None where there is no example axis."""
    leaves, structure = jax.tree.flatten(outputs)
    cuts = np.cumsum([leaf.size // leaf.shape[0] for leaf in leaves])[:-1]

    def one(column: jax.Array, sign: jax.Array) -> list[Any]:
        pieces = zip(jnp.split(column, cuts, axis=1), leaves, strict=True)
        cotangent = [piece.reshape(o.shape).astype(o.dtype) for piece, o in pieces]
        deltas = pull(jax.tree.unflatten(structure, cotangent))[0]
        return [
            None if axis is None else d * d * jnp.expand_dims(sign, _others(d.ndim, (axis,)))
            for d, axis in zip(deltas, axes, strict=True)
        ]

    each = [one(columns[:, :, c], signs[:, c]) for c in range(columns.shape[2])]
    return [None if parts[0] is None else sum(parts) for parts in zip(*each, strict=True)]


def _others(rank: int, axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(a for a in range(rank) if a not in axes)


def _assemble(
    params: Params, tapped: Tapped, captures: list[Any], bent: list[Any], n: int
) -> LayerMoments:
    """One triple of moments per leaf, NaN where no single site says what they are."""
    leaves, structure = jax.tree.flatten(params)
    triples: list[Any] = [(objective.zeros(leaf) + jnp.nan,) * 3 for leaf in leaves]
    used = [*tapped.elsewhere, *(site.leaf for site in tapped.sites)]
    for site, captured, curve in zip(tapped.sites, captures, bent, strict=True):
        leaf = leaves[site.leaf]
        if used.count(site.leaf) > 1 or curve is None or jnp.shape(captured)[:1] != (n,):
            continue
        dtype = trees.score_dtype(leaf)
        found = _moments(site, captured, curve, np.shape(leaf), n)
        triples[site.leaf] = tuple(f.astype(dtype) + objective.zeros(leaf) for f in found)
    return LayerMoments(*(jax.tree.unflatten(structure, p) for p in zip(*triples, strict=True)))


def _moments(site: Site, x: Any, curve: Any, shape: tuple[int, ...], n: int) -> tuple[Any, ...]:
    """(mean x, mean x^2, mean curvature), each shaped to broadcast against the weight."""
    if site.primitive == "dot_general":
        (left, right), _ = site.params["dimension_numbers"]
        (contracted,), (inputs_axis,) = (left, right) if site.side == 0 else (right, left)
        outputs = _others(len(shape), (contracted,))
        # The weight's free axes are the first of the output's axes, or the last.
        first = 0 if site.side == 0 else curve.ndim - len(outputs)
    else:
        numbers = site.params["dimension_numbers"]
        contracted, inputs_axis = numbers.rhs_spec[1], numbers.lhs_spec[1]
        outputs, first = (numbers.rhs_spec[0],), numbers.out_spec[1]
    x = jnp.moveaxis(x, inputs_axis, -1)
    x = x.reshape(-1, x.shape[-1]).astype(curve.dtype)
    around = _others(len(shape), (contracted,))
    mean, square = (jnp.expand_dims(jnp.mean(v, axis=0), around) for v in (x, x * x))
    out_axes = range(first, first + len(outputs))
    bend = jnp.sum(curve, axis=_others(curve.ndim, out_axes)) / n
    return mean, square, jnp.expand_dims(bend, _others(len(shape), outputs))
