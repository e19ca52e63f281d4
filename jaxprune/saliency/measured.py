"""Saliencies from what they measure: summed over examples, scored once at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import objective
from jaxprune.types import Batch, Batches, Params, Saliency, Scores, Stats


def from_means(
    means: Callable[[Params, Batch], Any], score: Callable[[Params, Any], Scores]
) -> Saliency:
    """A saliency from a function that returns means over examples, and a score of such means.

    What is stored are sums, `N * means`, so that stats of several batches add to those of one big
    batch; `score` sees the means over everything that was added.
    """

    def measure(params: Params, batch: Batch) -> Stats:
        n = objective.batch_size(batch)
        return Stats(jnp.int32(n), jax.tree.map(lambda x: x * n, means(params, batch)))

    def score_sums(params: Params, stats: Stats) -> Scores:
        return score(params, jax.tree.map(lambda x: x / stats.count, stats.sums))

    return Saliency(measure, jax.jit(score_sums))


def without_data(
    score: Callable[[Params], Scores], entry: Callable[[Any], jax.Array] | None = None
) -> Saliency:
    """A saliency that looks at the parameters alone; its batch may be None."""

    def measure(params: Params, batch: Batch) -> Stats:
        return Stats(jnp.int32(0), ())

    return Saliency(measure, jax.jit(lambda params, stats: score(params)), entry)


def add(first: Stats, second: Stats) -> Stats:
    """Stats of two sets of examples together.

    Example:
      >>> add(Stats(jnp.int32(2), 1.5), Stats(jnp.int32(3), 0.5))
      Stats(count=Array(5, dtype=int32), sums=2.0)
    """
    return jax.tree.map(lambda a, b: a + b, first, second)


def over_batches(saliency: Saliency) -> Saliency:
    """The same saliency where `batch` is an iterable of batches, measured one by one and added.

    Equal to one big batch up to rounding, however the examples are split. The iterable is read
    once, so a generator that loads from disk will do.

    Raises:
      TypeError: a plain function of `(params, batch)`: what it returns cannot be added.
      ValueError: an iterable without batches.
    """
    if not isinstance(saliency, Saliency):
        raise TypeError(
            "A plain function (params, batch) -> scores cannot be accumulated over batches: "
            "averaging scores is not scoring averages. Make it a Saliency(measure, score)."
        )

    def measure(params: Params, batches: Batches) -> Stats:
        total: Stats | None = None
        for batch in batches:
            stats = saliency.measure(params, batch)
            total = stats if total is None else add(total, stats)
        if total is None:
            raise ValueError("No batches to measure: the iterable was empty (or already read).")
        return total

    return Saliency(measure, saliency.score)
