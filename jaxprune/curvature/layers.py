"""Inputs and output curvature of dense layers and convolutions, read through taps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import objective, trees
from jaxprune.curvature.examples import mean_over_examples, widened
from jaxprune.curvature.gauss_newton import columns_like
from jaxprune.curvature.roots import Root, output_factor
from jaxprune.jaxpr import sites as algebra
from jaxprune.jaxpr.pullback import pull_back
from jaxprune.jaxpr.taps import Site
from jaxprune.types import Apply, Batch, LayerMoments, Loss, Params, PyTree


def layer_moments(
    apply: Apply, loss: Loss, *, root: Root | None = None, microbatch: int | None = None
) -> Callable[[Params, Batch], LayerMoments]:
    """Means over examples of each weight's input, its square, and the output curvature.

    For `z_j = sum_i x_i w_ij`: mean x_i, mean x_i^2 and the Gauss-Newton `d^2 loss / dz_j^2`. In a
    convolution x is the input channel averaged over positions, in a layer that is applied to
    tokens or at time steps it is averaged over those; the curvature is summed over positions, as
    one weight acts at all of them.

    Args:
      apply: `(params, inputs) -> outputs`, where each example's outputs depend on its inputs only.
      loss: `(outputs, targets) -> [N]`.
      root: a root of the output Hessian, as in `gauss_newton_diagonal`.
      microbatch: examples at once; by default as many as keep the deltas in a CPU's last cache.

    Returns:
      `(params, batch) -> LayerMoments`, trees like `params`. A leaf that does not enter exactly one
      dense layer or convolution, and nothing else, is NaN, and so is every leaf of a model whose
      examples depend on each other.

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

    def sums(params: Params, batch: Batch, independent: bool) -> LayerMoments:
        inputs, targets = batch
        leaves, merge, _ = widened(params)
        structure = jax.tree.structure(params)
        triples: list[Any] = [(objective.zeros(x) + jnp.nan,) * 3 for x in jax.tree.leaves(params)]
        if independent:
            with jax.default_matmul_precision("highest"):
                found = pull_back(apply, merge(leaves), inputs)
                columns, signs = output_factor(loss, root, found.outputs, targets)
                deltas = found.pull(columns_like(columns, found.outputs)).sites
            used = [site.leaf for site in found.tapped.sites]
            for site in found.tapped.sites:
                if used.count(site.leaf) > 1 or not site.origin.injective:
                    continue
                if site.primitive == "gather":
                    continue
                dtype = trees.score_dtype(found.leaves[site.leaf])
                wide = (found.captures[site.key].astype(dtype), deltas[site.key].astype(dtype))
                triples[site.leaf] = _moments(site, *wide, signs)
        return LayerMoments(*(jax.tree.unflatten(structure, p) for p in zip(*triples, strict=True)))

    def columns(outputs: PyTree, targets: PyTree) -> int:
        factor = lambda y, t: output_factor(loss, root, y, t)[0]
        return jax.eval_shape(factor, outputs, targets).shape[2]

    return mean_over_examples(apply, sums, columns, microbatch, loss)


def _moments(
    site: Site, x: jax.Array, deltas: jax.Array, signs: jax.Array | None
) -> tuple[jax.Array, ...]:
    """Sums over examples of x, x^2 and the curvature, each of the weight's shape."""
    names = algebra.letters(site)
    squares = algebra.deltas_of(site, deltas) ** 2
    if signs is not None:
        squares = jnp.einsum("kn...,nk->kn...", squares, signs.astype(squares.dtype))
    bend = "".join(c for c in names.deltas if c in names.weight)
    curvature = jnp.einsum(f"kn{names.deltas}->{bend}", squares)
    moments = []
    for power in (x, x * x):
        if site.primitive == "dot_general":
            kept = "".join(c for c in names.inputs if c in names.weight)
            mean = jnp.einsum(f"n{names.inputs}->{kept}", power)
            over = math.prod(names.sizes[c] for c in names.inputs if c not in kept)
        else:
            kept, mean, over = _channels(site, names, power)
        moments.append(_along(site, names, mean / over, kept))
    return moments[0], moments[1], _along(site, names, curvature, bend)


def _channels(site: Site, names: algebra.Letters, x: jax.Array) -> tuple[str, jax.Array, int]:
    """Sums over images and positions, one a channel, repeated for every entry of the window."""
    loops = len(site.origin.loops)
    feature = 1 + loops + site.params["dimension_numbers"].lhs_spec[1]
    stacked = [1 + i for i, (_, kind) in enumerate(site.origin.loops) if kind == "slices"]
    gone = [a for a in range(x.ndim) if a not in (*stacked, feature)]
    total = jnp.sum(x, axis=tuple(gone))
    over = math.prod(x.shape[a] for a in gone) // x.shape[0]
    kept = [c for c in names.inputs if c in names.weight]
    groups, entries = names.sizes[kept[-2]], names.sizes[kept[-1]]
    channels = total.shape[-1] // groups
    total = total.reshape(*total.shape[:-1], groups, 1, channels)
    shape = (*total.shape[:-2], entries // channels, channels)
    return "".join(kept), jnp.broadcast_to(total, shape).reshape(*total.shape[:-2], entries), over


def _along(site: Site, names: algebra.Letters, array: jax.Array, kept: str) -> jax.Array:
    """An array with some of the weight's letters, repeated along the others."""
    order = "".join(c for c in names.weight if c in kept)
    array = jnp.einsum(f"{kept}->{order}", array)
    array = array.reshape([names.sizes[c] if c in kept else 1 for c in names.weight])
    full = jnp.broadcast_to(array, [names.sizes[c] for c in names.weight])
    return algebra.weight_of(site, full)
