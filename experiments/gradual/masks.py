"""What the masks did while a network trained, as JSON Lines."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp

from experiments.ledger import write_atomically
from jaxprune.reporting import append_changes, mask_changes

Masks = dict[str, jax.Array]


class Watch:
    """Writes a line whenever masks have changed.

    Args:
      path: of the JSON Lines; lines of steps that a restart does again are dropped.
      masks: at the start, by leaf name.
      step: steps done.
    """

    def __init__(self, path: Path, masks: Masks, step: int):
        self.path, self.last = path, _copied(masks)
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]  # a kill may leave a part of one
        kept = [line for line in whole if json.loads(line)["step"] < step]
        write_atomically(path, "".join(kept))

    def look(self, step: int, masks: Masks) -> None:
        """Compare with the last look."""
        changes = mask_changes(self.last, masks)
        if any(int(change.dropped) or int(change.revived) for change in changes.values()):
            append_changes(self.path, step, changes)
            self.last = _copied(masks)


def _copied(masks: Masks) -> Masks:
    return jax.tree.map(jnp.copy, masks)  # the next step takes over the optimizer's state
