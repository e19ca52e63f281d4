"""Structured patterns inside a leaf: N of every M, and blocks."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.select import checks, ranking, threshold
from jaxprune.select.competing import number_parts
from jaxprune.trees import check_sparsity
from jaxprune.types import Mask, Params, Predicate, Scores, Selection


def n_of_m(
    n: int,
    m: int,
    *,
    axis: int | Mapping[str, int] = -2,
    prunable: Predicate = trees.default_prunable,
) -> Selection:
    """Keep the N best of every M consecutive entries along an axis (2:4 and its kin).

    Args:
      n: entries kept in a group, 1 <= n <= m.
      m: entries in a group.
      axis: the axis the groups run along. Sparse matrix units want an input axis, the one that is
        contracted: -2 in Flax's dense and convolution kernels; in attention kernels [inputs, heads,
        size] it is 0. Or a mapping from leaf names to axes (-2 for others).
      prunable: `(name, leaf) -> bool`, which leaves take part.

    Returns:
      A `Selection`. Its sparsity is `1 - n/m`: pass that, or None.

    Raises:
      ValueError: n, m out of range; when called, an axis that m does not divide (the leaf is
        named), another sparsity, or a mapping that names no leaf of the tree.
      TypeError: an `axis` that is none.

    References:
      Mishra et al. 2021, Accelerating Sparse Deep Neural Networks (2:4).

    Example:
      >>> kernel = jnp.array([[1.0], [4.0], [3.0], [2.0]])
      >>> n_of_m(2, 4)([kernel], [kernel])[0].ravel()
      Array([False,  True,  True, False], dtype=bool)
    """
    n, m = _pattern(n, m)
    axes = checks.axis_given(axis, "axis")

    def choose(params: Params, scores: Scores, sparsity: Any) -> Mask:
        fixed = None if trees.is_traced(sparsity) or sparsity is None else check_sparsity(sparsity)
        if fixed is not None and not math.isclose(fixed, 1 - n / m, abs_tol=1e-6):
            raise ValueError(
                f"{n} of {m} has sparsity {1 - n / m}, got sparsity={sparsity}. Pass that or None: "
                "the pattern decides."
            )

        def decide(names: list[str], leaves: list[jax.Array]) -> list[jax.Array]:
            masks = []
            for name, leaf in zip(names, leaves, strict=True):
                groups, inside = _grouped(name, leaf, m, checks.axis_of(axes, name, -2))
                masks.append(_keep_groups(groups, m - n, inside).reshape(leaf.shape))
            return masks

        checks.axes_named(axes, params, "axis")
        return ranking.choose_leaves(params, scores, prunable, decide)

    def part_of(name: str, leaf: Any) -> np.ndarray:
        shape, axis = np.shape(leaf), checks.axis_of(axes, name, -2)
        groups = [d // m if a == axis % len(shape) else d for a, d in enumerate(shape)]
        numbers = np.arange(math.prod(groups), dtype=np.int32).reshape(groups)
        return np.repeat(numbers, m, axis=axis)

    def parts(params: Params) -> Any:
        return number_parts(params, prunable, part_of)

    return Selection(prunable, choose, parts=parts, fixed=1 - n / m)


def _pattern(n: Any, m: Any) -> tuple[int, int]:
    try:
        found = operator.index(n), operator.index(m)
    except TypeError:
        found = 0, 0
    if not 1 <= found[0] <= found[1]:
        raise ValueError(f"n_of_m keeps n of every m entries: 1 <= n <= m, got n={n}, m={m}.")
    return found


def _grouped(name: str, leaf: jax.Array, m: int, axis: int) -> tuple[jax.Array, int]:
    """The leaf with the axis split in groups of m, and the new axis that runs inside a group."""
    if not -leaf.ndim <= axis < leaf.ndim:
        raise ValueError(
            f"{trees.label(name)} has shape {leaf.shape}: axis {axis} does not exist. Name "
            "another axis, or exclude it in `prunable`."
        )
    axis %= leaf.ndim
    if leaf.shape[axis] % m:
        raise ValueError(
            f"{trees.label(name)} has {leaf.shape[axis]} entries along axis {axis} (shape "
            f"{leaf.shape}), which groups of {m} do not divide. Exclude it in `prunable`, or name "
            "another axis."
        )
    shape = leaf.shape[:axis] + (leaf.shape[axis] // m, m) + leaf.shape[axis + 1 :]
    return leaf.reshape(shape), axis + 1


@jax.jit(static_argnums=(1, 2))
def _keep_groups(groups: jax.Array, goes: int, axis: int) -> jax.Array:
    return threshold.keep_largest(groups, jnp.asarray(goes), (axis,))


def blocks(
    shape: tuple[int, int],
    scope: Any = "global",
    *,
    reduce: Any = jnp.sum,
    prunable: Predicate = trees.default_prunable,
    floor: int = 1,
) -> Selection:
    """Prune whole blocks of the last two axes, those with the lowest reduced score.

    Args:
      shape: rows and columns of a block, in the leaf's last two axes.
      scope: where blocks compete: "global", "layer", "erk" or a mapping, as in `lowest`.
      reduce: block score from entry scores, a function with `axis=`. Of a block that is partly
        pruned `jnp.sum`, `mean`, `max` and `min` take the entries that are left; for any other
        function those that are pruned count as 0.
      prunable: `(name, leaf) -> bool`, which leaves take part.
      floor: blocks that every leaf keeps.

    Returns:
      A `Selection` that prunes exactly `round(sparsity * b)` of the b blocks.

    Raises:
      ValueError: when called, a leaf that the block does not divide (it is named), or as `lowest`.

    References:
      Narang et al. 2017, Block-Sparse Recurrent Neural Networks.

    Example:
      >>> kernel = jnp.arange(8.0).reshape(2, 4)
      >>> blocks((2, 2))([kernel], [kernel], sparsity=0.5)[0]
      Array([[False, False,  True,  True],
             [False, False,  True,  True]], dtype=bool)
    """
    rows, columns = _block(shape)
    if scope == "output":
        raise ValueError("Blocks span outputs: use the scope 'layer', 'global' or 'erk'.")
    ranking.check_scope(scope)
    floor = checks.check_floor(floor)

    def pooled(name: str, leaf: jax.Array) -> jax.Array:
        if leaf.ndim < 2 or leaf.shape[-2] % rows or leaf.shape[-1] % columns:
            raise ValueError(
                f"{trees.label(name)} has shape {leaf.shape}, which blocks of {rows} x {columns} "
                "in its last two axes do not divide. Exclude it in `prunable`."
            )
        split = leaf.shape[:-2] + (leaf.shape[-2] // rows, rows, leaf.shape[-1] // columns, columns)
        tiles = leaf.reshape(split)
        # -inf marks what is pruned; a block of which a part is pruned competes with what is left.
        gone = jnp.all(tiles == -jnp.inf, axis=(-3, -1), keepdims=True)
        if reduce in _OF_SOME:
            left = (tiles > -jnp.inf) | gone
            return reduce(tiles, axis=(-3, -1), where=left, **_OF_SOME[reduce])
        finite = jnp.where(tiles == -jnp.inf, 0, tiles)
        return jnp.where(gone[..., 0, :, 0], -jnp.inf, reduce(finite, axis=(-3, -1)))

    def choose(params: Params, scores: Scores, sparsity: Any) -> Mask:
        def decide(names: list[str], leaves: list[jax.Array]) -> list[jax.Array]:
            tiles = [pooled(name, leaf) for name, leaf in zip(names, leaves, strict=True)]
            kept = ranking.rank_leaves(names, tiles, sparsity, scope, floor, words=checks.BLOCKS)
            return [
                jnp.repeat(jnp.repeat(keep, rows, axis=-2), columns, axis=-1) & (leaf > -jnp.inf)
                for keep, leaf in zip(kept, leaves, strict=True)
            ]

        return ranking.choose_leaves(params, scores, prunable, decide)

    return Selection(prunable, choose)


_OF_SOME: dict[Any, dict[str, Any]] = {
    jnp.mean: {},
    jnp.max: {"initial": -jnp.inf},
    jnp.min: {"initial": jnp.inf},
}
"""Reductions to which a pruned entry is no 0, and what they start from when given `where=`."""


def _block(shape: Any) -> tuple[int, int]:
    try:
        rows, columns = (operator.index(d) for d in shape)
    except (TypeError, ValueError):
        rows = columns = 0
    if rows < 1 or columns < 1:
        raise ValueError(f"A block has rows and columns, two integers >= 1; got shape={shape!r}.")
    return rows, columns
