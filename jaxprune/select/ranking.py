"""Prune the entries with the lowest scores, in one ranking or in one a part."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.select import checks, counts, on_host, threshold
from jaxprune.select.competing import along, number_parts
from jaxprune.types import Formed, Mask, Params, Predicate, Scores, Selection

Scope = Literal["global", "layer", "output", "erk"]
SCOPES = ("global", "layer", "output", "erk")
LeafSparsity = float | Callable[[Any], Any]


def lowest(
    scope: Scope | Mapping[str, LeafSparsity] = "global",
    *,
    prunable: Predicate = trees.default_prunable,
    floor: int = 1,
    output_axis: int | Mapping[str, int] = -1,
) -> Selection:
    """Keep the highest scores: exactly `round(sparsity * n)` of n entries go, ties by index.

    The index order is that of the flattened tree, then row-major inside a leaf, so a higher
    sparsity always prunes a superset.

    Args:
      scope: where scores compete. "global": one ranking over all prunable leaves. "layer": every
        leaf loses the same share. "output": every output unit of a leaf (an index of
        `output_axis`) loses the same share. "erk": a share per leaf that grows with its size
        (Evci et al. 2020). Or a mapping from leaf names to their own sparsities, each a number or
        a function of the call's sparsity; leaves it does not name get the call's sparsity.
      prunable: `(name, leaf) -> bool`, which leaves take part.
      floor: entries that every leaf keeps, its best ones. In the global scope they leave the
        ranking first and the total stays exact; in the others a leaf that would keep fewer is an
        error (inside jit, where nothing can be raised, it keeps `floor`).
      output_axis: the axis of output units in the scope "output"; -1 as Flax stores kernels. Or a
        mapping from leaf names (-1 for others), such as `jp.saliency.output_axes` reads off.

    Returns:
      A `Selection`: `(params, scores, *, sparsity) -> Mask`, `sparsity` may be traced.

    Raises:
      ValueError: an unknown scope or leaf name, a negative floor; when called, a sparsity that
        the floor does not allow or that is below the one already reached, or NaN scores.
      TypeError: an `output_axis` that is none.

    Example:
      >>> params = {"kernel": jnp.array([[1.0, -4.0], [2.0, 3.0]])}
      >>> lowest()(params, jax.tree.map(jnp.abs, params), sparsity=0.5)["kernel"]
      Array([[False,  True],
             [False,  True]], dtype=bool)
    """
    check_scope(scope)
    floor, axis = checks.check_floor(floor), checks.axis_given(output_axis, "output_axis")

    def choose(params: Params, scores: Scores, sparsity: Any) -> Mask:
        checks.axes_named(axis, params, "output_axis")
        rank = lambda names, leaves: rank_leaves(names, leaves, sparsity, scope, floor, axis)
        return choose_leaves(params, scores, prunable, rank)

    def parts(params: Params) -> Any:
        if scope != "output":
            whole = lambda name, leaf: np.zeros(np.shape(leaf), np.int32)
            return number_parts(params, prunable, whole, together=scope == "global")
        at = lambda name, leaf: along(leaf, checks.axis_of(axis, name, -1))
        return number_parts(params, prunable, at)

    return Selection(prunable, choose, parts=parts, takes_formed=True)


def choose_leaves(
    params: Params,
    scores: Scores,
    prunable: Predicate,
    decide: Callable[[list[str], list[jax.Array]], list[jax.Array]],
) -> Mask:
    """The mask of a whole tree from `decide(names, scores) -> masks` of its prunable leaves."""
    flags = trees.prunable_flags(params, prunable)
    trees.check_like(params, scores, "scores")
    names = [name for flag, name in zip(flags, trees.paths(params), strict=True) if flag]
    given = trees.select_leaves(scores, flags)
    for name, leaf in zip(names, given, strict=True):
        if jnp.issubdtype(trees.dtype_of(leaf), jnp.complexfloating):
            raise TypeError(
                f"The score of {trees.label(name)} is {trees.dtype_of(leaf)}, and complex numbers "
                "have no order. Score by a real number, such as the magnitude."
            )
    leaves: list[Any] = [
        leaf if isinstance(leaf, Formed) else jnp.asarray(leaf).astype(trees.score_dtype(leaf))
        for leaf in given
    ]
    checks.numbers(names, leaves)
    masks = decide(names, leaves)
    return trees.replace_leaves(params, flags, masks, trees.kept_whole)


def check_scope(scope: Any) -> None:
    """Raise for a scope that does not exist, with the nearest that does."""
    if isinstance(scope, Mapping) or scope in SCOPES:
        return
    near = difflib.get_close_matches(str(scope), SCOPES, 1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise ValueError(
        f"Unknown scope {scope!r}. Known: {', '.join(SCOPES)}, or a mapping from leaf names to "
        f"sparsities.{hint}"
    )


def rank_leaves(
    names: list[str],
    scores: list[jax.Array],
    sparsity: Any,
    scope: Scope | Mapping[str, LeafSparsity],
    floor: int,
    output_axis: int | Mapping[str, int] = -1,
    words: checks.Words = checks.ENTRIES,
    slack: int = 0,
) -> list[jax.Array]:
    """The masks of the prunable leaves, given their scores; `slack` as in `checks.reached`."""
    formed = any(isinstance(leaf, Formed) for leaf in scores)
    sizes = [leaf.size for leaf in scores]
    limits = [n - min(floor, n) for n in sizes]  # at most so many of a leaf may go
    if scope == "global":
        goes = counts.pruned_count(_required(sparsity), sum(sizes))
        few = on_host.takes(scores, goes)
        gone = [_gone(leaf, tuple(range(leaf.ndim)), few) for leaf in scores]
        # What is pruned already cannot be protected.
        larger = max if few else jnp.maximum
        most: list[Any] = [larger(limit, g) for limit, g in zip(limits, gone, strict=True)]
        if not trees.is_traced(goes):
            limit = sum(limits) if trees.is_traced(most) else sum(int(m) for m in most)
            checks.one_ranking(goes, sum(sizes), limit, floor, len(sizes), words)
            checks.reached(words.whole, sum(gone), goes, words, slack)
        if few:
            return on_host.one_ranking(scores, goes, most)
        run = _one_ranking if formed else _global
        return run(scores, jnp.asarray(goes, trees.count_dtype(sum(sizes))), most)
    at = lambda name: checks.axis_of(output_axis, name, -1)
    axes = [_part_axes(leaf, scope, at(n)) for n, leaf in zip(names, scores, strict=True)]
    parts = [math.prod(leaf.shape[a] for a in ax) for leaf, ax in zip(scores, axes, strict=True)]
    wanted = leaf_sparsities(names, [leaf.shape for leaf in scores], sparsity, scope)
    goes = counts.pruned_counts(wanted, parts)
    few = on_host.takes(scores, goes)
    if not trees.is_traced(goes):
        checks.by_parts(names, goes, parts, sizes, floor, words)
        for name, leaf, ax, k in zip(names, scores, axes, goes, strict=True):
            checks.reached(words.part(name), _gone(leaf, ax, few), k, words, slack)
    if few:
        return on_host.by_parts(scores, goes, axes)
    # A floor inside jit: no error can be raised there, so a part gives up at most what it may.
    caps = [part - _part_floor(floor, part, n) for part, n in zip(parts, sizes, strict=True)]
    goes = [jnp.minimum(jnp.asarray(k), m) for k, m in zip(goes, caps, strict=True)]
    return (_each_part if formed else _by_parts)(scores, goes, tuple(axes))


def _part_floor(floor: int, part: int, size: int) -> int:
    """Entries that each of a leaf's `size / part` parts keeps, so that the leaf keeps `floor`."""
    return -(-min(floor, size) * part // size) if size else part


def leaf_sparsities(
    names: list[str],
    shapes: list[tuple[int, ...]],
    sparsity: Any,
    scope: Scope | Mapping[str, LeafSparsity],
) -> list[Any]:
    """A sparsity per leaf for the scopes "layer", "output", "erk" and for a mapping."""
    if scope == "erk":
        nonempty = [i for i, shape in enumerate(shapes) if math.prod(shape)]
        found = counts.erk_sparsities([shapes[i] for i in nonempty], _required(sparsity))
        spread: list[Any] = [0.0] * len(shapes)
        for i, value in zip(nonempty, found, strict=True):
            spread[i] = value
        return spread
    if not isinstance(scope, Mapping):
        return [_required(sparsity)] * len(names)
    trees.check_names([name for name in names if name in scope])
    for key in scope:
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"No prunable leaf is named '{key}'. There are {names}.{hint}")
    chosen = [scope.get(name, sparsity) for name in names]
    values = [own(_required(sparsity)) if callable(own) else own for own in chosen]
    return [
        trees.check_sparsity(_required(v), f"sparsity of {trees.label(n)}")
        for n, v in zip(names, values, strict=True)
    ]


