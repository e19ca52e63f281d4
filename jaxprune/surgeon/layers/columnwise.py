"""SparseGPT: one sweep over the inputs of each layer, all outputs together."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.curvature.examples import check_count
from jaxprune.surgeon.layers.calibration import Weight
from jaxprune.surgeon.layers.layer_by_layer import Case, Method, layer_by_layer
from jaxprune.surgeon.layers.least_squares import check_damping, check_regular, damped
from jaxprune.surgeon.layers.limits import Choice, Limits
from jaxprune.surgeon.layers.sweep import Quota, columns, losses, swept, upper_factor
from jaxprune.surgeon.progress import Progress
from jaxprune.types import Apply, Pruner, Selection


def sparse_gpt(
    apply: Apply,
    *,
    select: Selection | None = None,
    damping: float = 0.01,
    block: int = 128,
    microbatch: int | None = None,
    sequential: bool = True,
    progress: Progress | None = None,
) -> Pruner:
    """SparseGPT: layer by layer, prune in one sweep over the inputs and make up in those to come.

    With `H^-1 = U' U`, U upper triangular and `H = (1/N) sum_n sum_p x_np x_np'` of the layer's i
    inputs, the inputs are visited in order. For all outputs at once, the weights w of input i that
    the mask takes are set to 0, and later ones moved:

        W[j] <- W[j] - (w_i / U_ii) U_ij,    j >= i.

    The mask of a block of inputs is chosen when the sweep reaches it, the lowest `w^2 / U_ii^2` of
    the weights as they have become, over all outputs. Blocks lose equal shares, so that the leaf
    loses exactly what `select` takes from it. One factorisation serves all outputs, where
    `exact_obs` has one for each: far cheaper, a little worse.

    What a given `mask` has pruned counts, and stays pruned: inputs before it in the sweep may move
    it, so it is pruned again, and made up for, when the sweep reaches it. A call that prunes
    nothing more changes no bit.

    Args:
      apply: `(params, inputs) -> outputs`, where each example's outputs depend on its inputs only
        (BatchNorm in inference mode).
      select: how much goes; by default `jp.select.lowest("layer")`. Its `prunable` says which
        leaves take part: all of them weights of dense layers or convolutions. It gives every leaf
        its number of entries (scopes "layer", "erk", a mapping), or every output its own (scope
        "output"), or groups of M along the inputs (`n_of_m`; a group's mask is chosen when the
        sweep reaches it). In the scope "global" the number of each leaf comes from one ranking
        of `w^2 / U_ii^2` in the dense model.
      damping: `damping mean(diag H)` is added to the diagonal. 0 where no inputs are
        dependent on this batch; an input that is always 0 does no harm.
      block: inputs in a block; a number that m does not divide is raised to one that it does.
      microbatch: examples at once, as in `input_hessians`.
      sequential: measure the inputs of every layer in the model whose layers before it are pruned
        already. False: measure once. One leaf is measured once, also where layers read slices of
        it (`scan` over stacked layers).
      progress: called with `(leaf name, leaves done, leaves in all)` after every leaf.

    Returns:
      A `Pruner`, to be called outside jit; its batch is `(inputs, targets)`, the targets not read
      (they may be None). `info["output_error"]` has by leaf `|X w - X w0|^2 / |X w0|^2` with the
      mask alone ("removed") and with the new weights ("updated").

    Raises:
      ValueError: a selection of units, a negative damping, a block that is no count; when
        called, as `exact_obs`, or a selection that no sweep can keep to, such as blocks of
        weights; the leaf is named.

    References:
      Frantar and Alistarh 2023, SparseGPT, algorithm 1. There a block prunes what is at or below a
      threshold, here exact counts, the remainder spread over the blocks.

    Example:
      >>> x = jnp.array([[1.0, 1.0, 0.0], [2.0, 2.0, 1.0], [0.0, 0.0, 2.0]])
      >>> prune = sparse_gpt(lambda w, x: x @ w)
      >>> prune(jnp.array([[1.0], [2.0], [3.0]]), (x, None), sparsity=1 / 3).params.ravel().round(1)
      Array([0., 3., 3.], dtype=float32)
    """
    check_damping(damping)
    check_count("block", block)
    method = Method(
        partial(_choose, damping=damping), partial(_operate, damping=damping, block=block)
    )
    return layer_by_layer(
        apply,
        method,
        select=select,
        microbatch=microbatch,
        sequential=sequential,
        progress=progress,
    )


def _choose(cases: list[Case], choice: Choice, *, damping: float) -> list[np.ndarray]:
    """Masks whose counts are those of leaves that compete, from the losses of the dense weights."""
    scores = []
    for case in cases:
        parts = []
        for hessian, old in zip(case.hessians, case.old, strict=True):
            hessian, dead = damped(hessian, damping)
            parts.append(losses(_factor(hessian, case.weight.name), old, dead))
        scores.append(case.weight.gather([np.asarray(x) for x in parts]))
    weights = [case.weight for case in cases]
    masks = choice(weights, scores)
    _check_reachable(choice, weights, [Limits(int((~mask).sum())) for mask in masks])
    return masks


def _operate(
    case: Case, choice: Choice, mask: np.ndarray | None, *, damping: float, block: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The sweep over each part; `mask` says only how many go."""
    limits = case.limits if mask is None else Limits(int((~mask).sum()))
    assert limits is not None
    if mask is None:
        _check_reachable(choice, [case.weight], [limits])
    unread, quotas = _quotas(case, choice, limits, block)
    new, masks = [], []
    for p, quota in enumerate(quotas):
        hessian, dead = damped(case.hessians[p], damping)
        order = _order(limits, p, hessian.shape[1])
        back = np.argsort(order)
        turned = np.asarray(hessian)[:, order[:, None], order]
        factor = _factor(jnp.asarray(turned), case.weight.name)
        old, alive = case.old[p][:, order], case.alive[p][:, order]
        values, keep = swept(factor, old, alive, np.asarray(dead)[:, order], quota)
        new.append(values[:, back])
        masks.append(keep[:, back])
    return np.where(case.weight.read(), case.weight.gather(masks), unread), new


