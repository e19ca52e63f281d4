"""`shrink`: really smaller arrays, of the variables and of everything that has their shape."""

from __future__ import annotations

import warnings
from typing import Any

import jax

from jaxprune import trees
from jaxprune.coupling.groups import Coupling, Kept
from jaxprune.coupling.models import check_concrete
from jaxprune.structure.carrying import carry_along
from jaxprune.structure.dead import dead_units
from jaxprune.structure.slices import cut
from jaxprune.types import Mask, Params, PyTree


def shrink(
    variables: Params,
    mask: Mask,
    coupling: Coupling,
    *others: PyTree,
    optimizer: Any = None,
) -> Any:
    """Remove the units that a mask has killed: `apply(shrink(v, mask)) == apply(masked v)`.

    A unit goes if all its slices are pruned; or if all its incoming or all its outgoing weights
    are. With only the incoming ones pruned it still emits a constant (its bias, BatchNorm's offset
    through the activation), which is moved into the next bias or mean. Where that cannot be exact
    (zero padding, a sum over the axis, a bias whose entry is pruned) the unit stays, masked, and a
    warning says why. So more units may go than `coupling.kept(mask)` says: those that stayed, for
    `shrunk_apply`, are `dead_units(variables, mask, coupling).kept`. What is pruned in between
    stays 0. An array that lies on a mesh stays there, each axis cut as it was if
    the mesh axes divide its new size; otherwise that axis is whole on every device.

    Args:
      variables: what was coupled, parameters and statistics.
      mask: the same structure, bool, True = kept.
      coupling: from `couple`.
      *others: pytrees with copies of the variables or of one of their collections in them, at any
        depth: optimizer states, moving averages, masks. They are sliced likewise, and so is every
        `{group: [units]}` in them, such as what `jp.remove_units` has summed.
      optimizer: the Optax optimizer, if a state among `others` holds statistics of other shapes
        than the parameters' (Adafactor): those that do not fit are initialised anew, with a
        warning that names them.

    Returns:
      The smaller variables, of the same structure; with `others` a tuple of them all.

    Raises:
      ValueError: trees that differ from what was coupled; a group that would be left empty; a
        leaf of `others` that cannot be sliced, or has the length of a changed axis and no
        variable's name at the end of its own, and no `optimizer` was given.
      TypeError: a mask that is not bool, or traced.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> from jaxprune.coupling import couple
      >>> apply = lambda w, x: jax.nn.relu(x @ w[0]) @ w[1]
      >>> w = [jnp.ones((3, 4)), jnp.ones((4, 2))]
      >>> coupling = couple(apply, w, jnp.ones((1, 3)))
      >>> mask = coupling.mask({"0": np.array([True, False, True, False])}, w)
      >>> [leaf.shape for leaf in shrink(w, mask, coupling)]
      [(3, 2), (2, 2)]
    """
    coupling.check(variables)
    trees.check_like(variables, mask, "mask", boolean=True)
    check_concrete(mask, "the mask")
    dead = dead_units(variables, mask, coupling)
    for name, why in dead.stuck.items():
        warnings.warn(
            f"Units of the group {name!r} emit a constant and were kept, masked: {why}.",
            stacklevel=2,
        )
    flags = coupling.vector(dead.kept)
    leaves, structure = jax.tree.flatten(trees.apply_mask(variables, mask))
    for number, amount in dead.folds.items():
        leaf = leaves[number]
        leaves[number] = (leaf + amount).astype(leaf.dtype)
    small = [cut(leaf, axes, flags) for leaf, axes in zip(leaves, coupling.labels, strict=True)]
    result = jax.tree.unflatten(structure, small)
    if not others:
        return result
    carried = carry_along(coupling, flags, variables, result, others, optimizer)
    return (result, *carried)


def shrink_units(variables: Params, kept: Kept, coupling: Coupling) -> Params:
    """The variables without the units that are not kept; no mask needed.

    Args:
      variables: what was coupled.
      kept: `{group: bool[units]}`, True = kept.
      coupling: from `couple`.

    Raises:
      ValueError: an unknown group, a wrong number of units, a group left empty.
      TypeError: `kept` is traced, or not bool.
    """
    coupling.check(variables)
    check_concrete(kept, "the units kept")
    flags = coupling.vector(kept)
    leaves, structure = jax.tree.flatten(variables)
    small = [cut(leaf, axes, flags) for leaf, axes in zip(leaves, coupling.labels, strict=True)]
    return jax.tree.unflatten(structure, small)
