"""What prunes a network, made once for all draws, so that it is compiled once."""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any

import jax

import jaxprune as jp
from experiments.pretrained.arms import PATTERN
from experiments.pretrained.model import Pretrained
from experiments.pretrained.tuning import Steps
from jaxprune.types import Loss, Pruner, Saliency, Selection


class Tools:
    """Saliencies, surgeons, selections and train steps of a network.

    Args:
      net: with any draw of calibration examples: their shapes count.
      steps: of fine-tuning.
    """

    def __init__(self, net: Pretrained, steps: int):
        self.net = net
        self.steps = Steps(net, steps)
        self.saliency = cache(self._saliency)
        self.surgeon = cache(self._surgeon)
        self.selection = cache(self._selection)

    def few(self, count: int) -> Any:
        """The first inputs."""
        return jax.tree.map(lambda x: x[:count], self.net.inputs)

    @cached_property
    def coupling(self) -> jp.Coupling:
        """Which slices live together."""
        return jp.couple(self.net.apply, self.net.params, self.few(2))

    @cached_property
    def output_axes(self) -> dict[str, int]:
        """The axis of every layer's weight that counts its outputs."""
        return jp.saliency.output_axes(self.net.apply, self.net.params, self.few(2))

    def prunable(self, name: str, leaf: Any) -> bool:
        """The kernels of layers among what is prunable: rows that are looked up stay whole."""
        return name in self.output_axes and self.net.prunable(name, leaf)

    def _saliency(self, method: str, loss: Loss) -> Saliency:
        """A saliency by its name; a draw may have a loss of its own."""
        net, known = self.net, jp.saliency
        if method == "unit magnitude":
            return known.unit_magnitude(self.coupling, prunable=net.prunable)
        if method == "unit fisher":
            return known.unit_fisher(self.coupling, loss)
        if method == "fisher":
            return known.fisher(jp.curvature.fisher_diagonal(net.apply, loss))
        if method == "taylor":
            return known.taylor(net.apply, loss)
        return known.wanda(net.apply) if method == "wanda" else known.magnitude()

    def _surgeon(self, method: str, scope: str) -> Pruner:
        """A surgeon by its name."""
        make = {"exact_obs": jp.surgeon.exact_obs, "sparse_gpt": jp.surgeon.sparse_gpt}[method]
        return make(self.net.apply, select=self.selection(scope))

    def _selection(self, scope: Any) -> Selection:
        """Which weights compete."""
        prunable = self.prunable
        if scope == PATTERN:
            return self.pattern()
        if scope == "output":
            return jp.select.lowest(scope, prunable=prunable, output_axis=self.output_axes)
        return jp.select.lowest(scope, prunable=prunable)

    def pattern(self) -> Selection:
        """2 of every 4 inputs of an output, in the leaves whose inputs come in fours.

        Raises:
          ValueError: there are none, or kernels of both layouts.
        """
        axes = {}
        for name, leaf in jp.trees.named_leaves(self.net.params):
            if self.prunable(name, leaf):
                axis = -2 if self.output_axes[name] == leaf.ndim - 1 else 1 - leaf.ndim
                if leaf.shape[axis] % 4 == 0:
                    axes[name] = axis
        if len(set(axes.values())) != 1:
            raise ValueError(
                f"2:4 needs kernels whose inputs lie along one axis, got {axes}. Leave it out."
            )
        axis, *_ = axes.values()
        return jp.select.n_of_m(2, 4, axis=axis, prunable=lambda name, leaf: name in axes)