def _factor(hessian: jax.Array, name: str) -> jax.Array:
    factor = upper_factor(hessian)
    check_regular(hessian, np.diagonal(np.asarray(factor), axis1=1, axis2=2) ** 2, name)
    return factor


def _order(limits: Limits, p: int, inputs: int) -> np.ndarray:
    """The order of the sweep: as the inputs lie, but groups of M one after the other."""
    return (
        np.arange(inputs) if limits.groups is None else np.argsort(limits.groups[p], kind="stable")
    )


def _quotas(
    case: Case, choice: Choice, limits: Limits, block: int
) -> tuple[np.ndarray, list[Quota]]:
    """What goes among entries that nothing reads (a mask, as the leaf), and in every part."""
    unread = _unread(choice, case.weight, limits)
    alive = [a[:, _order(limits, p, a.shape[1])] for p, a in enumerate(case.alive)]
    if limits.groups is not None:
        return unread, [_of_groups(limits, p, block, a.shape[1]) for p, a in enumerate(alive)]
    if limits.rows is not None:
        return unread, [
            _of_rows(rows, a, block) for rows, a in zip(limits.rows, alive, strict=True)
        ]
    return unread, _of_leaf(limits.total - int((~unread).sum()), alive, block)


def _unread(choice: Choice, weight: Weight, limits: Limits) -> np.ndarray:
    """A mask like the leaf: entries that its layers do not read cost nothing, and go first.

    Groups of M that nothing reads lose as many as the others.
    """
    old = choice.old[weight.leaf]
    if limits.groups is not None:
        (keep,) = choice([weight], [np.zeros(weight.shape)])
        return np.where(weight.read(), old, keep)
    free = np.flatnonzero(old & ~weight.read())
    keep = old.copy()
    keep.flat[free[: limits.total - int((~old).sum())]] = False
    return keep


