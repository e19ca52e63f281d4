"""Saliencies of the weights alone: magnitude, LAMP, random."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import objective, trees
from jaxprune.saliency.measured import without_data
from jaxprune.types import Params, Saliency, Scores


def _size(leaf: Any) -> jax.Array:
    """|w| in score precision; zeros for leaves that are not floating-point."""
    if not trees.is_inexact(leaf):
        return objective.zeros(leaf)
    if trees.on_host(leaf) and trees.is_float(leaf):
        sizes = np.abs(np.asarray(leaf))
        return trees.from_host(sizes.astype(trees.score_dtype(leaf), copy=False), leaf)
    return jnp.abs(jnp.asarray(leaf)).astype(trees.score_dtype(leaf))


def magnitude() -> Saliency:
    """The size of each weight: `s = |w|`.

    Returns:
      A `Saliency`; it measures nothing, so its batch may be None.

    References:
      Han et al. 2015, Learning both Weights and Connections, section 3; Janowsky 1989.

    Example:
      >>> magnitude()({"kernel": jnp.array([[1.0, -2.0]])})["kernel"]
      Array([[1., 2.]], dtype=float32)
    """
    return without_data(lambda params: jax.tree.map(_size, params), _size)


def lamp() -> Saliency:
    """Layer-adaptive magnitude: `s_u = w_u^2 / sum of w_v^2 over the v of the leaf not below u`.

    Within a leaf it ranks as magnitude does; across leaves the largest weight of each scores 1,
    so that one global ranking sets sensible layer-wise sparsities. It sorts a leaf, so a leaf that
    is cut over devices is brought together on each, one leaf after another.

    Returns:
      A `Saliency`; it measures nothing, so its batch may be None. Scores lie in [0, 1].

    References:
      Lee et al. 2021, Layer-adaptive Sparsity for the Magnitude-based Pruning, equation 3.

    Example:
      >>> lamp()([jnp.array([[3.0, 4.0]])])[0]
      Array([[0.36, 1.  ]], dtype=float32)
    """
    return without_data(lambda params: jax.tree.map(_lamp_leaf, params))


def _lamp_leaf(leaf: Any) -> jax.Array:
    sizes = _size(leaf).ravel()
    if not sizes.size:
        return sizes.reshape(np.shape(leaf))
    # Relative to the largest weight, so that squares of tiny weights do not underflow.
    peak = jnp.max(sizes)
    squares = jnp.square(sizes / jnp.where(peak > 0, peak, 1))
    order = jnp.argsort(squares)  # stable: ties by index, as selections break them
    ascending = squares[order]
    survivors = jnp.cumsum(ascending[::-1])[::-1]
    scores = ascending / jnp.where(survivors > 0, survivors, 1)
    scores = jnp.zeros_like(squares).at[order].set(scores).reshape(np.shape(leaf))
    return trees.beside(scores, leaf)


def random(key: jax.Array) -> Saliency:
    """Uniform random scores in [0, 1): the baseline every method has to beat.

    Args:
      key: a PRNG key; the same key gives the same scores.

    Returns:
      A `Saliency`; it measures nothing, so its batch may be None.

    Example:
      >>> scores = random(jax.random.key(0))([jnp.ones((2, 2)), jnp.ones((2, 2))])
      >>> bool((scores[0] != scores[1]).all())
      True
    """

    def score(params: Params) -> Scores:
        leaves, structure = jax.tree.flatten(params)
        draw = lambda i, leaf: jax.random.uniform(
            jax.random.fold_in(key, i), np.shape(leaf), trees.score_dtype(leaf)
        )
        drawn = [trees.beside(draw(i, leaf), leaf) for i, leaf in enumerate(leaves)]
        return jax.tree.unflatten(structure, drawn)

    return without_data(score)
