"""One arm and seed: trained from scratch with or without a mask that grows, and measured."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from experiments import resumable
from experiments.gradual.masks import Watch
from experiments.gradual.task import Config, Network, Task
from experiments.gradual.ways import DENSE, Arm, with_zeros
from jaxprune.types import Mask, Params

FORMS = (*jp.quantize.FORMS, "smallest")


class State(NamedTuple):
    """All that a run carries from step to step.

    Attributes:
      step: steps done.
      params: parameters.
      rest: what no gradient moves, see `Network`.
      opt_state: moments, the schedule's count and the mask.
      loss: mean over about the last hundred steps.
    """

    step: jax.Array
    params: Params
    rest: Any
    opt_state: Any
    loss: jax.Array


class Program:
    """The steps of an arm, compiled once for all its seeds.

    Args:
      config: the comparison.
      task: its data and networks.
      arm: what is trained; its seed plays no part.
    """

    def __init__(self, config: Config, task: Task, arm: Arm):
        self.config, self.task, self.arm = config, task, arm
        self.network: Network = task.network(arm.width)
        self.update = jax.jit(self._update, donate_argnums=0)

    def optimizer(self, arm: Arm) -> optax.GradientTransformation:
        """Clipped Adam, its rate a warm-up and a cosine, and the arm's way to zeros."""
        config = self.config
        rate = resumable.warmed_cosine(arm.rate, config.steps)
        plain = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
        return with_zeros(plain, config, self.task.prunable, arm)

    def _update(self, state: State, batch: Any, key: jax.Array) -> State:
        key = jax.random.fold_in(key, state.step)
        objective = lambda p: self.network.loss(p, state.rest, batch, key)
        (loss, rest), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
        # Seeds differ in what `init` puts into the state, not in how it moves.
        update = self.optimizer(self.arm).update
        updates, opt_state = update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        mean = resumable.running_mean(state.loss, loss, state.step)
        return State(state.step + 1, params, rest, opt_state, mean)


class Run:
    """One seed of an arm on all local devices.

    Args:
      program: the arm's steps.
      seed: chooses first weights, batches and dropout.
      work: the folder of checkpoints and diagnostics.
    """

    def __init__(self, program: Program, seed: int, work: Path):
        self.program, self.config, self.task = program, program.config, program.task
        self.network, self.arm = program.network, program.arm._replace(seed=seed)
        self.folder = work / self.arm.name.replace(" ", "_")
        self.key = jax.random.key(seed)
        self.placed = resumable.placement(self.config.batch)

    def start(self) -> State:
        """The state before the first step."""
        params, rest = self.network.init(self.key)
        rest = jax.tree.map(jnp.copy, rest)  # a step is given all of it, and no buffer twice
        opt_state = self.program.optimizer(self.arm).init(params)
        return State(jnp.int32(0), params, rest, opt_state, jnp.float32(0))

    def train(self, told: Callable[[int], None]) -> State:
        """Train to the end, from the newest checkpoint if there is one.

        Args:
          told: called with the number of steps done since it was last called.
        """
        checkpoints, config = self.folder / "checkpoints", self.config
        state = jax.device_put(resumable.newest(checkpoints, self.start), self.placed.whole)
        batches, key = self.task.batches(self.arm.seed), jax.random.fold_in(self.key, 1)
        watch = Watch(self.folder / "masks.jsonl", self._pruned_part(state), int(state.step))

        def update(state: State, step: int) -> State:
            batch = jax.device_put(batches(step), self.placed.split)
            return self.program.update(state, batch, key)

        def look(step: int, state: State) -> None:
            if (step - 1) % config.every == 0 or step == config.steps:
                watch.look(step - 1, self._pruned_part(state))

        return resumable.advance(
            state, config.steps, checkpoints, update, told=told, look=look,
            failing=f"Lower the learning rate of {self.arm.name}.",
        )  # fmt: skip

    def _pruned_part(self, state: State) -> dict[str, jax.Array]:
        """The masks of the leaves that are pruned, by name."""
        named = jp.trees.named_leaves(self.mask_of(state))
        flags = jp.trees.prunable_flags(state.params, self.task.prunable)
        return {name: leaf for (name, leaf), flag in zip(named, flags, strict=True) if flag}

    def mask_of(self, state: State) -> Mask:
        """The mask of a state; of a dense network all True."""
        if self.arm.way == DENSE:
            return jp.trees.full_mask(state.params)
        return jp.mask_of(state.opt_state)

    def result(self, state: State) -> dict[str, Any]:
        """Quality on both parts, counts and bytes of a trained network."""
        mask = self.mask_of(state)
        stored = jp.quantize.unquantized()(state.params, mask)
        fixed = sum(leaf.nbytes for leaf in jax.tree.leaves(self.network.fixed(state.rest)))
        measure = partial(self.network.measure, state.params, state.rest)
        measured = {part: measure(part) for part in ("validation", "test")}
        pruned = self._pruned_part(state)
        return {
            **measured,
            "loss": float(state.loss),
            "parameters": jp.trees.count(state.params),
            "nonzeros": jp.trees.keep(mask),
            "sparsity": 1 - jp.trees.keep(pruned) / jp.trees.count(pruned),
            "bytes": {f: jp.quantize.stored_bytes(stored, f).total + fixed for f in FORMS},
        }
