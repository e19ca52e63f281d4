"""Saliencies from what they measure: summed over examples, scored once at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import objective, trees
from jaxprune.types import Batch, Batches, Formed, Params, Saliency, Scores, Stats


def from_means(
    means: Callable[[Params, Batch], Any],
    score: Callable[[Params, Any], Scores],
    *,
    entrywise: bool = False,
) -> Saliency:
    """A saliency from a function that returns means over examples, and a score of such means.

    What is stored are sums, `N * means` in score precision, so that stats of several batches add to
    those of one big batch; `score` sees the means over everything that was added.

    Args:
      means: `(params, batch) -> means`.
      score: `(params, means) -> scores`.
      entrywise: means are a tree like `params` or a container of such trees, and every score is
        a product of that entry of them and of `params`. So `score` takes a bare leaf too, and is
        the same to the last bit wherever it is formed: XLA may fuse a sum with a product, and
        not in every place alike.
    """

    def measure(params: Params, batch: Batch) -> Stats:
        n = objective.batch_size(batch)
        sums = jax.tree.map(lambda x: _wide(x) * n, means(params, batch))
        return Stats(jnp.int32(n), sums)

    def score_sums(params: Params, stats: Stats) -> Scores:
        return score(params, jax.tree.map(lambda x: x / stats.count, stats.sums))

    def formed(params: Params, batch: Batch) -> Scores:
        n, found = objective.batch_size(batch), means(params, batch)

        def leaf(w: Any, of: Any) -> Formed:
            parts, kind = jax.tree.flatten(of)  # type: tuple[list[Any], Any]

            def form(w: Any, *parts: Any) -> jax.Array:  # as measured, then scored
                sums = kind.unflatten([_wide(x) * n for x in parts])
                return score_sums(w, Stats(jnp.int32(n), sums))

            return Formed((jnp.asarray(w), *parts), form, trees.score_dtype(w))

        like: Any = jax.tree.structure(params)
        outer = jax.tree.structure(found, is_leaf=lambda tree: jax.tree.structure(tree) == like)
        return jax.tree.map(leaf, params, jax.tree.transpose(outer, like, found))

    return Saliency(measure, jax.jit(score_sums), formed if entrywise else None)


def _wide(mean: Any) -> jax.Array:
    return jnp.asarray(mean).astype(trees.score_dtype(mean))


def without_data(
    score: Callable[[Params], Scores], entry: Callable[[Any], jax.Array] | None = None
) -> Saliency:
    """A saliency that looks at the parameters alone; its batch may be None.

    Args:
      score: `params -> scores`.
      entry: where every score depends on that entry alone, `leaf -> scores` of one leaf, which
        compiles nothing for a leaf in the host's memory.
    """

    def measure(params: Params, batch: Batch) -> Stats:
        return Stats(jnp.int32(0), ())

    compiled = jax.jit(lambda params, stats: score(params))
    if entry is None:
        return Saliency(measure, compiled)

    def scored(params: Params, stats: Stats) -> Scores:
        direct = all(trees.on_host(leaf) for leaf in jax.tree.leaves(params))
        return score(params) if direct else compiled(params, stats)

    def formed(params: Params, batch: Batch) -> Scores:
        form = lambda leaf: Formed((jnp.asarray(leaf),), entry, trees.score_dtype(leaf))
        return jax.tree.map(form, params)

    return Saliency(measure, scored, formed)


def add(first: Stats, second: Stats) -> Stats:
    """Stats of two sets of examples together.

    Example:
      >>> add(Stats(jnp.int32(2), 1.5), Stats(jnp.int32(3), 0.5))
      Stats(count=Array(5, dtype=int32), sums=2.0)
    """
    return jax.tree.map(lambda a, b: a + b, first, second)


def over_batches(saliency: Saliency) -> Saliency:
    """The same saliency where `batch` is an iterable of batches, measured one by one and added.

    Equal to one big batch up to rounding, however the examples are split, unless the saliency draws
    (`true_fisher_diagonal` with a key): then every batch draws anew from the same key. The iterable
    is read once, so a generator that loads from disk will do.

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
