"""A model on a batch, every example by itself, linearised at its taps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.jaxpr.taps import Tapped, Taps, tap
from jaxprune.types import Apply, Params, PyTree


class Pullback(NamedTuple):
    """`apply` on n examples, linearised at its taps.

    Attributes:
      tapped: the traced model of ONE example.
      leaves: the flattened parameters.
      outputs: [n, ...].
      captures: inputs of every site by key, [n, ...].
      pull: cotangents of the outputs, [k, n, ...] -> deltas at the taps, [k, n, ...].
    """

    tapped: Tapped
    leaves: list[Any]
    outputs: PyTree
    captures: dict[Any, jax.Array]
    pull: Callable[[PyTree], Taps]


def pull_back(apply: Apply, params: Params, inputs: PyTree) -> Pullback:
    """Run the model on all examples, each by itself, and keep what pulling back needs."""
    one = jax.tree.map(lambda x: x[:1], inputs)
    tapped = tap(apply, params, one)
    leaves = jax.tree.leaves(params)
    n = jax.tree.leaves(inputs)[0].shape[0]

    def single(taps: Taps, example: PyTree) -> tuple[PyTree, Any]:
        batch = jax.tree.map(lambda x: x[None], example)
        outputs, captures = tapped.run(leaves, batch, taps)
        return jax.tree.map(lambda y: y[0], outputs), captures

    zeros = jax.tree.map(lambda z: jnp.zeros((n, *z.shape), z.dtype), tapped.zeros)
    run = lambda taps: jax.vmap(single)(taps, inputs)
    outputs, pull, captures = jax.vjp(run, zeros, has_aux=True)
    return Pullback(tapped, leaves, outputs, captures, jax.vmap(lambda c: pull(c)[0]))
