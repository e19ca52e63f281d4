"""Fine-tuning towards the outputs of the dense network, without labels."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import jaxprune as jp
from experiments.orders import Orders
from experiments.pretrained.model import Pretrained
from experiments.resumable import warmed_cosine
from jaxprune.types import Mask, Params

JUDGED = 4
"""One in so many calibration examples judges the rate of fine-tuning."""


class Tuned(NamedTuple):
    """A network after fine-tuning.

    Attributes:
      params: of the structure it began with; what the mask prunes is 0.
      before: the mean distance to the dense outputs on the examples that judge, at the beginning.
      after: the same at the end.
    """

    params: Params
    before: float
    after: float


class Steps:
    """Steps of clipped Adam towards the dense outputs, compiled once for all draws.

    Args:
      net: with any draw of calibration examples, which play no part.
      count: of steps; the rate rises in a twentieth of them and falls to 0 along a cosine.
    """

    def __init__(self, net: Pretrained, count: int):
        self.net, self.count = net, count
        self.at_rate = cache(self._at_rate)
        self.outputs = jax.jit(net.apply)
        self.distance = jax.jit(lambda p, x, y: net.distill(net.apply(p, x), y).sum())

    def optimizer(self, rate: float, mask: Mask) -> optax.GradientTransformation:
        """Adam under a mask."""
        adam = optax.adam(warmed_cosine(rate, self.count))
        return optax.chain(optax.clip_by_global_norm(1.0), adam, jp.freeze_pruned(mask))

    def _at_rate(self, rate: float) -> Callable[..., tuple[Params, Any]]:
        """`(params, state, inputs, dense outputs) -> (params, state)`."""
        net = self.net

        @jax.jit
        def update(params: Params, state: Any, inputs: Any, dense: Any) -> tuple[Params, Any]:
            objective = lambda p: net.distill(net.apply(p, inputs), dense).mean()
            # The mask is the state's: here any of the same structure does.
            tx = self.optimizer(rate, jp.trees.full_mask(params))
            updates, state = tx.update(jax.grad(objective)(params), state, params)
            return optax.apply_updates(params, updates), state

        return update


class Distillation:
    """Fine-tuning on one draw of calibration examples.

    Args:
      net: the dense network with this draw.
      steps: of fine-tuning.
      batch: examples a step.
      seed: of the order of the examples.
    """

    def __init__(self, net: Pretrained, steps: Steps, batch: int, seed: int):
        self.steps, self.batch, self.seed = steps, batch, seed
        self.inputs = jax.tree.map(np.asarray, net.inputs)
        self.count = len(jax.tree.leaves(self.inputs)[0])
        parts = [steps.outputs(net.params, _taken(self.inputs, part)) for part in self._parts(0)]
        whole = lambda *arrays: np.concatenate([np.asarray(array) for array in arrays])
        self.outputs = jax.tree.map(whole, *parts)

    @property
    def judged(self) -> int:
        """The first of the examples that judge a rate; those before it are trained on then."""
        return self.count - max(self.count // JUDGED, 1)

    def _parts(self, begin: int) -> list[slice]:
        edges = range(begin, self.count, self.batch)
        return [slice(at, min(at + self.batch, self.count)) for at in edges]

    def __call__(self, params: Params, mask: Mask, rate: float, *, trial: bool = False) -> Tuned:
        """Fine-tune; in a trial without the examples that judge.

        Raises:
          FloatingPointError: the distance to the dense outputs is not finite in the end.
        """
        before, update = self.apart(params), self.steps.at_rate(rate)
        orders = Orders(self.judged if trial else self.count, self.batch, self.seed)
        state = self.steps.optimizer(rate, mask).init(params)
        for step in range(self.steps.count):
            at = orders.at(step)
            params, state = update(params, state, _taken(self.inputs, at), _taken(self.outputs, at))
        after = self.apart(params)
        if not np.isfinite(after):
            raise FloatingPointError(
                f"The distance to the dense outputs is {after} after {self.steps.count} steps at "
                f"rate {rate:g}. Lower `rates`."
            )
        return Tuned(params, before, after)

    def apart(self, params: Params) -> float:
        """The mean distance to the dense outputs on the examples that judge."""
        sums = [
            float(
                self.steps.distance(params, _taken(self.inputs, part), _taken(self.outputs, part))
            )
            for part in self._parts(self.judged)
        ]
        return sum(sums) / (self.count - self.judged)


def _taken(tree: Any, at: Any) -> Any:
    return jax.tree.map(lambda array: array[at], tree)
