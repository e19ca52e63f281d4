"""Straight-through pruning: pruned weights keep learning out of sight, and may come back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune import trees
from jaxprune.transforms.gradual import checked, mask_updater, unpruned_state
from jaxprune.transforms.mask_state import (
    MaskState,
    by_updates,
    cut_out,
    is_empty,
    is_hole,
    need_params,
    wide_dtype,
)
from jaxprune.types import Batch, Params, PyTree, Schedule, ScoreFunction, Selection


def straight_through(
    saliency: ScoreFunction, select: Selection, schedule: Schedule, *, every: int = 1
) -> optax.GradientTransformationExtraArgs:
    """Train dense weights through masked ones: put it LAST in the chain.

    The parameters in your hands are `mask * dense`; gradients taken there are applied to ALL the
    dense weights, which live in the optimizer state. The mask is drawn anew from the dense
    weights at steps 0, every, 2 every, .., so that a pruned weight can return. Weight decay that
    comes before sees the parameters in your hands, and so does not shrink what is pruned.

    Args:
      saliency: scores of the dense weights; one that needs data reads `batch=` as in
        `prune_gradually`.
      select: a `Selection`, such as `jp.select.lowest()` or `jp.select.n_of_m(2, 4)`.
      schedule: step -> sparsity, such as `jp.schedule.constant(0.9)`. A pattern such as N:M has one
        sparsity alone, and comes at once where the schedule is above 0.
      every: steps between mask updates.

    Returns:
      A gradient transformation; `update` needs `params`, and costs a copy of the prunable
      ones in the state.

    Raises:
      ValueError: `every` < 1; at the first `update`, no `params` or no `batch` where needed.
      TypeError: a saliency, a selection or a schedule that is none.

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
    every = checked(saliency, select, schedule, every)
    if select.coupling is not None:
        raise ValueError(
            "`straight_through` keeps dense copies of weights, and units have biases and "
            "statistics besides: prune units with `prune_gradually`."
        )
    refresh = mask_updater(saliency, select, schedule, every, revive=True)

    def init(params: Params) -> MaskState:
        return unpruned_state(params, select)._replace(dense=_hidden(params, select))

    def update(
        updates: PyTree,
        state: MaskState,
        params: Params | None = None,
        *,
        batch: Batch = None,
        **extra: Any,
    ) -> tuple[PyTree, MaskState]:
        params = need_params(params)
        uncover = lambda hidden, param: param if is_hole(hidden) else hidden
        whole = jax.tree.map(uncover, state.dense, params, is_leaf=is_hole)
        whole = by_updates(_moved, updates, whole)
        state = refresh(state, whole, batch)._replace(dense=cut_out(whole, state.dense, "update"))
        shown = trees.apply_mask(whole, state.mask)
        return by_updates(_difference, updates, state.dense, shown, params), state

    return optax.GradientTransformationExtraArgs(init, update)


def _hidden(params: Params, select: Selection) -> PyTree:
    """Copies of the prunable leaves: state and parameters may both be donated to the step."""
    if is_empty(params):
        return params
    flags = trees.prunable_flags(params, select.prunable)
    copies = [jnp.array(leaf, copy=True) for leaf in trees.select_leaves(params, flags)]
    return trees.replace_leaves(params, flags, copies, lambda _: optax.MaskedNode())


def _moved(update: Any, param: Any) -> Any:
    if update is None or not trees.is_inexact(param):
        return param
    return optax.apply_updates(param, update)


def _difference(update: Any, hidden: Any, target: Any, param: Any) -> Any:
    if update is None or is_hole(hidden):
        return update
    dtype = wide_dtype(update, param)
    return jnp.asarray(target, dtype) - jnp.asarray(param, dtype)
