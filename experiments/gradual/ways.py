"""The ways to a sparse network that are compared, each an Optax transformation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax

import jaxprune as jp
from experiments.gradual.task import Config, Task
from jaxprune.types import Predicate

DENSE, GRADUAL = "dense", "gradual"
WAYS = (DENSE, GRADUAL, "global", "straight through", "rigl", "set")


class Arm(NamedTuple):
    """What is trained.

    Attributes:
      way: one of `WAYS`.
      width: of the network.
      sparsity: of its pruned leaves in the end.
      seed: chooses first weights, batches and dropout.
      rate: peak rate of Adam.
    """

    way: str
    width: float
    sparsity: float
    seed: int
    rate: float

    @property
    def name(self) -> str:
        """The piece's name in the ledger."""
        return f"{self.kind} seed {self.seed}"

    @property
    def kind(self) -> str:
        """What all seeds of an arm share."""
        return f"{self.way} width {self.width:g} sparsity {self.sparsity:g} rate {self.rate:g}"


def trials(config: Config) -> list[Arm]:
    """The first seed of every dense network at every rate."""
    widths = (*config.small, config.large)
    return [Arm(DENSE, width, 0.0, 0, rate) for width in widths for rate in config.rates]


def choose_rates(config: Config, task: Task, pieces: Mapping[str, Any]) -> dict[float, float]:
    """Every width's rate: the one whose trial is best on validation examples.

    Raises:
      FloatingPointError: a width has no finished trial.
    """
    chosen: dict[float, float] = {}
    best = min if task.lower else max
    for width in (*config.small, config.large):
        tried = {
            arm.rate: pieces[arm.name]["validation"][task.quality]
            for arm in trials(config)
            if arm.width == width and arm.name in pieces
        }
        if not tried:
            raise FloatingPointError(
                f"No rate of {config.rates} trains the dense network of width {width:g}: its loss "
                "is not finite. Lower the rates."
            )
        chosen[width] = best(tried, key=lambda rate: tried[rate])
    return chosen


def arms(config: Config, rates: Mapping[float, float]) -> list[Arm]:
    """Every arm at its width's rate; all arms of a seed come before the next seed's."""
    kinds = [(DENSE, width, 0.0) for width in (*config.small, config.large)]
    kinds += [(GRADUAL, config.large, sparsity) for sparsity in config.sparsities]
    kinds += [(way, config.large, s) for s in config.other_sparsities for way in config.others]
    return [Arm(*kind, seed, rates[kind[1]]) for seed in range(config.seeds) for kind in kinds]


def with_zeros(
    plain: optax.GradientTransformation, config: Config, prunable: Predicate, arm: Arm
) -> optax.GradientTransformation:
    """The optimizer of an arm: the plain one, and what brings and keeps the zeros.

    Zhu and Gupta's way is "gradual": the same sparsity in every layer, rising along a cubic while
    the rate is high. The others are "global" (one threshold for all layers), "straight through"
    (pruned weights go on learning), and sparse from the first step: "rigl" and "set".
    """
    if arm.way == DENSE:
        return plain
    begin, end = round(config.begin * config.steps), round(config.end * config.steps)
    if arm.way in ("rigl", "set"):
        return jp.regrow(
            plain, every=config.every, stop=end, sparsity=arm.sparsity, prunable=prunable,
            grow="gradient" if arm.way == "rigl" else "random", key=jax.random.key(arm.seed + 1000),
        )  # fmt: skip
    prune = jp.straight_through if arm.way == "straight through" else jp.prune_gradually
    select = jp.select.lowest("global" if arm.way == "global" else "layer", prunable=prunable)
    rise = jp.schedule.cubic(arm.sparsity, end - begin, begin=begin)
    return optax.chain(plain, prune(jp.saliency.magnitude(), select, rise, every=config.every))
