"""Random magnitude pruning: many masks near the one of least magnitude, the best by true loss."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.surgeon.local_model import LocalModel, Site
from jaxprune.surgeon.progress import Progress, silent
from jaxprune.types import Batch


class Drawn(NamedTuple):
    """The best of many draws.

    Attributes:
      mask: [d].
      draw: which one it was; 0 is plain magnitude.
      losses: of all.
    """

    mask: jax.Array
    draw: int
    losses: list[float]


def buckets_for(entries: int) -> int:
    """`max(1, min(floor(sqrt N), 1000))`, as in the paper.

    Example:
      >>> from jaxprune.surgeon.partitions import buckets_for
      >>> buckets_for(10), buckets_for(10**8)
      (3, 1000)
    """
    return max(1, min(math.isqrt(entries), 1000))


@partial(jax.jit, static_argnames="buckets")
def bucket_quantiles(
    magnitude: jax.Array, candidates: jax.Array, key: jax.Array, *, buckets: int
) -> jax.Array:
    """Where each magnitude stands within its random bucket, in [0, 1).

    Pruning the lowest of them prunes the same share of every bucket; where the shares do not come
    out even, random buckets lose one more.

    Args:
      magnitude: [d].
      candidates: [d] bool; the others are in no bucket and get 1.
      key: of the partition.
      buckets: how many, of sizes that differ by at most 1.

    Returns:
      [d].

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxprune.surgeon.partitions import bucket_quantiles
      >>> size, there = jnp.array([3.0, 1.0, 2.0, 4.0]), jnp.ones(4, bool)
      >>> found = bucket_quantiles(size, there, jax.random.key(0), buckets=1)
      >>> jnp.argsort(found)
      Array([1, 2, 0, 3], dtype=int32)
    """
    d, dtype = magnitude.size, magnitude.dtype
    places, shifts = jax.random.split(key)
    shuffled = jnp.argsort(jnp.where(candidates, jax.random.uniform(places, (d,)), 2))
    place = jnp.zeros(d, jnp.int32).at[shuffled].set(jnp.arange(d, dtype=jnp.int32))
    bucket = jnp.where(candidates, place % buckets, buckets)
    order = jnp.lexsort((magnitude, bucket))
    sizes = jnp.zeros(buckets + 1, jnp.int32).at[bucket].add(1)
    start = jnp.cumsum(sizes) - sizes
    where = jnp.zeros(d, jnp.int32).at[order].set(jnp.arange(d, dtype=jnp.int32))
    rank = (where - start[bucket]).astype(dtype)
    shift = jax.random.uniform(shifts, (buckets + 1,), dtype)[bucket]
    return jnp.where(candidates, (rank + shift) / jnp.maximum(sizes[bucket], 1), 1)


def best_draw(
    model: LocalModel,
    site: Site,
    sparsity: Any,
    judge: Batch,
    *,
    draws: int,
    buckets: int | None,
    key: jax.Array,
    told: Progress = silent,
) -> Drawn:
    """The mask of the lowest true loss of its weights; draw 0 is plain magnitude, in one bucket.

    One draw alone is not judged.
    """
    w = site.flat(site.params)
    magnitude = jnp.abs(w)
    count = buckets or buckets_for(int(jnp.sum(site.candidates)))
    best, chosen, losses = float("inf"), 0, []
    mask = site.choose(magnitude, sparsity)
    for draw in range(draws if draws > 1 else 0):
        found = mask
        if draw:
            own = jax.random.fold_in(key, draw)
            score = bucket_quantiles(magnitude, site.candidates, own, buckets=count)
            found = site.choose(score, sparsity)
        losses.append(model.loss_of(site.weights(jnp.where(found, w, 0)), judge))
        if losses[-1] < best:
            best, chosen, mask = losses[-1], draw, found
        told("draw", draw + 1, draws)
    return Drawn(mask, chosen, losses)