def _of_groups(limits: Limits, p: int, block: int, inputs: int) -> Quota:
    assert limits.groups is not None
    m = inputs // (int(limits.groups[p].max()) + 1)
    block = min(-(-block // m) * m, inputs)
    goes = np.full((columns(inputs, block) // m, 1, 1, 1), limits.goes)
    return Quota(block, m, (1,), goes)


def _of_rows(rows: np.ndarray, alive: np.ndarray, block: int) -> Quota:
    """Every row loses its share of each block."""
    block = min(block, alive.shape[1])
    there, gone = _counts(alive, block)
    more = rows - (~alive).sum(axis=1)
    return Quota(block, block, (1,), (_spread(more, there) + gone)[:, :, None])


def _of_leaf(more: int, alive: list[np.ndarray], block: int) -> list[Quota]:
    """Every block loses its share of what the leaf loses."""
    blocks = [min(block, a.shape[1]) for a in alive]
    counts = [_counts(a, size) for a, size in zip(alive, blocks, strict=True)]
    there = np.concatenate([t.sum(axis=(1, 2)) for t, _ in counts])
    spread = _spread(np.array(more), there)
    quotas = []
    for size, (t, gone) in zip(blocks, counts, strict=True):
        mine, spread = spread[: len(t)], spread[len(t) :]
        goes = (mine + gone.sum(axis=(1, 2))).reshape(-1, 1, 1, 1)
        quotas.append(Quota(size, size, (0, 1, 2), goes))
    return quotas


def _counts(alive: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Entries that are there and that are not, by block, [blocks, b, o]."""
    b, i, o = alive.shape
    wide = np.pad(alive, [(0, 0), (0, columns(i, block) - i), (0, 0)])
    there = wide.reshape(b, -1, block, o).sum(axis=2).swapaxes(0, 1)
    return there, block - there


def _spread(total: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Whole numbers in proportion to `there` along the first axis, which add up to `total`."""
    reached = np.cumsum(there, axis=0)
    all_of = np.maximum(reached[-1], 1)
    ends = (2 * total * reached + all_of) // (2 * all_of)
    return np.diff(ends, axis=0, prepend=np.zeros_like(ends[:1]))


def _check_reachable(choice: Choice, weights: list[Weight], found: list[Limits]) -> None:
    """Raise unless any mask with these numbers is one that the selection could choose.

    Raises:
      ValueError: names the leaf.
    """
    rng = np.random.default_rng(0)
    masks = [_some_mask(choice, w, x, rng) for w, x in zip(weights, found, strict=True)]
    chosen = choice(weights, masks)
    for weight, mask, other in zip(weights, masks, chosen, strict=True):
        if not np.array_equal(mask, other):
            raise ValueError(
                f"A sweep over the inputs of {trees.label(weight.name)} prunes so many weights of "
                "the leaf, of each output or of each group of M inputs, and `select` asks for "
                "something else (blocks, or shares by another axis). Use `exact_obs`, which takes "
                "any selection, or exclude the leaf in `prunable`."
            )


def _some_mask(
    choice: Choice, weight: Weight, limits: Limits, rng: np.random.Generator
) -> np.ndarray:
    """A random mask with the numbers of entries that the limits give."""
    price = np.where(_unread(choice, weight, limits), 1 + rng.random(weight.shape), 0)

    def lowest(price: np.ndarray, goes: np.ndarray | int) -> np.ndarray:
        """The mask without the `goes` lowest along the last axis."""
        ranks = np.argsort(np.argsort(price, axis=-1), axis=-1)
        return (ranks >= np.asarray(goes)) & (price > 0)

    if limits.groups is None and limits.rows is None:
        mask = (price > 0).ravel()
        mask[np.argpartition(price, limits.total, axis=None)[: limits.total]] = False
        return mask.reshape(weight.shape)
    masks = []
    for p, array in enumerate(weight.split(price)):
        b, i, o = array.shape
        order = _order(limits, p, i)
        rows = array[:, order].swapaxes(1, 2)
        if limits.groups is None:
            assert limits.rows is not None
            keep = lowest(rows, limits.rows[p][..., None])
        else:
            grouped = rows.reshape(b, o, int(limits.groups[p].max()) + 1, -1)
            keep = lowest(grouped, limits.goes).reshape(b, o, i)
        masks.append(keep.swapaxes(1, 2)[:, np.argsort(order)])
    return np.where(weight.read(), weight.gather(masks), price > 0)
