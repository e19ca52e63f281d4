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
      values: every variable of the program that was asked for, [n, ...].
      pull: cotangents of the outputs, [k, n, ...] -> deltas at the taps, [k, n, ...].
    """

    tapped: Tapped
    leaves: list[Any]
    outputs: PyTree
    captures: dict[Any, jax.Array]
    values: dict[int, jax.Array]
    pull: Callable[[PyTree], Taps]


class Watch(NamedTuple):
    """Variables of a program to look at.

    Attributes:
      values: those whose value is wanted.
      slopes: those to be tapped as well.
    """

    values: frozenset[int] = frozenset()
    slopes: frozenset[int] = frozenset()


def pull_back(
    apply: Apply,
    params: Params,
    inputs: PyTree,
    watch: Callable[[Tapped], Watch] = lambda tapped: Watch(),
) -> Pullback:
    """Run the model on all examples, each by itself, and keep what pulling back needs."""
    tapped = tap(apply, params, jax.tree.map(lambda x: x[:1], inputs))
    leaves = jax.tree.leaves(params)
    n = jax.tree.leaves(inputs)[0].shape[0]
    watched = watch(tapped)
    shapes = tapped.program.shapes
    more = {v: jnp.zeros(shapes[v].shape, shapes[v].dtype) for v in sorted(watched.slopes)}

    def single(taps: Taps, example: PyTree) -> tuple[PyTree, Any]:
        batch = jax.tree.map(lambda x: x[None], example)
        outputs, captures, values = tapped.run_all(leaves, batch, taps)
        kept = {v: values[v] for v in sorted(watched.values)}
        return jax.tree.map(lambda y: y[0], outputs), (captures, kept)

    taps = tapped.zeros._replace(variables=more)
    zeros = jax.tree.map(lambda z: jnp.zeros((n, *z.shape), z.dtype), taps)
    run = lambda taps: jax.vmap(single)(taps, inputs)
    outputs, pull, (captures, values) = jax.vjp(run, zeros, has_aux=True)
    pull_all = jax.vmap(lambda cotangent: pull(cotangent)[0])
    return Pullback(tapped, leaves, outputs, captures, values, pull_all)


def captured_inputs(
    apply: Apply, params: Params, inputs: PyTree
) -> tuple[Tapped, dict[Any, jax.Array]]:
    """What every site reads, by key, [n, ...]: the forward pass alone."""
    tapped = tap(apply, params, jax.tree.map(lambda x: x[:1], inputs))
    leaves = jax.tree.leaves(params)

    def single(example: PyTree) -> dict[Any, jax.Array]:
        return tapped.run(leaves, jax.tree.map(lambda x: x[None], example), tapped.zeros)[1]

    return tapped, jax.vmap(single)(inputs)
