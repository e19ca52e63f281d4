"""Training of many masked networks at once: one jitted call, vmapped over runs.

A run is a network with its own parameters, mask and data order. Runs share the data, the loss and
the budget, so their arrays stack and the whole group trains as one program on any device.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from experiments.data import Split
from jaxprune.types import Apply, Mask, Params


class Budget(NamedTuple):
    """What training costs, equal for every arm that is compared.

    Attributes:
      steps: optimizer steps.
      batch: examples a step.
      learning_rate: peak rate of Adam, decayed to 0 by a cosine.
    """

    steps: int
    batch: int
    learning_rate: float


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Softmax cross-entropy of each example, [N]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def stack(trees: list[Any]) -> Any:
    """Trees of the same structure, with a leading axis of runs."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree: Any) -> list[Any]:
    """The runs of a stacked tree, one by one."""
    count = jax.tree.leaves(tree)[0].shape[0]
    return [jax.tree.map(operator.itemgetter(i), tree) for i in range(count)]


@partial(jax.jit, static_argnames=("apply", "budget"))
def train_runs(
    apply: Apply, params: Params, masks: Mask, keys: jax.Array, split: Split, budget: Budget
) -> Params:
    """Train every run from its parameters under its mask, which stays.

    Args:
      apply: the model, `(params, inputs) -> logits`.
      params: stacked parameters, leading axis R.
      masks: stacked masks, leading axis R.
      keys: [R] PRNG keys of the data order; runs with equal keys see the same batches.
      split: the training data, shared.
      budget: steps, batch size and rate.

    Returns:
      Stacked trained parameters, exactly 0 where a mask is False.
    """
    return jax.vmap(lambda p, m, k: _train_one(apply, p, m, k, split, budget))(params, masks, keys)


def _train_one(
    apply: Apply, params: Params, mask: Mask, key: jax.Array, split: Split, budget: Budget
) -> Params:
    rate = optax.cosine_decay_schedule(budget.learning_rate, budget.steps)
    optimizer = optax.chain(optax.adam(rate), jp.freeze_pruned(mask))
    examples = split.targets.shape[0]
    batch = min(budget.batch, examples)
    per_epoch = examples // batch

    def objective(params: Params, chosen: jax.Array) -> jax.Array:
        inputs = jnp.take(split.inputs, chosen, axis=0)
        return jnp.mean(cross_entropy(apply(params, inputs), jnp.take(split.targets, chosen)))

    def step(carry: Any, i: jax.Array) -> tuple[Any, None]:
        params, state, order = carry
        epoch, place = i // per_epoch, i % per_epoch
        shuffle = lambda _: jax.random.permutation(jax.random.fold_in(key, epoch), examples)
        order = jax.lax.cond(place == 0, shuffle, lambda _: order, None)
        chosen = jax.lax.dynamic_slice_in_dim(order, place * batch, batch)
        updates, state = optimizer.update(jax.grad(objective)(params, chosen), state, params)
        return (optax.apply_updates(params, updates), state, order), None

    start = (params, optimizer.init(params), jnp.arange(examples))
    (params, _, _), _ = jax.lax.scan(step, start, jnp.arange(budget.steps))
    return params


def accuracies(apply: Apply, params: Params, split: Split, batch: int = 2000) -> list[float]:
    """The accuracy of every stacked run on a split, in per cent."""
    hits = np.zeros(jax.tree.leaves(params)[0].shape[0], np.int64)
    for start in range(0, split.targets.shape[0], batch):
        part = Split(split.inputs[start : start + batch], split.targets[start : start + batch])
        hits += np.asarray(_hits(apply, params, part), np.int64)
    return [100 * int(h) / split.targets.shape[0] for h in hits]


@partial(jax.jit, static_argnames="apply")
def _hits(apply: Apply, params: Params, split: Split) -> jax.Array:
    logits = jax.vmap(lambda p: apply(p, split.inputs))(params)
    return jnp.sum(jnp.argmax(logits, axis=-1) == split.targets, axis=-1)


def init_runs(init: Callable[[jax.Array], Params], keys: jax.Array) -> Params:
    """Stacked fresh parameters, one run a key."""
    return jax.jit(jax.vmap(init))(keys)
