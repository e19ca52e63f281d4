"""Optimal Brain Surgeon: weights go one by one, or in rounds, and the others make up for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve

from jaxprune.curvature.examples import check_count
from jaxprune.select.ranking import lowest
from jaxprune.surgeon.finishing import (
    Candidate,
    begin,
    best_by_loss,
    check_model,
    finish,
    selection,
)
from jaxprune.surgeon.floors import leaf_numbers, least_kept
from jaxprune.surgeon.local_model import LocalModel, Site, quadratic_at
from jaxprune.surgeon.progress import Progress, listener, silent
from jaxprune.surgeon.pursuit import kept_worth, many_at, sparsities
from jaxprune.surgeon.quadratic import Quadratic, high
from jaxprune.surgeon.updating import MOST_PRIMAL, few, padded, primal, solve
from jaxprune.types import Batch, Mask, Params, Pruned, Pruner, Selection

REFRESH = 512  # weights that go before the inverse is computed anew


def optimal_brain_surgeon(
    model: LocalModel,
    select: Selection | None = None,
    *,
    rounds: int | None = 1,
    progress: Progress | None = None,
) -> Pruner:
    """Optimal Brain Surgeon: the lowest `w_q^2 / (2 [H^-1]_qq)` go, and the others make up for it.

    Where q goes, `dw = -w_q / [H^-1]_qq H^-1 e_q`. Done one weight after another this is the best
    update for all that are gone, which is computed at the end in closed form.

    Args:
      model: the loss around the weights; damping > 0.
      select: what chooses, by default `jp.select.lowest()`.
      rounds: None is the paper's: one weight at a time, each from the inverse and the weights that
        the ones before have left. R: in R steps of rising sparsity, each from one inverse (a
        pattern such as N:M, which has one sparsity, in one step). 1: all from the first.
      progress: `(what, done, total)`, called as it goes.

    Returns:
      A `Pruner`. With `rounds=None` each part of the selection (a layer, a unit, an N:M group)
      loses as many as the selection takes from it at the first scores, one at a time.
      `info["objective"]` is the predicted rise of the loss.

    Raises:
      ValueError: damping 0, `rounds` < 1, or None for a selection of blocks; when called, as
        `jp.one_shot`, or weights that are not finite.
      TypeError: a call inside jit.

    References:
      Hassibi and Stork 1993, Second Order Derivatives for Network Pruning: Optimal Brain Surgeon,
      equation 5.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune.surgeon import LocalModel
      >>> from jaxprune.surgeon.one_by_one import optimal_brain_surgeon
      >>> loss = lambda y, t: 0.5 * (y - t) ** 2
      >>> model = LocalModel(lambda w, x: x @ w[:, 0], loss, damping=1e-4)
      >>> x = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [2.0, 2.0, 1.0]])
      >>> w = jnp.array([[1.0], [1.1], [0.5]])
      >>> pruned = optimal_brain_surgeon(model, rounds=None)(w, (x, jnp.zeros(3)), sparsity=1 / 3)
      >>> pruned.params.ravel().round(2)  # the first goes, its twin takes over
      Array([0. , 2.1, 0.5], dtype=float32)
    """
    check_model(model)
    chosen = selection(select, lowest())
    if not model.damping > 0:
        raise ValueError(
            "Optimal Brain Surgeon inverts the curvature, which fewer examples than weights leave "
            "singular: the model's damping is 0. Pass `LocalModel(..., damping=1e-3)` or another "
            "one > 0."
        )
    if rounds is None:
        if chosen.parts is None:
            raise ValueError(
                "One weight at a time needs a selection whose entries compete one by one; this one "
                "takes blocks or units. Pass `rounds=1` or more."
            )
    else:
        check_count("rounds", rounds)
    told = listener(progress)

    def prune(
        params: Params, batch: Batch = None, *, sparsity: Any = None, mask: Mask | None = None
    ) -> Pruned:
        started = time.perf_counter()
        site = begin(model, chosen, params, sparsity, mask)
        quadratic, judge = quadratic_at(model, site, site.params, batch)
        if rounds is None:
            kept, _ = one_at_a_time(quadratic, site, sparsity, told)
        else:
            kept = site.old
            path = list(sparsities(site, sparsity, rounds))
            for step, target in enumerate(path, start=1):
                kept = site.choose(kept_worth(quadratic, kept, None), target)
                told("round", step, len(path))
        found = solve(quadratic, kept)
        info = {"objective": float(found.objective), "damping": float(model.damping)}
        candidates = [Candidate(kept, found.solution, info)]
        best, tried = best_by_loss(model, site, candidates, judge)
        return finish(site, best, {"tried": tried}, started)

    return prune


class _Going(NamedTuple):
    """What changes as weights go.

    Attributes:
      mask: [d].
      inner: what every weight is worth is read off, of the way taken.
      budgets: how many of each part are still to go, [parts].
      counts: how many every leaf keeps, [leaves].
      order: which went, [REFRESH]; d where none did.
    """

    mask: jax.Array
    inner: Any
    budgets: jax.Array
    counts: jax.Array
    order: jax.Array


class _Way(NamedTuple):
    """How the inverse is held.

    Attributes:
      start: at the mask where the way begins.
      worth: `inner -> [d]`, what Q rises by without an entry that is kept.
      without: `(inner, i) -> inner` after entry i.
    """

    start: Any
    worth: Callable[[Any], jax.Array]
    without: Callable[[Any, jax.Array], Any]


def one_at_a_time(
    quadratic: Quadratic,
    site: Site,
    sparsity: Any,
    told: Progress = silent,
) -> tuple[jax.Array, np.ndarray]:
    """The mask [d], and the pruned entries in the order in which they went.

    Each step is that of the paper, but for rounding: from the space of examples as long as more
    entries than examples are kept, and on the inverse of the kept entries' own matrix from there
    on. Either is computed anew after each `REFRESH` steps, so that rounding does not add up.
    """
    first = site.choose(kept_worth(quadratic, site.old, None), sparsity)
    parts, leaf = site.parts(), leaf_numbers(site)
    assert parts is not None
    mask = site.old
    goes = np.asarray(parts)[np.asarray(site.candidates & ~first)]
    budgets = jnp.asarray(np.bincount(goes, minlength=int(jnp.max(parts)) + 1).astype(np.int32))
    least = least_kept(site, sparsity)
    order: list[np.ndarray] = []
    done, kept = 0, int(jnp.sum(mask))
    while done < goes.size:
        some, size = min(REFRESH, goes.size - done), None
        if few(quadratic, kept):
            size = padded(kept)
        else:  # no further than to where few are kept
            some = min(some, kept - min(quadratic.examples, MOST_PRIMAL))
        mask, budgets, went = _remove(
            quadratic, mask, budgets, parts, leaf, least, jnp.int32(some), size=size
        )
        order.append(np.asarray(went)[:some])
        done, kept = done + some, kept - some
        told("weight", done, goes.size)
    return mask, np.concatenate(order) if order else np.zeros(0, np.int32)


@partial(high, static_argnames="size")
def _remove(
    quadratic: Quadratic,
    mask: jax.Array,
    budgets: jax.Array,
    parts: jax.Array,
    leaf: jax.Array,
    least: jax.Array,
    steps: jax.Array,
    *,
    size: int | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Take out the cheapest entry, so many times; with a size, at most so many are kept."""
    way = _of_examples(quadratic, mask) if size is None else _of_kept(quadratic, mask, size)
    inside = parts >= 0

    def step(k: jax.Array, now: _Going) -> _Going:
        may = now.mask & inside & (now.budgets[parts] > 0) & (now.counts > least)[leaf]
        i = jnp.argmin(jnp.where(may, way.worth(now.inner), jnp.inf))
        return _Going(
            now.mask.at[i].set(False),
            way.without(now.inner, i),
            now.budgets.at[parts[i]].add(-1),
            now.counts.at[leaf[i]].add(-1),
            now.order.at[k].set(i.astype(jnp.int32)),
        )

    counts = jnp.zeros(least.shape, jnp.int32).at[leaf].add(mask.astype(jnp.int32))
    order = jnp.full((REFRESH,), mask.size, jnp.int32)
    start = _Going(mask, way.start, budgets, counts, order)
    last = jax.lax.fori_loop(0, steps, step, start)
    return last.mask, last.budgets, last.order


