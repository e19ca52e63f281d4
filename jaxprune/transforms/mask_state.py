"""The state every masking transformation keeps, and how to find it in any Optax state."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune import trees
from jaxprune.types import Mask, Params, PyTree


class MaskState(NamedTuple):
    """Masks live in the optimizer state: jitted, donated, sharded and saved with it.

    Attributes:
      step: number of updates seen, int32 scalar.
      mask: bool tree like the parameters, True = kept.
      reached: the sparsity of the last mask update, float32 scalar.
      refused: mask updates refused because a score was NaN or infinite, int32 scalar.
      dense: the hidden dense weights of `straight_through`, else empty.
    """

    step: jax.Array
    mask: Mask
    reached: jax.Array
    refused: jax.Array
    dense: PyTree = ()


def is_hole(x: Any) -> bool:
    """True for what `optax.masked` and `multi_transform` put in place of others' parameters."""
    return isinstance(x, optax.MaskedNode)


def cut_out(tree: PyTree, like: PyTree, what: str) -> PyTree:
    """`tree`, with holes where `like` has holes; otherwise their structures must agree."""
    leaves, structure = jax.tree.flatten(like, is_leaf=is_hole)
    if not any(is_hole(leaf) for leaf in leaves):
        return tree
    try:
        parts = structure.flatten_up_to(tree)
    except ValueError as error:
        raise ValueError(
            f"The {what} does not have the tree structure of the parameters of this "
            f"transformation: {error}"
        ) from None
    filled = [leaf if is_hole(leaf) else part for leaf, part in zip(leaves, parts, strict=True)]
    return jax.tree.unflatten(structure, filled)


def initial_state(mask: Mask, dense: PyTree = ()) -> MaskState:
    """The state before the first update."""
    return MaskState(
        step=jnp.zeros((), jnp.int32),
        mask=jax.tree.map(jnp.asarray, mask),
        reached=jnp.zeros((), jnp.float32),
        refused=jnp.zeros((), jnp.int32),
        dense=dense,
    )


def masked_updates(updates: PyTree, mask: Mask, params: Params) -> PyTree:
    """`where(mask, u, -p)`: what is pruned lands on exactly 0, whatever came before."""

    def leaf(update: Any, keep: Any, param: Any) -> Any:
        if update is None or not trees.is_inexact(param):
            return update
        update = jnp.asarray(update)
        return jnp.where(keep, update, (-jnp.asarray(param)).astype(update.dtype))

    return jax.tree.map(leaf, updates, mask, params, is_leaf=lambda x: x is None)


def need_params(params: Params | None, who: str) -> Params:
    """The parameters, or an error that says how to pass them."""
    if params is None:
        raise ValueError(
            f"`{who}` needs the current parameters: call `tx.update(grads, state, params)`."
        )
    return params


def _states(opt_state: PyTree) -> list[MaskState]:
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, MaskState))
    return [node for node in nodes if isinstance(node, MaskState)]


def mask_of(opt_state: PyTree) -> Mask:
    """The mask inside an optimizer state, wherever the masking transformation sits in it.

    Args:
      opt_state: the state of any Optax chain or wrapper around ONE masking transformation.

    Returns:
      The mask, a bool tree like the parameters.

    Raises:
      ValueError: no masking transformation in it, or several.

    Example:
      >>> from jaxprune.transforms import freeze_pruned
      >>> tx = optax.chain(optax.adam(1e-3), freeze_pruned([jnp.array([True, False])]))
      >>> mask_of(tx.init([jnp.ones(2)]))
      [Array([ True, False], dtype=bool)]
    """
    found = _states(opt_state)
    if len(found) != 1:
        raise ValueError(
            f"Found {len(found)} masking transformations in the optimizer state, expected one. "
            "Pass the state of the part that holds it."
        )
    return found[0].mask


def with_mask(opt_state: PyTree, mask: Mask) -> PyTree:
    """The same optimizer state with another mask: for a mask update in a jitted call of its own.

    `lax.cond` inside `prune_gradually` reserves the memory of a mask update on every step. To
    avoid it, freeze the mask and, every so often, run a jitted Pruner and put its mask here.

    Raises:
      ValueError: no masking transformation in it, or several, or a mask of another tree.
    """
    trees.check_like(mask_of(opt_state), mask, "mask", boolean=True)
    is_state = lambda x: isinstance(x, MaskState)
    swap = lambda x: x._replace(mask=mask) if is_state(x) else x
    return jax.tree.map(swap, opt_state, is_leaf=is_state)
