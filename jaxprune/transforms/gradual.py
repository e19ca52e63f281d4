"""Masks that grow while the model trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune import trees
from jaxprune.prune import check_parts, check_schedule
from jaxprune.select.candidates import candidates, check_prunable, scores_of
from jaxprune.select.checks import whole
from jaxprune.transforms.mask_state import (
    MaskState,
    initial_state,
    is_empty,
    masked_updates,
    need_params,
)
from jaxprune.types import (
    Batch,
    Mask,
    Params,
    PyTree,
    Schedule,
    ScoreFunction,
    Selection,
)


def prune_gradually(
    saliency: ScoreFunction, select: Selection, schedule: Schedule, *, every: int = 1
) -> optax.GradientTransformationExtraArgs:
    """Prune while training: put it LAST in the chain, change nothing in the loop.

    At steps 0, every, 2 every, .. the parameters are scored and pruned to `schedule(step)`, where
    that is more than before; on the other steps, and once the schedule holds, nothing is scored
    (`lax.cond`). What is pruned stays at exactly 0. If a score is NaN or infinite, or the
    schedule's sparsity not in [0, 1), the old mask stays and `MaskState.refused` counts it.

    Exactly 0 are the parameters that the chain moves. Optimizers that keep others besides move
    those by themselves: `schedule_free` averages, `lookahead` slow parameters. Evaluate
    `jp.apply_mask(found, jp.mask_of(state))` of those; what the mask drops inside such a wrapper
    is exactly 0 in the parameters you hold only if it was 0 from the start. `mechanize` scales
    what a chain inside it says, so put the masking after it, not inside.

    Args:
      saliency: scores, taken at the parameters before the step. One that needs data reads
        `batch=` from Optax's extra arguments: `tx.update(grads, state, params, batch=batch)`.
      select: a `Selection`, such as `jp.select.lowest("layer")`.
      schedule: step -> sparsity, such as `jp.schedule.cubic(0.9, 10_000)`. A pattern such as N:M
        has one sparsity alone, and comes at once where the schedule is above 0.
      every: steps between mask updates.

    Returns:
      A gradient transformation; `update` needs `params`. Read the mask by `jp.mask_of(state)`.

    Raises:
      ValueError: `every` < 1, a selection by a budget; at the first `update`, no `params`, or no
        `batch` for a saliency that needs one.
      TypeError: a saliency, a selection or a schedule that is none.

    References:
      Zhu and Gupta 2017, To prune, or not to prune (with magnitude, `lowest("layer")`, `cubic`).

    Example:
      >>> from jaxprune import saliency, schedule, select
      >>> gradual = prune_gradually(
      ...     saliency.magnitude(), select.lowest(), schedule.constant(0.5))
      >>> tx = optax.chain(optax.sgd(0.1), gradual)
      >>> params = [jnp.array([[1.0, 2.0]])]
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> optax.apply_updates(params, updates)
      [Array([[0. , 1.8]], dtype=float32)]
    """
    every = checked(saliency, select, schedule, every)
    refresh = mask_updater(saliency, select, schedule, every)

    def init(params: Params) -> MaskState:
        return unpruned_state(params, select)

    def update(
        updates: PyTree,
        state: MaskState,
        params: Params | None = None,
        *,
        batch: Batch = None,
        **extra: Any,
    ) -> tuple[PyTree, MaskState]:
        params = need_params(params)
        state = refresh(state, params, batch)
        return masked_updates(updates, state.mask, params), state

    return optax.GradientTransformationExtraArgs(init, update)


def unpruned_state(params: Params, select: Selection) -> MaskState:
    """The state before the first update, with a mask that keeps everything.

    Raises:
      ValueError: nothing to prune. TypeError: a leaf to prune that is not floating-point.
    """
    if not is_empty(params):
        check_prunable(select, params)
    return initial_state(trees.full_mask(params), params)


def checked(saliency: Any, select: Any, schedule: Any, every: Any) -> int:
    """The steps between mask updates, if a mask can be updated by all these.

    Raises:
      ValueError: no such steps, a selection by a budget. TypeError: an argument of another kind.
    """
    check_parts(saliency, select)
    check_schedule(schedule)
    if select.by_budget:
        raise ValueError(
            "A budget says how many units go, and a schedule of sparsities says so too: leave "
            "`budget=` out, or prune with `jp.one_shot` and put the mask in with `jp.with_mask`."
        )
    return whole(every, 1, "`every` is steps between mask updates,")


def mask_updater(
    saliency: ScoreFunction,
    select: Selection,
    schedule: Schedule,
    every: int,
    *,
    revive: bool = False,
) -> Callable[[MaskState, Params, Batch], MaskState]:
    """`(state, params, batch) -> state`, one step on, with the mask of this step.

    With `revive` the mask is drawn anew from all weights, pruned ones included, at every update.
    """

    def refresh(state: MaskState, params: Params, batch: Batch) -> MaskState:
        check_prunable(select, params)
        asked = jnp.asarray(schedule(state.step), jnp.float32)
        fits = (asked >= 0) & (asked < 1)  # False for NaN too
        target, anew = asked, jnp.bool_(revive)
        if select.fixed is not None:  # a pattern comes at once
            target = jnp.where(asked > 0, jnp.float32(select.fixed), 0)
            anew &= asked > 0

        def redraw(mask: Mask) -> tuple[Mask, jax.Array]:
            scores = scores_of(saliency, select, params, batch)
            shown, bad = candidates(select, params, scores, None if revive else mask)
            drawn = select.choose(params, shown, target)
            ok = jnp.bool_(True) if bad is None else bad == 0
            new = lambda d, m: jnp.where(ok, d if revive else d & m, m)
            return jax.tree.map(new, drawn, mask), ok

        hold = lambda mask: (mask, jnp.bool_(True))
        higher = fits & ((target > state.reached) | anew)
        rise = lambda mask: jax.lax.cond(higher, redraw, hold, mask)
        # Two conditions, not one: under vmap `reached` is batched, and its `cond` a `select`; the
        # step need not be, and then the steps between mask updates still cost nothing.
        due = state.step % every == 0
        mask, ok = jax.lax.cond(due, rise, hold, state.mask)
        return state._replace(
            step=optax.safe_increment(state.step),
            mask=mask,
            reached=jnp.where(due & higher & ok, target, state.reached),
            refused=state.refused + (~ok | (due & ~fits)).astype(jnp.int32),
        )

    # Jitted for those who call it eagerly: `cond` would be compiled anew at every step, and a
    # target that is not traced would be read differently.
    return jax.jit(refresh, inline=True)
