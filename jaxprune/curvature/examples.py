"""Sums over examples of per-example quantities, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import objective, trees
from jaxprune.types import Batch, Params, PyTree

MICROBATCH = 32


def check_positive(name: str, value: Any) -> None:
    """Raise unless the named argument is an integer >= 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` is how many are taken, an integer >= 1; got {value!r}.")


def mean_over_examples(
    one: Callable[[Batch], PyTree], batch: Batch, microbatch: int = MICROBATCH
) -> PyTree:
    """The mean over examples of `one(example)`, `microbatch` examples at a time.

    Args:
      one: maps a batch of ONE example (leading axis 1) to a pytree of arrays.
      batch: a batch of N examples.
      microbatch: examples whose results are in memory at once.
    """
    n = objective.batch_size(batch)
    batch = jax.tree.map(jnp.asarray, batch)

    def chunk_sum(chunk: Batch) -> PyTree:
        each = jax.vmap(lambda example: one(jax.tree.map(lambda x: x[None], example)))(chunk)
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), each)

    whole, rest = divmod(n, min(microbatch, n))
    size = min(microbatch, n)
    head = jax.tree.map(lambda x: x[: whole * size].reshape(whole, size, *x.shape[1:]), batch)
    first = chunk_sum(jax.tree.map(lambda x: x[0], head))
    total = first
    if whole > 1:
        step = lambda acc, chunk: (jax.tree.map(jnp.add, acc, chunk_sum(chunk)), None)
        total, _ = jax.lax.scan(step, first, jax.tree.map(lambda x: x[1:], head))
    if rest:
        tail = chunk_sum(jax.tree.map(lambda x: x[whole * size :], batch))
        total = jax.tree.map(jnp.add, total, tail)
    return jax.tree.map(lambda x: x / n, total)


def widened(params: Params) -> tuple[list[jax.Array], Callable[[list[Any]], Params], list[bool]]:
    """The real floating leaves in score precision: second derivatives in bfloat16 are noise."""
    leaves, merge, flags = objective.by_leaves(params)
    return [leaf.astype(trees.score_dtype(leaf)) for leaf in leaves], merge, flags
