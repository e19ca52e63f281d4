"""What is compared: ways to prune weights, ways to remove units, and how much of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from jaxprune.types import Mask, Params

PATTERN = "2:4"
WEIGHTS = {
    "magnitude, global": ("magnitude", "global"),
    "magnitude": ("magnitude", "layer"),
    "Taylor": ("taylor", "global"),
    "Fisher": ("fisher", "global"),
    "Wanda": ("wanda", "output"),
    "SparseGPT": ("sparse_gpt", "layer"),
    "ExactOBS": ("exact_obs", "layer"),
    "magnitude, 2:4": ("magnitude", PATTERN),
    "Wanda, 2:4": ("wanda", PATTERN),
    "SparseGPT, 2:4": ("sparse_gpt", PATTERN),
    "ExactOBS, 2:4": ("exact_obs", PATTERN),
}
"""Ways to prune weights: what scores or decides, and which weights compete."""
UNITS = ("magnitude", "Fisher", "Fisher per parameter", "Fisher, rebuilt")
"""Ways to choose units: of each group the same share; per parameter, all groups compete. Rebuilt:
what reads the kept units is solved for once more, by least squares."""


@dataclass(frozen=True)
class Config:
    """A comparison.

    Attributes:
      model: which network.
      preset: how much.
      seeds: draws of the calibration examples, >= 2.
      calibration: examples of a draw, all of them fine-tune.
      scored: the first of them, which scores and surgeons see.
      test: examples that networks are measured on.
      weights, sparsities: ways of `WEIGHTS`, and shares of prunable weights that go.
      units, budgets: ways of `UNITS`, and shares of all parameters that stay.
      steps, batch, rates: of fine-tuning; every arm has one of these rates.
      timed: examples of a call whose milliseconds are measured.
    """

    model: str
    preset: str
    seeds: int
    calibration: int
    scored: int
    test: int
    weights: tuple[str, ...]
    sparsities: tuple[float, ...]
    units: tuple[str, ...]
    budgets: tuple[float, ...]
    steps: int
    batch: int
    rates: tuple[float, ...]
    timed: tuple[int, ...] = (1, 64)


class Arm(NamedTuple):
    """One way at one size.

    Attributes:
      family: "weights" or "units".
      way: of `WEIGHTS` or `UNITS`.
      size: the sparsity of the prunable weights, or the share of parameters that stays.
    """

    family: str
    way: str
    size: float

    @property
    def name(self) -> str:
        """Of the piece, without the seed."""
        return f"{self.family} {self.way} {self.size:g}"


class Small(NamedTuple):
    """A pruned network.

    Attributes:
      params: masked arrays, or really smaller ones.
      mask: like them, True = kept.
      widths: units kept by group; none of a masked network.
    """

    params: Params
    mask: Mask
    widths: dict[str, int] | None = None


def arms(config: Config) -> list[Arm]:
    """All of them, by family and size; the pattern at its own sparsity."""
    free = [way for way in config.weights if WEIGHTS[way][1] != PATTERN]
    found = [Arm("weights", way, size) for size in config.sparsities for way in free]
    found += [Arm("weights", way, 0.5) for way in config.weights if way not in free]
    return found + [Arm("units", way, size) for size in config.budgets for way in config.units]
