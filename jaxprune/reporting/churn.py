"""What a mask update did: entries dropped and revived, leaf by leaf, and a JSON line of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxprune import trees
from jaxprune.types import Mask


class MaskChange(NamedTuple):
    """What changed in one leaf's mask; integers, arrays inside jit.

    Attributes:
      entries: entries of the leaf.
      kept: entries the new mask keeps.
      dropped: kept before and pruned now.
      revived: pruned before and kept now; 0 where pruned stays pruned.
    """

    entries: int
    kept: Any
    dropped: Any
    revived: Any

    @property
    def sparsity(self) -> Any:
        """The fraction of the entries that the new mask prunes."""
        return 1 - self.kept / max(self.entries, 1)

    @property
    def churn(self) -> Any:
        """The fraction of the entries that changed, dropped or revived."""
        return (self.dropped + self.revived) / max(self.entries, 1)


def mask_changes(old: Mask, new: Mask) -> dict[str, MaskChange]:
    """Counts of what changed between two masks, by leaf name; pure, also inside jit.

    Args:
      old: the mask before, a bool tree, True = kept. Read it (`jax.tree.map(jnp.copy, ..)`)
        before a step that donates the optimizer state.
      new: the mask after, of the same structure and shapes.

    Returns:
      A `MaskChange` for every leaf.

    Raises:
      ValueError: structures or shapes differ, the leaf is named; two leaves of one name.
      TypeError: a mask not bool.

    Example:
      >>> import jax.numpy as jnp
      >>> old, new = jnp.array([True, True, False, False]), jnp.array([True, False, True, False])
      >>> change = mask_changes({"kernel": old}, {"kernel": new})["kernel"]
      >>> change, change.sparsity, change.churn
      (MaskChange(entries=4, kept=2, dropped=1, revived=1), 0.5, 0.5)
    """
    trees.check_like(old, old, "old mask", boolean=True)
    trees.check_like(old, new, "new mask", boolean=True)
    trees.check_names(trees.paths(old))
    pairs = zip(trees.named_leaves(old), trees.named_leaves(new), strict=True)
    return {
        name: MaskChange(
            trees.count(now), trees.keep(now), trees.keep(before & ~now), trees.keep(now & ~before)
        )
        for (name, before), (_, now) in pairs
    }


def append_changes(
    path: str | os.PathLike[str], step: int, changes: Mapping[str, MaskChange]
) -> None:
    """Append one mask update to a JSON Lines file.

    A line is `{"step", "sparsity", "churn", "revived", "leaves": {name: {"sparsity", "churn",
    "dropped", "revived", "kept", "entries"}}}`; the first numbers are over all leaves given.

    Args:
      path: the file; made if it does not exist, its folder must.
      step: the step of the update.
      changes: what `mask_changes` returned, outside jit; leave out leaves that are never pruned.

    Raises:
      ValueError: no leaf. TypeError: counts still traced.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "masks.jsonl"
      >>> append_changes(path, 100, {"kernel": MaskChange(4, kept=2, dropped=1, revived=1)})
      >>> json.loads(path.read_text())["churn"]
      0.5
    """
    if not changes:
        raise ValueError("There is no leaf to write about: pass what `mask_changes` returned.")
    if trees.is_traced(changes):
        raise TypeError("The counts are traced: return them from the jitted function, then write.")
    leaves = {name: MaskChange(*map(int, change)) for name, change in changes.items()}
    whole = MaskChange(*map(sum, zip(*leaves.values(), strict=True)))
    line = {
        "step": int(step),
        "sparsity": whole.sparsity,
        "churn": whole.churn,
        "revived": whole.revived,
        "leaves": {name: _numbers(change) for name, change in leaves.items()},
    }
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _numbers(change: MaskChange) -> dict[str, Any]:
    return {"sparsity": change.sparsity, "churn": change.churn, **change._asdict()}
