"""Training of one dense network by SGD: a jitted step in a Python loop, nothing hidden in it.

Steps are a loop of Python because inside `lax.scan` XLA's convolutions on CPU are far slower. All
that a run carries is its `State`; batches and shifts follow from the seed and the step, so that a
run that starts again from a stored state ends with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments.data import Split
from experiments.image_batches import mirror, normalise, share_right, shift
from experiments.models import MLPNet, ResNet
from experiments.training import cross_entropy

NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "mlpnet": lambda classes: MLPNet(classes),
    "resnet8": lambda classes: ResNet(8, classes),
    "resnet20": lambda classes: ResNet(20, classes),
}


@dataclass(frozen=True)
class Config:
    """Everything a trained network depends on; its hash names it."""

    network: str
    dataset: str
    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    warm_up: float = 0.2  # part of the steps
    momentum: float = 0.9
    shift: int = 0  # pixels
    mirror: bool = False
    examples: int | None = None  # of the training part, all by default
    seed: int = 0


class About(NamedTuple):
    """What must be known of the training examples to build a network and count its steps.

    Attributes:
      examples: how many.
      shape: of one input, [H, W, C].
      classes: number of classes.
    """

    examples: int
    shape: tuple[int, ...]
    classes: int


class State(NamedTuple):
    """All that a run carries from step to step.

    Attributes:
      step: steps done.
      params: parameters.
      batch_stats: running statistics of BatchNorm, empty without.
      opt_state: momentum and the schedule's count.
      loss: summed over the steps of the epoch so far.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    loss: jax.Array


class Training:
    """The network, the optimizer and the steps of a configuration."""

    def __init__(self, config: Config, about: About):
        self.config, self.about = config, about
        self.model = NETWORKS[config.network](about.classes)
        self.key = jax.random.key(config.seed)
        self.batch = min(config.batch, about.examples)
        # The examples that fill no batch wait for another epoch's order.
        self.per_epoch = about.examples // self.batch
        self.total = config.epochs * self.per_epoch
        warm_up = max(round(config.warm_up * self.total), 1)
        rate = optax.warmup_cosine_decay_schedule(
            0.0, config.learning_rate, warm_up, max(self.total, warm_up + 1)
        )
        self.optimizer = optax.chain(
            optax.add_decayed_weights(config.weight_decay, mask=kernels),
            optax.sgd(rate, momentum=config.momentum, nesterov=True),
        )

    def start(self) -> State:
        """The state before the first step."""
        found = self.model.init(self.key, jnp.zeros((1, *self.about.shape)))
        params = found["params"]
        return State(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=found.get("batch_stats", {}),
            opt_state=self.optimizer.init(params),
            loss=jnp.zeros(()),
        )

    @cached_property
    def order(self) -> Callable[[int], jax.Array]:
        """The order in which an epoch takes the examples."""
        key, count = jax.random.fold_in(self.key, 1), self.about.examples
        return jax.jit(lambda epoch: jax.random.permutation(jax.random.fold_in(key, epoch), count))

    @cached_property
    def update(self) -> Callable[[State, jax.Array, Split], State]:
        """One jitted step: state (donated), the epoch's order and the data to the next state."""
        return jax.jit(self._update, donate_argnums=0)

    def _update(self, state: State, order: jax.Array, train: Split) -> State:
        place = state.step % self.per_epoch
        inputs, labels = self._batch(state.step, place, order, train)

        def objective(params: Any) -> tuple[jax.Array, Any]:
            logits, batch_stats = self._forward(params, state.batch_stats, inputs)
            return jnp.mean(cross_entropy(logits, labels)), batch_stats

        (loss, batch_stats), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        loss += jnp.where(place == 0, 0.0, state.loss)
        return State(state.step + 1, params, batch_stats, opt_state, loss)

    def _batch(
        self, step: jax.Array, place: jax.Array, order: jax.Array, train: Split
    ) -> tuple[jax.Array, jax.Array]:
        chosen = jax.lax.dynamic_slice_in_dim(order, place * self.batch, self.batch)
        inputs, labels = jnp.take(train.inputs, chosen, axis=0), jnp.take(train.targets, chosen)
        key = jax.random.fold_in(jax.random.fold_in(self.key, 2), step)
        if self.config.shift:
            inputs = shift(inputs, jax.random.fold_in(key, 0), self.config.shift)
        if self.config.mirror:
            inputs = mirror(inputs, jax.random.fold_in(key, 1))
        return normalise(inputs, self.config.dataset), labels

    def _forward(self, params: Any, batch_stats: Any, inputs: jax.Array) -> tuple[Any, Any]:
        if not batch_stats:
            return self.model.apply({"params": params}, inputs), batch_stats
        found = {"params": params, "batch_stats": batch_stats}
        logits, new = self.model.apply(found, inputs, train=True, mutable=["batch_stats"])
        return logits, new["batch_stats"]

    def accuracy(self, state: State, split: Split, batch: int = 500) -> float:
        """The accuracy on a split in per cent, with the running statistics of BatchNorm."""
        return share_right(partial(self._guesses, variables(state)), split, batch)

    @cached_property
    def _guesses(self) -> Callable[[Any, Any], jax.Array]:
        logits = lambda v, x: jnp.asarray(self.model.apply(v, normalise(x, self.config.dataset)))
        return jax.jit(lambda v, x: jnp.argmax(logits(v, x), axis=-1))


def variables(state: State) -> dict[str, Any]:
    """What the model is applied with."""
    found = {"params": state.params}
    return found | ({"batch_stats": state.batch_stats} if state.batch_stats else {})


def kernels(params: Any) -> Any:
    """True for the leaves that decay: not biases, not BatchNorm's."""
    is_kernel = lambda path, leaf: path[-1].key == "kernel"
    return jax.tree_util.tree_map_with_path(is_kernel, params)
