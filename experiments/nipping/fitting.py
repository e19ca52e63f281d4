"""One network trained: dense, from scratch, or fine-tuned while its units go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from experiments import resumable
from experiments.dense_training import kernels
from experiments.image_batches import augment
from experiments.methods import build_saliency
from experiments.nipping.task import Config, Problem, Shape
from experiments.orders import Orders
from experiments.training import cross_entropy
from jaxprune.types import PyTree

GATES = ("fisher", "taylor")
"""Signals that the gates of the train step give."""
CURVATURES = ("obd", "obd_sd_damage")
"""Signals of the gates' curvature, of the step's batch and running statistics at every removal."""
SIGNALS = (*GATES, *CURVATURES, "l1", "random")


class State(NamedTuple):
    """All that a run carries from step to step.

    Attributes:
      step: steps done.
      params: parameters.
      stats: running statistics of BatchNorm.
      opt_state: momentum, the schedule's count, and the mask where units go.
      loss: mean over about the last hundred steps.
    """

    step: jax.Array
    params: PyTree
    stats: PyTree
    opt_state: PyTree
    loss: jax.Array


class Removal(NamedTuple):
    """How units go.

    Attributes:
      signal: one of `SIGNALS`.
      most: how many of the network that the program starts with.
      rate: of fine-tuning.
    """

    signal: str
    most: int
    rate: float


def schedule(config: Config, steps: int) -> optax.Schedule:
    """The rate of dense training: steps, or a warm-up of a twentieth and a cosine."""
    if config.drops:
        falls = {round(share * steps): config.drop for share in config.drops}
        return optax.piecewise_constant_schedule(config.learning_rate, falls)
    return resumable.warmed_cosine(config.learning_rate, steps)


class Program:
    """The steps of a network, compiled once for all seeds.

    Args:
      problem: data and networks.
      shape: what is trained.
      steps: optimizer steps.
      removal: fine-tune while units go; else train.
    """

    def __init__(self, problem: Problem, shape: Shape, steps: int, removal: Removal | None = None):
        self.problem, self.config, self.shape = problem, problem.config, shape
        self.steps, self.removal = steps, removal
        self.optimizer, self.gates, self.forward = self._parts()
        self.update = jax.jit(self._update, donate_argnums=0)

    def _parts(self) -> tuple[optax.GradientTransformationExtraArgs, PyTree, Callable[..., Any]]:
        """The Optax chain, gates of 1 where the signal is read off gates, and the model."""
        config, model = self.config, self.problem.model(self.shape)
        rate: Any = schedule(config, self.steps) if self.removal is None else self.removal.rate
        plain = optax.chain(
            optax.add_decayed_weights(config.weight_decay, mask=kernels),
            optax.sgd(rate, momentum=0.9, nesterov=True),
        )
        train = lambda variables, images: model.apply(
            variables, images, train=True, mutable=["batch_stats"]
        )
        if self.removal is None:
            return optax.with_extra_args_support(plain), {}, lambda v, gates, x: train(v, x)
        coupling, inner = self.problem.coupled(self.shape), self.problem.inner
        part = coupling.part(lambda v: v["params"], self.problem.variables(self.shape))
        named = self.removal.signal
        asked: Any = named
        if named == "l1":
            asked = jp.saliency.unit_magnitude(part, incoming=True)
        elif named == "random":
            asked = lambda params, batch: jp.saliency.random_units(part, batch["key"])(params)
        elif named in CURVATURES:
            damage = jp.saliency.on_gates(
                coupling, cross_entropy, lambda apply, loss: build_saliency(named, apply, 0)
            )
            asked = lambda params, batch: damage(
                {"params": params, "batch_stats": batch["stats"]}, batch["examples"]
            )
        gone = jp.remove_units(
            part, every=config.every, each=config.each, stop=self.removal.most, signal=asked,
            cost=config.cost, groups=inner,
        )  # fmt: skip
        tx = optax.chain(plain, gone)
        if callable(asked):
            return tx, {}, lambda v, gates, x: train(v, x)
        gates = jp.coupling.ones(coupling, groups=inner, examples=config.batch)
        return tx, gates, jp.coupling.gated_apply(coupling, train, has_aux=True)

    @property
    def flops(self) -> int:
        """Of a forward pass of one image."""
        return self.problem.coupled(self.shape).flops()

    def start(self, variables: PyTree) -> State:
        """The state before the first step."""
        variables = jax.tree.map(jnp.array, variables)  # the first step takes them over
        params, stats = variables["params"], variables["batch_stats"]
        return State(jnp.int32(0), params, stats, self.optimizer.init(params), jnp.float32(0))

    def _update(self, state: State, images: jax.Array, labels: jax.Array, key: jax.Array) -> State:
        images = augment(images, self.config.dataset, jax.random.fold_in(key, state.step))
        wanted = optax.smooth_labels(
            jax.nn.one_hot(labels, self.problem.classes), self.config.smoothing
        )

        def objective(params: PyTree, gates: PyTree) -> tuple[jax.Array, PyTree]:
            variables = {"params": params, "batch_stats": state.stats}
            logits, new = self.forward(variables, gates, images)
            each = optax.softmax_cross_entropy(logits.astype(jnp.float32), wanted)
            return jnp.mean(each), new["batch_stats"]

        both = jax.value_and_grad(objective, (0, 1), has_aux=True)
        (loss, stats), (gradient, slopes) = both(state.params, self.gates)
        updates, opt_state = self.optimizer.update(
            gradient, state.opt_state, state.params, gates=slopes,
            batch={"key": key, "stats": stats, "examples": (images, labels)},
        )  # fmt: skip
        params = optax.apply_updates(state.params, updates)
        mean = resumable.running_mean(state.loss, loss, state.step)
        return State(state.step + 1, params, stats, opt_state, mean)


class Fit:
    """A run of one network and seed on all local devices.

    Args:
      program: its steps.
      seed: chooses first weights, batches and what happens to images.
      folder: of the checkpoints.
      first: the state that fine-tuning goes on from; else all is new.
      salt: new weights differ with it, batches do not.
    """

    def __init__(
        self, program: Program, seed: int, folder: Path, first: State | None = None, salt: int = 0
    ):
        self.program, self.config, self.folder = program, program.config, folder
        self.key, self.first, self.salt = jax.random.key(seed), first, salt
        self.orders = Orders(len(program.problem.train.targets), self.config.batch, seed)
        self.placed = resumable.placement(self.config.batch)

    @property
    def begun(self) -> int:
        """The step that the run's first process begins at."""
        return 0 if self.first is None else int(self.first.step)

    def start(self) -> State:
        """The state before the first step."""
        if self.first is not None:
            return jax.tree.map(jnp.array, self.first)  # the first step takes it over
        program, key = self.program, jax.random.fold_in(self.key, self.salt)
        return program.start(program.problem.init(program.shape, key))

    def run(
        self,
        told: Callable[[int], None],
        seen: Callable[[int, State], None] = lambda step, state: None,
    ) -> State:
        """Train to the end, from the newest checkpoint if there is one.

        Args:
          told: called with the number of steps done since it was last called.
          seen: called before every removal, and at the end; what it records is never lost to a
            kill, because a checkpoint is written after it.
        """
        program, key = self.program, jax.random.fold_in(self.key, 1000)

        def update(state: State, step: int) -> State:
            chosen = self.orders.at(step)
            batch = tuple(part[chosen] for part in program.problem.train)
            return program.update(state, *jax.device_put(batch, self.placed.split), key)

        def look(step: int, state: State) -> None:
            if program.removal is not None and (step + 1) % self.config.every == 0:
                seen(step, state)

        state = jax.device_put(resumable.newest(self.folder, self.start), self.placed.whole)
        return resumable.advance(
            state, program.steps, self.folder, update, told=told, look=look, begun=self.begun,
            failing=f"Lower the {'learning rate' if program.removal is None else 'tuning rate'} of "
            f"{program.shape.label}.",
        )  # fmt: skip


def variables_of(state: State) -> dict[str, Any]:
    """What the model is applied with."""
    return {"params": state.params, "batch_stats": state.stats}
