"""Saliencies from what flows through a layer: the activations its weights are multiplied with."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import objective, trees
from jaxprune.jaxpr import sites as algebra
from jaxprune.jaxpr.examples import independent_examples
from jaxprune.jaxpr.pullback import captured_inputs
from jaxprune.jaxpr.taps import Site, tap
from jaxprune.saliency.measured import from_means
from jaxprune.types import Apply, Batch, Params, PyTree, Saliency, Scores


def wanda(apply: Apply) -> Saliency:
    """Wanda: `s_w = |w| ||x_w||_2`, x_w all that the weight is multiplied with.

    The norm runs over examples, and over the positions, tokens or time steps of each (the square
    root of the mean over examples of their sums, so that more data does not change the scale). No
    loss and no gradient. Wanda compares weights of one output only: pair it with
    `jp.select.lowest("output", output_axis=jp.saliency.output_axes(apply, params, inputs))`.

    Args:
      apply: `(params, inputs) -> outputs`, where each example's outputs depend on its inputs only.

    Returns:
      A `Saliency` whose batch is `(inputs, targets)`, the targets not read. A leaf that enters no
      layer, or something besides layers, scores NaN, so that a Pruner that wants it says so; so
      does every leaf of a model whose examples depend on each other.

    Raises:
      ValueError: a missing or empty batch.

    References:
      Sun et al. 2024, A Simple and Effective Pruning Approach for Large Language Models, eq. 1.

    Example:
      >>> scores = wanda(lambda w, x: x @ w)
      >>> scores(jnp.array([[1.0], [-2.0]]), (jnp.array([[3.0, 1.0]]), jnp.zeros(1)))
      Array([[3.],
             [2.]], dtype=float32)
    """

    @jax.jit
    def squares(params: Params, batch: Batch) -> PyTree:
        inputs, _ = objective.split_batch(batch)
        leaves, structure = jax.tree.flatten(params)
        if not independent_examples(apply, params, inputs):
            return jax.tree.map(lambda leaf: objective.zeros(leaf) + jnp.nan, params)
        tapped, captured = captured_inputs(apply, params, inputs)
        means: list[Any] = [objective.zeros(leaf) + jnp.nan for leaf in leaves]
        for i, leaf in enumerate(leaves):
            own = [site for site in tapped.sites if site.leaf == i]
            if own and all(site.primitive != "gather" for site in own):
                dtype = trees.score_dtype(leaf)
                wide = [captured[site.key].astype(dtype) for site in own]
                means[i] = sum(_mean_square(s, x) for s, x in zip(own, wide, strict=True))
        return jax.tree.unflatten(structure, means)

    def score(params: Params, means: PyTree) -> Scores:
        sized = lambda w, x: trees.beside(jnp.abs(objective.wide(w)) * jnp.sqrt(x), w)
        return jax.tree.map(sized, params, means)

    return from_means(squares, score)


def _mean_square(site: Site, x: jax.Array) -> jax.Array:
    """Mean over examples of the summed squares of what each weight meets, shaped like the leaf."""
    names = algebra.letters(site)
    x = algebra.inputs_of(site, x)
    kept = "".join(c for c in names.weight if c in names.inputs)
    with jax.default_matmul_precision("highest"):
        total = jnp.einsum(f"n{names.inputs},n{names.inputs}->{kept}", x, x) / x.shape[0]
    total = total.reshape([names.sizes[c] if c in kept else 1 for c in names.weight])
    full = jnp.broadcast_to(total, [names.sizes[c] for c in names.weight])
    return algebra.weight_of(site, full)


def output_axes(apply: Apply, params: Params, inputs: PyTree) -> dict[str, int]:
    """The axis of every layer's weight that counts the layer's outputs, by the leaf's name.

    Read off the dot or the convolution the weight enters; of several output axes (heads, features)
    the last. Leaves that enter no layer, or layers that disagree, are left out.

    Raises:
      ValueError: two leaves of one name.

    Example:
      >>> params = {"in_out": jnp.ones((3, 2)), "out_in": jnp.ones((5, 2))}
      >>> apply = lambda p, x: x @ p["in_out"] @ p["out_in"].T
      >>> output_axes(apply, params, jnp.ones((1, 3)))
      {'in_out': 1, 'out_in': 0}
    """
    found: dict[int, set[int]] = {}
    one = jax.tree.map(lambda x: x[:1], inputs)
    for site in tap(apply, params, one).sites:
        if site.primitive != "gather":
            found.setdefault(site.leaf, set()).update(_output_axis(site))
    names = trees.paths(params)
    trees.check_names(names)
    return {names[leaf]: axes.pop() for leaf, axes in sorted(found.items()) if len(axes) == 1}


def _output_axis(site: Site) -> list[int]:
    """The axis of the leaf along which the last output letter counts; none if it is unclear."""
    names = algebra.letters(site)
    outputs = [c for c in names.weight if c not in names.inputs]
    if not outputs or not site.origin.injective:
        return []
    shape = [names.sizes[c] for c in names.weight]
    place = names.weight.index(outputs[-1])
    with jax.ensure_compile_time_eval():
        numbers = jax.lax.broadcasted_iota(jnp.float32, shape, place)
        numbered = np.asarray(algebra.weight_of(site, numbers))
    varying = [a for a in range(numbered.ndim) if np.ptp(numbered, axis=a).any()]
    if shape[place] == 1:  # one output holds all entries, along whichever axis of length 1
        varying = [a for a in range(numbered.ndim) if numbered.shape[a] == 1]
    return varying[-1:]
