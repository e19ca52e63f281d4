"""Copies of the parameters inside any optimizer's state, found by their structure."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune import trees
from jaxprune.transforms.mask_state import is_hole
from jaxprune.types import Mask, Params, PyTree


def reset_moments(
    optimizer: optax.GradientTransformation, opt_state: PyTree, params: Params, where: Mask
) -> PyTree:
    """Give chosen entries the state that `optimizer.init` gives them, and touch nothing else.

    `s <- where(chosen, init(params).s, s)` for every copy of the parameters in the state: first
    and second moments, accumulated gradients, averages, reference weights. Moments start at 0 in
    nearly every optimizer (Adagrad's accumulator at 0.1), copies of weights at the weight. Left
    alone is what belongs to no single entry: counters, hyperparameters, a norm a leaf, row and
    column statistics (Adafactor, SM3).

    A copy is a part of the state with the tree structure of the parameters, holes of
    `optax.masked` and `multi_transform` allowed, and in it a leaf of its parameter's shape; or the
    one vector into which `optax.flatten` joins all leaves.

    Args:
      optimizer: the transformation that the state is of.
      opt_state: its state.
      params: the parameters that the chosen entries start from.
      where: bool tree like the parameters, True = reset.

    Returns:
      A state like `opt_state`, of the same dtypes.

    Raises:
      ValueError: `where` of another structure or shape, the leaf is named. TypeError: not bool.

    References:
      Evci et al. 2020, Rigging the Lottery: moments of new connections are set to 0.

    Example:
      >>> tx, params = optax.sgd(0.1, momentum=0.9), {"kernel": jnp.ones((1, 2))}
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> reset_moments(tx, state, params, {"kernel": jnp.array([[True, False]])})[0].trace
      {'kernel': Array([[0., 1.]], dtype=float32)}
    """
    trees.check_like(params, where, "tree of entries to reset", boolean=True)
    flags = jax.tree.leaves(where, is_leaf=is_hole)
    structure: Any = jax.tree.structure(where, is_leaf=is_hole)
    entries = sum(math.prod(np.shape(flag)) for flag in flags if not is_hole(flag))
    joined = [jnp.ravel(flag) for flag in flags if not is_hole(flag)]

    def copies(node: Any) -> bool:
        return jax.tree.structure(node, is_leaf=is_hole) == structure

    def renew(node: Any, fresh: Any) -> Any:
        if copies(node):
            leaves, starts = (jax.tree.leaves(tree, is_leaf=is_hole) for tree in (node, fresh))
            return jax.tree.unflatten(structure, map(_chosen, leaves, starts, flags))
        if np.shape(node) == (entries,):
            return _chosen(node, fresh, jnp.concatenate(joined))
        return node

    return jax.tree.map(renew, opt_state, optimizer.init(params), is_leaf=copies)


def _chosen(leaf: Any, start: Any, flag: Any) -> Any:
    """The starting value where the flag says so, if the leaf has an entry for every flag."""
    if is_hole(leaf) or is_hole(flag) or not trees.is_inexact(leaf):
        return leaf
    if np.shape(leaf) != np.shape(flag):
        return leaf
    return jnp.where(flag, jnp.asarray(start, leaf.dtype), leaf)
