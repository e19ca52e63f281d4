"""Training of many masked networks at once: one jitted call, vmapped over runs.

A run is a network with its own parameters, mask and data order. Runs share the data, the loss and
the budget, so their arrays stack and the whole group trains as one program on any device. Only
convolutional networks on a CPU train one after another, step by step.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from experiments.data import Split
from jaxprune.types import Apply, Loss, Mask, Params


class Budget(NamedTuple):
    """What training costs, equal for every arm that is compared.

    Attributes:
      steps: optimizer steps.
      batch: examples a step.
      learning_rate: peak rate of Adam, decayed to 0 by a cosine.
      warmup: of the steps, those in which the rate rises linearly from 0.
    """

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 0

    def rate(self, step: jax.Array) -> jax.Array:
        """The learning rate at a step."""
        rise = step / jnp.maximum(self.warmup, 1)
        fall = jnp.clip((step - self.warmup) / jnp.maximum(self.steps - self.warmup, 1), 0, 1)
        share = jnp.where(step < self.warmup, rise, (1 + jnp.cos(jnp.pi * fall)) / 2)
        return jnp.asarray(self.learning_rate * share, jnp.float32)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Softmax cross-entropy of each example, [N]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def stack(trees: list[Any]) -> Any:
    """Trees of the same structure, with a leading axis of runs; on the host, nothing compiles."""
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)


def unstack(tree: Any) -> list[Any]:
    """The runs of a stacked tree, one by one; on the host too."""
    tree = jax.tree.map(np.asarray, tree)
    count = jax.tree.leaves(tree)[0].shape[0]
    return [jax.tree.map(operator.itemgetter(i), tree) for i in range(count)]


def train_runs(
    apply: Apply,
    params: Params,
    masks: Mask,
    keys: jax.Array,
    split: Split,
    budget: Budget,
    loss: Loss = cross_entropy,
) -> Params:
    """Train every run from its parameters under its mask, which stays.

    Args:
      apply: the model, `(params, inputs) -> logits`.
      params: stacked parameters, leading axis R.
      masks: stacked masks, leading axis R.
      keys: [R] PRNG keys of the data order; runs with equal keys see the same batches.
      split: the training data, shared.
      budget: steps, batch size and rate.
      loss: of each example, `(outputs, targets) -> [N]`.

    Returns:
      Stacked trained parameters, exactly 0 where a mask is False.

    Raises:
      FloatingPointError: parameters have become NaN or infinite.
    """
    batch = min(budget.batch, split.targets.shape[0])
    runs = _Steps(masks, keys, split, budget, apply, loss, batch)
    if _one_by_one(params):
        each = zip(unstack(params), unstack(masks), list(keys), strict=True)
        done = [_train_on_host(replace(runs, mask=m, key=k), p) for p, m, k in each]
        trained = stack(done)
    else:
        trained = _train_runs(runs, params)
    check_finite(trained, f"Training by a rate of {budget.learning_rate:g} diverged")
    return trained


def check_finite(params: Params, told: str) -> None:
    """Raise if parameters are NaN or infinite.

    Raises:
      FloatingPointError: says what is told, and names the first such leaf.
    """
    for name, leaf in jp.trees.named_leaves(params):
        bad = int(jnp.sum(~jnp.isfinite(leaf)))
        if bad:
            raise FloatingPointError(
                f"{told}: {jp.trees.label(name)} is NaN or infinite at {bad} of {leaf.size} entries"
            )


def _one_by_one(params: Params) -> bool:
    """Do stacked parameters hold convolutions, on a CPU?

    Those are tens of times slower there inside a loop, and with kernels of their own in a vmap.
    """
    on_cpu = jax.default_backend() == "cpu"
    return on_cpu and any(leaf.ndim == 5 for leaf in jax.tree.leaves(params))


Carry = tuple[Params, optax.OptState, jax.Array]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["mask", "key", "split", "budget"],
    meta_fields=["apply", "loss", "batch"],
)
@dataclass(frozen=True)
class _Steps:
    """Training of a run, step by step; a pytree, so that one program serves all budgets."""

    mask: Mask
    key: jax.Array
    split: Split
    budget: Budget
    apply: Apply
    loss: Loss
    batch: int

    def optimizer(self) -> optax.GradientTransformation:
        return optax.chain(optax.adam(self.budget.rate), jp.freeze_pruned(self.mask))

    def start(self, params: Params) -> Carry:
        return params, self.optimizer().init(params), jnp.arange(self.split.targets.shape[0])

    def objective(self, params: Params, chosen: jax.Array) -> jax.Array:
        inputs = jnp.take(self.split.inputs, chosen, axis=0)
        targets = jnp.take(self.split.targets, chosen)
        return jnp.mean(self.loss(self.apply(params, inputs), targets))

    def step(self, i: jax.Array, carry: Carry) -> Carry:
        params, state, order = carry
        examples = order.shape[0]
        per_epoch = examples // self.batch
        epoch, place = i // per_epoch, i % per_epoch
        shuffle = lambda _: jax.random.permutation(jax.random.fold_in(self.key, epoch), examples)
        order = jax.lax.cond(place == 0, shuffle, lambda _: order, None)
        chosen = jax.lax.dynamic_slice_in_dim(order, place * self.batch, self.batch)
        gradient = jax.grad(self.objective)(params, chosen)
        updates, state = self.optimizer().update(gradient, state, params)
        return optax.apply_updates(params, updates), state, order


@jax.jit
def _train_runs(runs: _Steps, params: Params) -> Params:
    def one(params: Params, mask: Mask, key: jax.Array) -> Params:
        run = replace(runs, mask=mask, key=key)
        return jax.lax.fori_loop(0, run.budget.steps, run.step, run.start(params))[0]

    return jax.vmap(one)(params, runs.mask, runs.key)


@partial(jax.jit, donate_argnums=2)
def _host_step(run: _Steps, i: jax.Array, carry: Carry) -> Carry:
    return run.step(i, carry)


def _train_on_host(run: _Steps, params: Params) -> Params:
    carry = run.start(jax.tree.map(jnp.copy, params))  # the steps take over what they are given
    for i in range(run.budget.steps):
        carry = _host_step(run, jnp.asarray(i), carry)
        if i % 16 == 15:
            jax.block_until_ready(carry[0])  # not thousands of steps ahead
    return carry[0]


@partial(jax.jit, static_argnames="apply")
def _outputs(apply: Apply, params: Params, inputs: jax.Array) -> jax.Array:
    return jax.vmap(lambda p: apply(p, inputs))(params)


def outputs(apply: Apply, params: Params, split: Split, batch: int = 2000) -> np.ndarray:
    """What every stacked run answers on a split, [R, N, ...]."""
    starts = range(0, split.targets.shape[0], batch)
    groups = [params]
    if _one_by_one(params):
        groups = [stack([run]) for run in unstack(params)]
    answers = [
        np.concatenate(
            [np.asarray(_outputs(apply, group, split.inputs[i : i + batch])) for i in starts],
            axis=1,
        )
        for group in groups
    ]
    return np.concatenate(answers)


def accuracies(apply: Apply, params: Params, split: Split, batch: int = 2000) -> list[float]:
    """The accuracy of every stacked run on a split, in per cent."""
    logits = outputs(apply, params, split, batch)
    hits = np.sum(np.argmax(logits, axis=-1) == np.asarray(split.targets), axis=-1)
    return [100 * int(h) / split.targets.shape[0] for h in hits]


def init_runs(init: Callable[[jax.Array], Params], keys: jax.Array) -> Params:
    """Stacked fresh parameters, one run a key."""
    return jax.jit(jax.vmap(init))(keys)
