"""How much each leaf should lose: shares found by the true loss, before single weights are chosen.

At high sparsity a quadratic cannot see that a layer has been emptied; the loss can. The scores of
every leaf are multiplied by a factor of its own, the factors walk at random, and a step is kept if
the loss of the masked weights on training examples falls. What counts in the end is how many
entries each leaf keeps.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.select.ranking import LeafSparsity, lowest
from jaxprune.surgeon.floors import leaf_numbers
from jaxprune.surgeon.local_model import LocalModel, Site
from jaxprune.surgeon.progress import Progress, silent
from jaxprune.types import Batch, Selection

Shares = dict[str, LeafSparsity]
"""Of each prunable leaf, by name."""


def is_global(site: Site) -> bool:
    """True if the selection lets leaves compete with each other, so that shares can be searched."""
    return site.select.fixed is None and sum(site.prunable) >= 2 and site.one_part()


def search_shares(
    model: LocalModel,
    site: Site,
    scores: Sequence[jax.Array],
    sparsity: float,
    judge: Batch,
    *,
    tries: int,
    key: jax.Array,
    told: Progress = silent,
) -> tuple[Selection, dict[str, float]]:
    """The selection with a sparsity a leaf, those of the masked weights with the lowest loss.

    A step that empties a leaf is not taken: there is no such sparsity.

    Args:
      scores: flat scores [d] to start from; each gets its share of the tries.
      judge: training examples.
      tries: losses evaluated.

    Returns:
      `jp.select.lowest({leaf: sparsity})`, and the loss before and after; the site's own selection
      where no step led to shares better than its.
    """
    leaf_of, leaves = leaf_numbers(site), len(site.sizes)
    rng = np.random.default_rng(np.asarray(jax.random.bits(key, (2,))))
    w = site.flat(site.params)

    def masked(score: jax.Array, factors: np.ndarray) -> tuple[float, Shares | None]:
        mask = site.choose(score * jnp.asarray(np.exp(factors), score.dtype)[leaf_of], sparsity)
        loss = model.loss_of(site.weights(jnp.where(mask, w, 0)), judge)
        return loss, _shares(site, mask)

    each = max(tries // len(scores), 1)
    best_loss, best, first_loss, done = np.inf, None, np.inf, 0
    for score in scores:
        factors, width = np.zeros(leaves), 1.0
        loss, shares = masked(score, factors)
        first_loss = min(first_loss, loss)
        for tried in range(each):
            step = factors + width * rng.normal(size=leaves)
            new_loss, new = masked(score, step - step.mean())
            if new_loss < loss and new is not None:
                loss, shares, factors = new_loss, new, step - step.mean()
            done += 1
            told("shares", done, each * len(scores))
            if (tried + 1) % max(each // 5, 1) == 0:
                width *= 0.6
        if loss < best_loss:
            best_loss, best = loss, shares
    losses = {"loss_global": first_loss, "loss_shares": best_loss}
    if best is None:
        return site.select, losses
    return lowest(best, prunable=site.select.prunable, floor=0), losses


def _shares(site: Site, mask: jax.Array) -> Shares | None:
    """The share of every prunable leaf that a mask [d] prunes; None if it empties one."""
    leaves = trees.select_leaves(site.mask(mask), site.prunable)
    names = [name for name, flag in zip(site.names, site.prunable, strict=True) if flag]
    # A leaf without entries has none to lose.
    found = {
        name: 1 - trees.keep(leaf) / leaf.size if leaf.size else 0.0
        for name, leaf in zip(names, leaves, strict=True)
    }
    return found if max(found.values()) < 1 else None
