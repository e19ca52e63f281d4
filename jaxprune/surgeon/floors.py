"""How many entries every leaf has to keep, where entries of several leaves change places.

A selection's floor is inside its `choose`; it is read off here, so that swaps respect it too.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.surgeon.local_model import Site


def leaf_numbers(site: Site) -> jax.Array:
    """Which of the moving leaves an entry belongs to, [d]."""
    return jnp.asarray(np.repeat(np.arange(len(site.sizes), dtype=np.int32), site.sizes))


def least_kept(site: Site, sparsity: Any) -> jax.Array:
    """What the selection keeps of a leaf whose scores are the lowest of all, [leaves].

    0 for leaves that do not share a part with another one: their counts never change.
    """
    leaf = leaf_numbers(site)
    least = np.zeros(len(site.sizes), np.int32)
    parts = site.parts()
    if parts is None:
        return jnp.asarray(least)
    where = np.asarray(parts)
    inside = where >= 0
    pairs = np.unique(np.stack([where[inside], np.asarray(leaf)[inside]]), axis=1)
    shared = np.bincount(pairs[0], minlength=1)[pairs[0]] > 1
    for number in np.unique(pairs[1][shared]):
        kept = site.choose(jnp.where(leaf == number, 0, 1).astype(site.dtype), sparsity)
        least[number] = int(jnp.sum(kept & (leaf == number)))
    return jnp.asarray(least)


@jax.jit
def protected(
    parts: jax.Array, mask: jax.Array, value: jax.Array, leaf: jax.Array, least: jax.Array
) -> jax.Array:
    """The parts, with -1 for the best kept entries of every leaf: as many as it has to keep.

    Args:
      parts, mask: [d].
      value: [d], larger is better.
      leaf: [d], from `leaf_numbers`.
      least: [leaves], from `least_kept`.
    """
    shown = jnp.where(mask & (parts >= 0), value, -jnp.inf)
    order = jnp.lexsort((-shown, leaf))
    start = jnp.searchsorted(leaf, jnp.arange(least.size))  # leaves follow each other
    rank = jnp.zeros(leaf.shape, jnp.int32).at[order].set(jnp.arange(leaf.size, dtype=jnp.int32))
    return jnp.where(mask & (rank - start[leaf] < least[leaf]), -1, parts)
