"""One draw of calibration examples, and the network pruned and tuned with them."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any

import jax

import jaxprune as jp
from experiments.pretrained.arms import WEIGHTS, Arm, Config, Small
from experiments.pretrained.model import Pretrained
from experiments.pretrained.tools import Tools
from experiments.pretrained.tuning import Distillation
from jaxprune.types import Params

TOLERANCE = 1e-3
"""How far the network's own code on shrunk arrays may be from the masked one, relatively."""


class Bench:
    """What is pruned and tuned with one draw.

    Args:
      config: the comparison.
      net: the dense network with this draw.
      seed: of the draw, and of the order of the examples.
      tools: what prunes it.
    """

    def __init__(self, config: Config, net: Pretrained, seed: int, tools: Tools):
        self.config, self.net, self.seed, self.tools = config, net, seed, tools
        first = jax.tree.map(lambda x: x[: config.scored], (net.inputs, net.targets))
        self.batch: tuple[Any, Any] = first
        self._scores: dict[str, Any] = {}
        self.prune = lru_cache(maxsize=1)(self._prune)

    @cached_property
    def distillation(self) -> Distillation:
        """Fine-tuning, with the dense outputs of this draw."""
        return Distillation(self.net, self.tools.steps, self.config.batch, self.seed)

    def _prune(self, arm: Arm) -> Small:
        """The dense network under an arm.

        Raises:
          ValueError: the way does not suit the network, or the size cannot be met.
        """
        return self.with_units(arm) if arm.family == "units" else self.with_weights(arm)

    def with_weights(self, arm: Arm) -> Small:
        """Single weights pruned and masked."""
        method, scope = WEIGHTS[arm.way]
        if method in ("exact_obs", "sparse_gpt"):
            pruner = self.tools.surgeon(method, scope)
        else:
            select = self.tools.selection(scope)
            pruner = jp.one_shot(lambda params, batch: self.scores(method), select)
        found = pruner(self.net.params, self.batch, sparsity=arm.size)
        return Small(found.params, found.mask)

    def scores(self, method: str) -> Any:
        """The scores of the dense network's weights, or units; made once."""
        if method not in self._scores:
            saliency = self.tools.saliency(method, self.net.loss)
            self._scores[method] = jax.block_until_ready(saliency(self.net.params, self.batch))
        return self._scores[method]

    def with_units(self, arm: Arm) -> Small:
        """Units really removed.

        Raises:
          ValueError: the budget cannot be met, or the code does not run on the shrunk arrays.
        """
        whole, coupling = self.net.params, self.tools.coupling
        by = "unit magnitude" if arm.way == "magnitude" else "unit fisher"
        scores, scope = self.scores(by), "group"
        if arm.way == "Fisher per parameter":
            scores, scope = jp.saliency.per_cost(scores, coupling), "global"
        budget = jp.select.Budget("parameters", fraction=arm.size)
        select = jp.select.lowest_units(coupling, scope=scope, budget=budget)
        pruned = jp.one_shot(lambda params, batch: scores, select)(whole)
        self.check(pruned)
        kept = coupling.kept(pruned.mask)
        if arm.way == "Fisher, rebuilt":
            whole = jp.structure.reconstruct(whole, kept, coupling, self.batch[0]).variables
        small = jp.structure.shrink_units(whole, kept, coupling)
        return Small(small, jp.trees.full_mask(small), jp.structure.width_profile(coupling, kept))

    def check(self, pruned: jp.Pruned) -> None:
        """Raise unless the network's code computes on shrunk arrays what it does on masked ones."""
        few = self.tools.few(8)
        found = jp.check_shrunk(pruned.params, pruned.mask, self.tools.coupling, few)
        if found.original is None or found.original > TOLERANCE:
            raise ValueError(f"{self.net.name} cannot be shrunk: {found}")

    def of_widths(self, widths: dict[str, int]) -> Params:
        """Arrays of the shapes that an arm left, for the clock."""
        kept = jp.structure.kept_of(self.tools.coupling, widths)
        return jp.structure.shrink_units(self.net.params, kept, self.tools.coupling)

    def flops(self, small: Small) -> int:
        """Of one example; those of pruned weights are not counted, though they are computed."""
        count = jp.reporting.flops_by_operation(self.net.apply, small.params, self.tools.few(1))
        return jp.reporting.flops_skipping_zeros(count, small.mask)