def _required(sparsity: Any) -> Any:
    if sparsity is None:
        raise ValueError("This selection needs a sparsity in [0, 1): pass `sparsity=`.")
    return trees.check_sparsity(sparsity)


def _part_axes(leaf: jax.Array, scope: Any, output_axis: int) -> threshold.Axes:
    everything = tuple(range(leaf.ndim))
    if scope != "output":
        return everything
    if leaf.ndim == 0:
        return ()
    if not -leaf.ndim <= output_axis < leaf.ndim:
        raise ValueError(
            f"output_axis={output_axis} does not exist in a leaf of shape {leaf.shape}. Exclude "
            "that leaf in `prunable`, or name another axis."
        )
    return tuple(a for a in everything if a != output_axis % leaf.ndim)


def _gone(leaf: Any, axes: threshold.Axes, few: bool) -> Any:
    """The largest number of `-inf`, entries pruned already, in a part."""
    return on_host.gone(leaf, axes) if few else threshold.gone(threshold.read(leaf)[0], axes)


def _each_part(
    scores: list[Any], goes: list[jax.Array], axes: tuple[threshold.Axes, ...]
) -> list[jax.Array]:
    return [
        threshold.keep_largest(leaf, k, ax) for leaf, k, ax in zip(scores, goes, axes, strict=True)
    ]


