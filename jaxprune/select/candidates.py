"""What a selection chooses from: scores that are finite, with `-inf` for what is pruned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.select import checks
from jaxprune.types import (
    Batch,
    Formed,
    Mask,
    Params,
    Pruned,
    ScoreFunction,
    Scores,
    Selection,
)


def mask_in(mask: Mask | Pruned) -> Mask:
    """A mask: of what a Pruner returned its mask, anything else as it is."""
    return mask.mask if isinstance(mask, Pruned) else mask


def losing(select: Selection) -> tuple[str, ...]:
    """The groups that a selection of units can take some from."""
    return select.groups or tuple(select.coupling.groups)


def scores_of(saliency: ScoreFunction, select: Selection, params: Params, batch: Batch) -> Scores:
    """A saliency's scores; inside jit formed as they are read, where both sides can do that."""
    formed = getattr(saliency, "formed", None)
    if formed is None or not select.takes_formed or not trees.is_traced(params):
        return saliency(params, batch)
    return formed(params, batch)


def candidates(
    select: Selection, params: Params, scores: Scores, mask: Mask | None
) -> tuple[Scores, jax.Array | None]:
    """The scores that a selection chooses from, `-inf` for what the mask has pruned.

    Returns:
      The scores (by unit, for a selection of units), and inside jit how many are bad.

    Raises:
      ValueError: trees that differ, NaN or infinite scores; the leaf or the group is named.
    """
    if select.coupling is None:
        trees.check_like(params, scores, "scores")
        flags = trees.prunable_flags(params, select.prunable)
        ours = [name for flag, name in zip(flags, trees.paths(scores), strict=True) if flag]
        bad = _bad_scores(ours, trees.select_leaves(scores, flags), checks.ENTRIES)
        return (scores if mask is None else _hide_pruned(scores, mask, flags)), bad
    assert select.read is not None
    units = select.read(scores)
    names = losing(select)
    bad = _bad_scores(names, [units[name] for name in names], checks.UNITS)
    # Those of protected groups are ranked with nothing, so that an `-inf` there prunes nothing.
    units = {name: s if name in names else jnp.zeros_like(s) for name, s in units.items()}
    if mask is not None:
        kept = select.coupling.kept(mask)
        units = {name: jnp.where(kept[name], s, -jnp.inf) for name, s in units.items()}
    return units, bad


def check_prunable(select: Selection, params: Params) -> None:
    """Raise unless a selection has something to choose from in a tree.

    Raises:
      ValueError: nothing is prunable, or the tree is not the one that was coupled.
      TypeError: a leaf to prune that is not floating-point.
    """
    if select.coupling is None:
        trees.prunable_flags(params, select.prunable)
    else:
        select.coupling.check(params)


def _bad_scores(
    names: Sequence[str], leaves: Sequence[Any], words: checks.Words
) -> jax.Array | None:
    """The number of NaN or infinite scores inside jit; outside, raise if there is one.

    Raises:
      ValueError: names the leaf or the group and counts its bad entries or units.
    """
    found = [_not_finite(leaf) for leaf in leaves]
    if trees.is_traced(found):
        return sum((bad.astype(jnp.int32) for bad in found), jnp.int32(0))
    for name, leaf, bad in zip(names, leaves, found, strict=True):
        if bad:
            kind = "NaN or infinite" if jnp.isnan(leaf).any() else "infinite"
            raise ValueError(
                f"The score of {words.part(name)} is {kind} at {int(bad)} of {np.size(leaf)} "
                f"{words.things}. Check the loss and the parameters for NaN; if this saliency "
                f"cannot score it, {words.leave_out}."
            )
    return None


def _not_finite(leaf: Any) -> Any:
    if trees.on_host(leaf):
        return np.count_nonzero(~np.isfinite(np.asarray(leaf)))
    return _count_not_finite(leaf.read() if isinstance(leaf, Formed) else leaf)


@jax.jit
def _count_not_finite(leaf: jax.Array) -> jax.Array:
    return trees.total(~jnp.isfinite(leaf))


def _hide_pruned(scores: Scores, mask: Mask, flags: list[bool]) -> Scores:
    """Scores with `-inf` where the mask is False, so that a selection never keeps it."""
    hidden = [
        _hidden(m, s)
        for m, s in zip(
            trees.select_leaves(mask, flags), trees.select_leaves(scores, flags), strict=True
        )
    ]
    return trees.replace_leaves(scores, flags, hidden)


def _hidden(kept: Any, scores: Any) -> Any:
    if not isinstance(scores, Formed):
        return jnp.where(kept, scores, -jnp.inf)
    form = lambda *parts: jnp.where(parts[-1], scores.form(*parts[:-1]), -jnp.inf)
    return Formed((*scores.arrays, kept), form, scores.dtype)
