"""The ways to a sparse network that are compared, each an Optax transformation."""

from __future__ import annotations

from typing import NamedTuple

import jax
import optax

import jaxprune as jp
from experiments.gradual.task import Config
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
    """

    way: str
    width: float
    sparsity: float
    seed: int

    @property
    def name(self) -> str:
        """The piece's name in the ledger."""
        return f"{self.kind} seed {self.seed}"

    @property
    def kind(self) -> str:
        """What all seeds of an arm share."""
        return f"{self.way} width {self.width:g} sparsity {self.sparsity:g}"


def arms(config: Config) -> list[Arm]:
    """Every arm of a configuration; all arms of a seed come before the next seed's."""
    kinds = [(DENSE, width, 0.0) for width in (*config.small, config.large)]
    kinds += [(GRADUAL, config.large, sparsity) for sparsity in config.sparsities]
    kinds += [(way, config.large, s) for s in config.other_sparsities for way in config.others]
    return [Arm(*kind, seed) for seed in range(config.seeds) for kind in kinds]


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
