"""Straight-through pruning: pruned weights keep learning out of sight, and may come back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune import trees
from jaxprune.transforms.gradual import _check_every, mask_updater
from jaxprune.transforms.mask_state import MaskState, initial_state, need_params
from jaxprune.types import Batch, Params, PyTree, Schedule, ScoreFunction, Selection


def straight_through(
    saliency: ScoreFunction, select: Selection, schedule: Schedule, *, every: int = 1
) -> optax.GradientTransformationExtraArgs:
    """Train dense weights through masked ones: put it LAST in the chain.

    The parameters in your hands are `mask * dense`; gradients taken there are applied to ALL the
    dense weights, which live in the optimizer state. The mask is drawn anew from the dense
    weights at steps 0, every, 2 every, .., so that a pruned weight can return.

    Args:
      saliency: scores of the dense weights; one that needs data reads `batch=` as in
        `prune_gradually`.
      select: a `Selection`, such as `jp.select.lowest()` or `jp.select.n_of_m(2, 4)`.
      schedule: step -> sparsity, such as `jp.schedule.constant(0.9)`.
      every: steps between mask updates.

    Returns:
      A gradient transformation; `update` needs `params`, and costs a copy of them in the state.

    Raises:
      ValueError: `every` < 1; at the first `update`, no `params` or no `batch` where needed.

    References:
      Bengio et al. 2013 for the estimator; Zhou et al. 2021, Learning N:M Fine-grained Structured
      Sparse Neural Networks From Scratch, for its use here.

    Example:
      >>> from jaxprune import saliency, schedule, select
      >>> ste = straight_through(saliency.magnitude(), select.lowest(), schedule.constant(0.5))
      >>> tx = optax.chain(optax.sgd(1.0), ste)
      >>> params = [jnp.array([[1.0, 2.0]])]
      >>> state = tx.init(params)
      >>> for _ in range(2):  # the gradient pulls the pruned weight past the kept one
      ...     updates, state = tx.update([jnp.array([[-2.0, 0.0]])], state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> params
      [Array([[5., 0.]], dtype=float32)]
    """
    _check_every(every)
    refresh = mask_updater(saliency, select, schedule, every, revive=True)

    def init(params: Params) -> MaskState:
        trees.prunable_flags(params, select.prunable)
        # A copy: the state and the parameters may both be donated to the step.
        dense = jax.tree.map(lambda p: jnp.array(p, copy=True), params)
        return initial_state(trees.full_mask(params), dense)

    def update(
        updates: PyTree,
        state: MaskState,
        params: Params | None = None,
        *,
        batch: Batch = None,
        **extra: Any,
    ) -> tuple[PyTree, MaskState]:
        params = need_params(params, "straight_through")
        dense = optax.apply_updates(state.dense, updates)
        state = refresh(state, dense, batch)._replace(dense=dense)
        shown = trees.apply_mask(dense, state.mask)
        return jax.tree.map(_difference, shown, params, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _difference(target: Any, param: Any, update: Any) -> Any:
    if not trees.is_inexact(param):
        return update
    return (target - param).astype(jnp.asarray(update).dtype)