_by_parts = jax.jit(_each_part, static_argnums=2)


def _one_ranking(scores: list[Any], goes: jax.Array, limits: list[jax.Array]) -> list[jax.Array]:
    """One ranking over all leaves, in which leaf i gives up at most `limits[i]` entries.

    A leaf's best entries are protected, so it has `min(entries below v, limit)` entries to give
    below v: the floor costs nothing in the search, and the total is exact.
    """
    dtype = jnp.result_type(*[leaf.dtype for leaf in scores])
    wide = trees.count_dtype(sum(leaf.size for leaf in scores))
    parts = [
        (leaf.astype(dtype), limit) for leaf, limit in zip(scores, limits, strict=True) if leaf.size
    ]
    axes = [tuple(range(leaf.ndim)) for leaf, _ in parts]

    def given(pivots: list[jax.Array]) -> list[jax.Array]:
        totals = [jnp.zeros((), wide) for _ in pivots]
        for (leaf, limit), ax in zip(parts, axes, strict=True):
            found = threshold.below(leaf, pivots, ax)
            totals = [
                t + jnp.minimum(c.reshape(()), limit) for t, c in zip(totals, found, strict=True)
            ]
        return totals

    goes = jnp.clip(goes, 0, sum(limits))
    value = threshold.cut_value(given, goes, dtype)
    near = []
    for (leaf, _), ax in zip(parts, axes, strict=True):
        near.append(threshold.around(leaf, jnp.broadcast_to(value, (1,) * leaf.ndim), ax))
    spare = goes  # what is left for the entries equal to the value
    for (_, limit), (lower, _) in zip(parts, near, strict=True):
        spare = spare - jnp.minimum(lower.reshape(()), limit)
    masks = []
    for (leaf, limit), ax, (lower, ties) in zip(parts, axes, near, strict=True):
        open_ties = jnp.clip(limit - lower, 0, ties).reshape(())
        taken = jnp.minimum(spare, open_ties.astype(spare.dtype))
        spare = spare - taken
        bound = _leaf_bound(leaf, limit, ax, value, lower, ties, taken)
        masks.append(threshold.keep_from(leaf, bound, ax))
    found_masks = iter(masks)
    return [next(found_masks) if leaf.size else jnp.ones(leaf.shape, bool) for leaf in scores]


_global = jax.jit(_one_ranking)


def _leaf_bound(
    leaf: threshold.Scores,
    limit: jax.Array,
    axes: threshold.Axes,
    value: jax.Array,
    lower: jax.Array,
    ties: jax.Array,
    taken: jax.Array,
) -> threshold.Bound:
    """The leaf's bound at the global value, below which `lower` entries lie; `taken` ties go."""
    goes = jnp.broadcast_to(taken.astype(lower.dtype), lower.shape)
    most = jnp.broadcast_to(limit.astype(lower.dtype), lower.shape)
    value = jnp.broadcast_to(value, lower.shape)
    # Where the floor bites, the cut is inside the leaf's own ranking, below the global value.
    own = lambda _: threshold.bound_of(leaf, most, axes)
    shared = lambda _: threshold.bound_at(leaf, value, goes, ties, axes)
    return jax.lax.cond((lower > limit).reshape(()), own, shared, None)
