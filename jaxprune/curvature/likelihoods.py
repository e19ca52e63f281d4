"""What the outputs of a model say about its targets: the distributions of a true Fisher."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.curvature.roots import Root, sigmoid_root, softmax_root


class Likelihood(NamedTuple):
    """A distribution of targets given outputs.

    Attributes:
      root: `(outputs, targets) -> [N, K, C]`, a root of the covariance of the scores.
      scores: `(keys [N], outputs, samples) -> [N, K, samples]`: gradients in the outputs of the
        negative log-likelihood of targets drawn from the model.
    """

    root: Root
    scores: Callable[[jax.Array, jax.Array, int], jax.Array]


def _flat(outputs: jax.Array) -> jax.Array:
    return outputs.reshape(outputs.shape[0], -1)


def _drawn(keys: jax.Array, outputs: jax.Array, one: Callable) -> jax.Array:
    return jnp.moveaxis(jax.vmap(one)(keys, _flat(outputs)), 1, 2)


def _categorical_scores(keys: jax.Array, outputs: jax.Array, samples: int) -> jax.Array:
    if outputs.ndim != 2:
        raise ValueError(
            f"`categorical` takes logits of shape [N, K], got {outputs.shape}. Of several "
            "classifications an example make a `Likelihood` of your own."
        )

    def one(key: jax.Array, logits: jax.Array) -> jax.Array:
        labels = jax.random.categorical(key, logits, shape=(samples,))
        return jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.size, dtype=logits.dtype)

    return _drawn(keys, outputs, one)


def _bernoulli_scores(keys: jax.Array, outputs: jax.Array, samples: int) -> jax.Array:
    def one(key: jax.Array, logits: jax.Array) -> jax.Array:
        p = jax.nn.sigmoid(logits)
        return p - jax.random.bernoulli(key, p, (samples, logits.size)).astype(p.dtype)

    return _drawn(keys, outputs, one)


def _normal_scores(keys: jax.Array, outputs: jax.Array, samples: int) -> jax.Array:
    one = lambda key, mean: jax.random.normal(key, (samples, mean.size), mean.dtype)
    return _drawn(keys, outputs, one)


def _unit_root(outputs: jax.Array, targets: object) -> jax.Array:
    n, k = outputs.shape[0], math.prod(outputs.shape[1:])
    return jnp.broadcast_to(jnp.eye(k, dtype=outputs.dtype), (n, k, k))


categorical = Likelihood(softmax_root, _categorical_scores)
"""Classes from logits [N, K]: softmax cross-entropy."""
bernoulli = Likelihood(sigmoid_root, _bernoulli_scores)
"""Independent yes or no from logits [N] or [N, K]: the sum of binary cross-entropies."""
normal = Likelihood(_unit_root, _normal_scores)
"""Unit variance around the outputs: half the squared error."""
