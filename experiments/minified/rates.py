"""Learning rates: of every arm, level and size the one that is best on validation examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from experiments.minified.lab import ARMS, Lab, trials
from experiments.training import Budget
from jaxprune.types import Apply, Params

Budgets = Mapping[str, Budget]


def name_of(level: str) -> str:
    """A piece's name in the ledger."""
    return f"rates {level}"


def budgets(
    lab: Lab,
    level: str,
    train: Callable[[str, Budget], Params],
    *,
    arms: Iterable[str] = ARMS,
    apply: Apply | None = None,
) -> Budgets:
    """The budgets of a level's arms, each with its own best rate; chosen once, then read.

    Args:
      lab: whose configuration names the rates.
      level: what is trained, and at which size.
      train: `(arm, budget) -> stacked networks`, on a network that stands for the level.
      arms: which.
      apply: the network, if not the dense one.
    """
    if name_of(level) not in lab.book.pieces:
        tried = {arm: _tried(lab, arm, train, apply) for arm in arms}
        best = {arm: max(found, key=lambda rate: found[rate]) for arm, found in tried.items()}
        said = {
            arm: {f"{rate:g}": value for rate, value in found.items() if not math.isnan(value)}
            for arm, found in tried.items()
        }
        lab.book.record(name_of(level), {**best, "validation": said})
    chosen = lab.book.pieces[name_of(level)]
    return {arm: lab.budget_of(arm, chosen[arm]) for arm in arms}


def _tried(
    lab: Lab, arm: str, train: Callable[[str, Budget], Params], apply: Apply | None
) -> dict[float, float]:
    """Mean validation quality after training with each rate; NaN where there is no choice."""
    if len(lab.config.rates) == 1:
        return {lab.config.rates[0]: math.nan}
    networks = trials(lab.config.rates, lambda rate: train(arm, lab.budget_of(arm, rate)))
    return {rate: lab.promise(params, apply) for rate, params in networks.items()}


def nearest(size: float, sizes: Iterable[float]) -> float:
    """The size whose ratio to another is nearest to 1.

    Example:
      >>> nearest(0.02, (0.5, 0.1, 0.01))
      0.01
    """
    return min(sizes, key=lambda other: abs(np.log(other / size)))


def told(pieces: Mapping[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """(level, arm -> rate) of every choice that is recorded."""
    start = name_of("")
    return [
        (name.removeprefix(start), {arm: piece[arm] for arm in ARMS if arm in piece})
        for name, piece in pieces.items()
        if name.startswith(start)
    ]
