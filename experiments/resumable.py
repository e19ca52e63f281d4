"""A training loop on all local devices that loses a minute at most to a kill."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import jaxprune as jp
from experiments.locking import alone

SAVE_SECONDS = 60.0
SHOWN = 50
"""Steps between two looks at the loss."""


class Placement(NamedTuple):
    """Where arrays lie.

    Attributes:
      split: batches, a part of the examples on every device.
      whole: everything else, on every device.
    """

    split: NamedSharding
    whole: NamedSharding


def placement(batch: int) -> Placement:
    """On all local devices.

    Raises:
      ValueError: they cannot share a batch.
    """
    devices = jax.local_devices()
    if batch % len(devices):
        raise ValueError(
            f"A batch of {batch} examples cannot be shared by {len(devices)} devices. Choose a "
            "`batch` that is a multiple of their number."
        )
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    return Placement(*(NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ())))


def warmed_cosine(rate: float, steps: int) -> optax.Schedule:
    """A rate that rises in a twentieth of the steps and falls to 0 along a cosine."""
    warm = max(steps // 20, 1)
    return optax.warmup_cosine_decay_schedule(0.0, rate, warm, max(steps, warm + 1))


def running_mean(mean: jax.Array, loss: jax.Array, step: jax.Array) -> jax.Array:
    """The mean of all losses so far, after a hundred steps one that forgets; step counts from 0."""
    return mean + jnp.maximum(1 / (step + 1), 0.01) * (loss - mean)


def whole(folder: Path, like: Any) -> Any | None:
    """The newest checkpoint that can be read, restored into a tree like it; None if there is none.

    Damaged ones are named in a warning and set aside, so that their steps can be saved again.
    """
    for step in reversed(jp.checkpoint.steps(folder)):
        try:
            return jp.checkpoint.restore(folder, like, step=step)
        except jp.checkpoint.Damaged as problem:
            aside = folder / f"{step}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            (folder / str(step)).rename(aside)
            warnings.warn(
                f"{problem} It was moved to {aside.name}; the run goes on from the checkpoint "
                "before it, or starts over if there is none.",
                stacklevel=2,
            )
    return None


def newest(folder: Path, start: Callable[[], Any]) -> Any:
    """The state of the newest whole checkpoint, or that before the first step."""
    found = whole(folder, jax.eval_shape(start))
    return start() if found is None else found


def made_once(folder: Path, like: Any, make: Callable[[], Any], step: int) -> Any:
    """A tree as it was saved; made and saved first if there is no checkpoint that can be read.

    One process makes it, others wait for it. What is held is the folder of the checkpoints and not
    the one above, which a ledger holds while it writes.
    """
    with alone(folder, wait=True):
        if (found := whole(folder, like)) is None:
            jp.checkpoint.save(folder, make(), step=step)
            found = jp.checkpoint.restore(folder, like, step=step)
    return found


def advance(
    state: Any,
    steps: int,
    folder: Path,
    update: Callable[[Any, int], Any],
    *,
    told: Callable[[int], None],
    look: Callable[[int, Any], None] = lambda step, state: None,
    failing: str = "The loss is not finite.",
    begun: int = 0,
) -> Any:
    """Take the steps that are left, with checkpoints on the way and at the end.

    Args:
      state: has the steps that are done as `step`, and a running mean as `loss`.
      steps: in all.
      folder: of the checkpoints.
      update: `(state, step) -> state`; may donate its state.
      told: called with the number of steps done since it was last called, at first with those of
        earlier processes too.
      look: called with the steps done and the state after every step, before that is saved.
      failing: what to do about a loss that is not finite.
      begun: the step that the first process began at.

    Raises:
      FloatingPointError: the loss is NaN or infinite.
    """
    saved, step, shown = time.monotonic(), int(state.step), begun
    while step < steps:
        state = update(state, step)
        step += 1
        if step % 16 == 0:
            jax.block_until_ready(state.loss)  # not thousands of steps ahead
        look(step, state)
        if step % SHOWN == 0 or step == steps:
            if not np.isfinite(loss := float(state.loss)):
                raise FloatingPointError(f"The loss is {loss} after {step} steps. {failing}")
            told(step - shown)
            shown = step
        if time.monotonic() - saved > SAVE_SECONDS or step == steps:
            # Two on the way, so that one may be damaged; at the end there is no use for the older.
            jp.checkpoint.save(folder, state, step=step, keep=1 if step == steps else 2)
            saved = time.monotonic()
    return state
