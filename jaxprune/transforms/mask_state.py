"""The state every masking transformation keeps, and how to find it in any Optax state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune import trees
from jaxprune.select.candidates import mask_in
from jaxprune.types import Mask, Params, Pruned, PyTree


class MaskState(NamedTuple):
    """Masks live in the optimizer state: jitted, donated, sharded and saved with it.

    Attributes:
      step: number of updates seen, int32 scalar.
      mask: bool tree like the parameters, True = kept.
      reached: the sparsity of the last mask update, float32 scalar.
      refused: mask updates refused because a score was NaN or infinite, or the schedule's sparsity
        not in [0, 1); int32 scalar.
      dense: the hidden dense weights of `straight_through`, with holes where a leaf is not
        prunable; else empty.
    """

    step: jax.Array
    mask: Mask
    reached: jax.Array
    refused: jax.Array
    dense: PyTree = ()


def is_hole(x: Any) -> bool:
    """True for what `optax.masked` and `multi_transform` put in place of others' parameters."""
    return isinstance(x, optax.MaskedNode)


def is_empty(params: Params) -> bool:
    """True for no leaf and no hole, as in the placeholder of `optax.tree_map_params`."""
    return not jax.tree.leaves(params, is_leaf=is_hole)


def cut_out(tree: PyTree, like: PyTree, what: str) -> PyTree:
    """`tree`, with holes where `like` has holes; otherwise their structures must agree."""
    if not any(is_hole(leaf) for leaf in jax.tree.leaves(like, is_leaf=is_hole)):
        return tree
    fill = lambda leaf, part: leaf if is_hole(leaf) else part
    try:
        return jax.tree.map(fill, like, tree, is_leaf=is_hole)
    except ValueError as error:
        raise ValueError(
            f"The {what} does not have the tree structure of the parameters of this "
            f"transformation: {error}"
        ) from None


def initial_state(mask: Mask, params: Params) -> MaskState:
    """The state before the first update: a copy of the mask, placed as the parameters are.

    A copy, because a donated step deletes the state's buffers, and the caller's mask must live on.
    """
    return MaskState(
        step=jnp.zeros((), jnp.int32),
        mask=jax.tree.map(_placed_copy, mask, params),
        reached=jnp.zeros((), jnp.float32),
        refused=jnp.zeros((), jnp.int32),
    )


def _placed_copy(mask: Any, like: Any) -> jax.Array:
    copy = jnp.array(mask, copy=True)
    if isinstance(like, jax.Array) and not trees.is_traced(like) and like.committed:
        return jax.device_put(copy, like.sharding)
    return copy


def masked_updates(updates: PyTree, mask: Mask, params: Params) -> PyTree:
    """`where(mask, u, -p)`: what is pruned lands on exactly 0, whatever came before.

    The update is as wide as the parameter, or `-p` would be rounded and leave a rest.
    """

    def leaf(update: Any, keep: Any, param: Any) -> Any:
        if update is None or not trees.is_inexact(param):
            return update
        dtype = wide_dtype(update, param)
        return jnp.where(keep, jnp.asarray(update, dtype), -jnp.asarray(param, dtype))

    return by_updates(leaf, updates, mask, params)


def by_updates(leaf: Callable[..., Any], updates: PyTree, *rest: PyTree) -> PyTree:
    """`tree.map` over updates, in which None is a leaf: there is no gradient."""
    return jax.tree.map(leaf, updates, *rest, is_leaf=lambda x: x is None)


def wide_dtype(update: Any, param: Any) -> Any:
    """The dtype that holds both exactly."""
    return jnp.promote_types(trees.dtype_of(update), trees.dtype_of(param))


def need_params(params: Params | None) -> Params:
    """The parameters, or an error that says how to pass them."""
    if params is None:
        raise ValueError(
            "A mask is applied to the current parameters, and they were not passed: call "
            "`tx.update(grads, state, params)`."
        )
    return params


def _states(opt_state: PyTree) -> list[MaskState]:
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, MaskState))
    return [node for node in nodes if isinstance(node, MaskState)]


def mask_of(opt_state: PyTree, like: PyTree | None = None) -> Mask:
    """The mask inside an optimizer state, wherever the masking transformation sits in it.

    Args:
      opt_state: the state of any Optax chain or wrapper around ONE masking transformation.
      like: a tree whose containers the mask shall have. Needed with `nnx.Optimizer` alone, which
        keeps its state in Variables of its own kind: `like=nnx.state(model, nnx.Param)`.

    Returns:
      The mask, a bool tree like the parameters. Its arrays are those of the state: a step that
      donates the state deletes them, so read what you need first.

    Raises:
      ValueError: no masking transformation in it, or several; a `like` of another tree.

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
    mask = found[0].mask
    if like is not None:
        mask = _recast(mask, like)
        trees.check_like(like, mask, "mask in the optimizer state", boolean=True)
    # Mapped, so that the Variables of NNX are new ones, which the next update does not write to.
    return jax.tree.map(lambda keep: keep, mask)


def _recast(tree: PyTree, like: PyTree) -> PyTree:
    """`tree` in the containers of `like`, if their leaves have the same names."""
    if trees.paths(tree) != trees.paths(like):
        return tree
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(tree))


def with_mask(opt_state: PyTree, mask: Mask | Pruned) -> PyTree:
    """The same optimizer state with another mask: for a mask update in a jitted call of its own.

    The mask may also be what a Pruner returned.

    `lax.cond` inside `prune_gradually` reserves the memory of a mask update on every step. To
    avoid it, freeze the mask and, every so often, run a jitted Pruner and put its mask here.

    Raises:
      ValueError: no masking transformation in it, or several, or a mask of another tree.
      TypeError: a mask that is not bool.
    """
    old = mask_of(opt_state)
    new = _recast(cut_out(mask_in(mask), old, "mask"), old)
    trees.check_like(old, new, "mask", boolean=True)
    new = jax.tree.map(_placed_copy, new, old)
    is_state = lambda x: isinstance(x, MaskState)
    swap = lambda x: x._replace(mask=new) if is_state(x) else x
    return jax.tree.map(swap, opt_state, is_leaf=is_state)
