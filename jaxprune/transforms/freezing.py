"""Masks that do not change: pruned stays pruned."""

from __future__ import annotations

from typing import Any

import jax
import optax

from jaxprune import trees
from jaxprune.prune import one_shot
from jaxprune.saliency.weights import random
from jaxprune.select.candidates import mask_in
from jaxprune.select.ranking import lowest
from jaxprune.transforms.mask_state import (
    MaskState,
    cut_out,
    initial_state,
    is_empty,
    masked_updates,
    need_params,
)
from jaxprune.types import Mask, Params, Pruned, PyTree, Selection


def freeze_pruned(mask: Mask | Pruned) -> optax.GradientTransformationExtraArgs:
    """Keep pruned parameters at exactly 0: put it LAST in the chain.

    The update becomes `where(mask, u, -p)`, so that momentum, weight decay and rounding before it
    cannot bring a weight back. The mask lives in the optimizer state, not in the compiled step.

    Exactly 0 are the parameters that the chain moves. Optimizers that keep others besides move
    those by themselves: `schedule_free` averages, `lookahead` slow parameters. Start these from
    masked parameters, and evaluate `jp.apply_mask(found, jp.mask_of(state))`. `mechanize` scales
    what a chain inside it says, so put the masking after it, not inside.

    Args:
      mask: bool tree like the parameters, True = kept; or what a Pruner returned.

    Returns:
      A gradient transformation; `update` needs `params`. It works inside `optax.chain`,
      `MultiSteps`, `masked`, `multi_transform`, `inject_hyperparams`.

    Raises:
      ValueError: at `init`, a mask of another structure or shape, the leaf is named; at `update`,
        no `params`. TypeError: at `init`, a mask that is not bool.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = optax.chain(optax.sgd(0.1), freeze_pruned(jnp.array([True, False])))
      >>> params = jnp.array([1.0, 5.0])
      >>> updates, state = tx.update(jnp.array([1.0, 1.0]), tx.init(params), params)
      >>> optax.apply_updates(params, updates)
      Array([0.9, 0. ], dtype=float32)
    """

    mask = mask_in(mask)

    def init(params: Params) -> MaskState:
        if is_empty(params):
            return initial_state(params, params)
        mine = cut_out(mask, params, "mask")
        trees.check_like(params, mine, "mask", boolean=True)
        return initial_state(mine, params)

    return optax.GradientTransformationExtraArgs(init, _hold)


def _hold(
    updates: PyTree, state: MaskState, params: Params | None = None, **extra: Any
) -> tuple[PyTree, MaskState]:
    params = need_params(params)
    held = masked_updates(updates, state.mask, params)
    return held, state._replace(step=optax.safe_increment(state.step))


def freeze_random(
    key: jax.Array, sparsity: float, select: Selection | None = None
) -> optax.GradientTransformationExtraArgs:
    """A static random mask, drawn at `init` and kept: the control every sparse training needs.

    The first update zeroes what the mask drops.

    Args:
      key: PRNG key of the mask.
      sparsity: fraction pruned, in [0, 1).
      select: where the random scores compete; by default `jp.select.lowest("layer")`.

    Returns:
      A gradient transformation to put last in the chain; `update` needs `params`.

    Raises:
      ValueError: a sparsity outside [0, 1); at `init`, one that `select` does not allow.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune.transforms import mask_of
      >>> tx = optax.chain(optax.sgd(0.1), freeze_random(jax.random.key(0), 0.75))
      >>> int(mask_of(tx.init({"kernel": jnp.ones((4, 4))}))["kernel"].sum())
      4
    """
    trees.check_sparsity(sparsity)
    prune = one_shot(random(key), lowest("layer") if select is None else select)

    def init(params: Params) -> MaskState:
        drawn = params if is_empty(params) else prune(params, sparsity=sparsity).mask
        return initial_state(drawn, params)

    return optax.GradientTransformationExtraArgs(init, _hold)
