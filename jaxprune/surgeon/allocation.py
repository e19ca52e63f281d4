"""How much each leaf should lose: shares found by the true loss, before single weights are chosen.

At high sparsity a quadratic cannot see that a layer has been emptied; the loss can. The scores of
every leaf are multiplied by a factor of its own, the factors walk at random, and a step is kept if
the loss of the masked weights on training examples falls. What counts in the end is how many
entries each leaf keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.select.ranking import lowest
from jaxprune.surgeon.local_model import LocalModel, Site
from jaxprune.types import Batch, Selection


def is_global(site: Site) -> bool:
    """True if the selection lets leaves compete with each other, so that shares can be searched."""
    parts = site.parts()
    if parts is None or site.select.fixed is not None or sum(site.prunable) < 2:
        return False
    here = np.asarray(parts)
    return len(np.unique(here[here >= 0])) == 1


def search_shares(
    model: LocalModel,
    site: Site,
    scores: Sequence[jax.Array],
    sparsity: float,
    judge: Batch,
    *,
    tries: int,
    key: jax.Array,
    told: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> tuple[Selection, dict[str, float]]:
    """The selection with a sparsity a leaf, those of the masked weights with the lowest loss.

    Args:
      scores: flat scores [d] to start from; each gets its share of the tries.
      judge: training examples.
      tries: losses evaluated.

    Returns:
      `jp.select.lowest({leaf: sparsity})`, and the loss before and after.
    """
    leaf_of = _leaf_numbers(site)
    leaves = int(leaf_of.max()) + 1
    rng = np.random.default_rng(np.asarray(jax.random.bits(key, (2,))))
    w = site.flat(site.params)

    def masked(score: jax.Array, factors: np.ndarray) -> tuple[float, jax.Array]:
        mask = site.choose(score * jnp.asarray(np.exp(factors), score.dtype)[leaf_of], sparsity)
        return model.loss_of(site.weights(jnp.where(mask, w, 0)), judge), mask

    each = max(tries // len(scores), 1)
    best_loss, best_mask, first_loss, done = np.inf, None, np.inf, 0
    for score in scores:
        factors, width = np.zeros(leaves), 1.0
        loss, mask = masked(score, factors)
        first_loss = min(first_loss, loss)
        for tried in range(each):
            step = factors + width * rng.normal(size=leaves)
            new_loss, new_mask = masked(score, step - step.mean())
            if new_loss < loss:
                loss, mask, factors = new_loss, new_mask, step - step.mean()
            done += 1
            told("shares", done, each * len(scores))
            if (tried + 1) % max(each // 5, 1) == 0:
                width *= 0.6
        if loss < best_loss:
            best_loss, best_mask = loss, mask
    assert best_mask is not None
    return _with_counts(site, best_mask), {"loss_global": first_loss, "loss_shares": best_loss}


def _leaf_numbers(site: Site) -> np.ndarray:
    sizes = [int(np.size(x)) for x in trees.select_leaves(site.params, site.moving)]
    return np.repeat(np.arange(len(sizes)), sizes)


def _with_counts(site: Site, mask: jax.Array) -> Selection:
    """The selection that keeps as many entries of every leaf as a mask does."""
    kept = site.mask(mask)
    shares = {
        name: 1 - int(jnp.sum(leaf)) / max(leaf.size, 1)
        for name, leaf, flag in zip(site.names, jax.tree.leaves(kept), site.prunable, strict=True)
        if flag
    }
    return lowest(shares, prunable=site.select.prunable, floor=0)
