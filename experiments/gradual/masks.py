"""What the masks did while a network trained, as JSON Lines."""

from __future__ import annotations

import json
import warnings
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
        text = path.read_text(errors="replace") if path.exists() else ""
        lines = text.splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]  # a kill may leave a part of one
        done = [_step_of(line) for line in whole]
        if None in done:
            warnings.warn(f"{path} has lines that are damaged; they were dropped.", stacklevel=2)
        kept = [line for line, at in zip(whole, done, strict=True) if at is not None and at < step]
        write_atomically(path, "".join(kept))

    def look(self, step: int, masks: Masks) -> None:
        """Compare with the last look."""
        changes = mask_changes(self.last, masks)
        if any(int(change.dropped) or int(change.revived) for change in changes.values()):
            append_changes(self.path, step, changes)
            self.last = _copied(masks)


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def _copied(masks: Masks) -> Masks:
    return jax.tree.map(jnp.copy, masks)  # the next step takes over the optimizer's state