def _of_examples(quadratic: Quadratic, mask: jax.Array) -> _Way:
    """By the proximal point y, the shares, [d], and B, [n, n]."""
    state = many_at(quadratic, mask, None, None)
    tiny = jnp.finfo(state.shares.dtype).eps
    left = lambda shares: jnp.maximum(1 - shares, tiny)

    def without(inner: Any, i: jax.Array) -> Any:
        y, shares, inverse = inner
        own = left(shares)[i]
        rows = inverse @ quadratic.columns(i[None])[:, 0]
        column = quadratic.transposed(rows)
        inverse += jnp.outer(rows, rows / own)
        return y + column * (y[i] / own), shares + column**2 / own, inverse

    root = state.dual.root
    worth = lambda inner: quadratic.damping / 2 * inner[0] ** 2 / left(inner[1])
    return _Way((state.dual.proximal, state.shares, root @ root.T), worth, without)


def _of_kept(quadratic: Quadratic, mask: jax.Array, size: int) -> _Way:
    """By z and the inverse of the kept entries' own matrix, [m] and [m, m]."""
    own = primal(quadratic, mask, size)
    z = own.solution.at[own.where].get(mode="fill", fill_value=0)
    inverse = cho_solve((own.lower, True), jnp.eye(size, dtype=z.dtype))
    numbers = jnp.arange(size, dtype=jnp.int32)
    place = jnp.zeros(mask.size, jnp.int32).at[own.where].set(numbers, mode="drop")

    def worth(inner: Any) -> jax.Array:
        z, inverse = inner
        return (z**2 / (2 * jnp.diagonal(inverse)))[place]

    def without(inner: Any, i: jax.Array) -> Any:
        z, inverse = inner
        column, k = inverse[:, place[i]], place[i]
        return z - column * (z[k] / column[k]), inverse - jnp.outer(column, column / column[k])

    return _Way((z, inverse), worth, without)
