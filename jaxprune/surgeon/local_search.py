"""Selections without an update: exchanges that lower `1/2 u'H u`, u the pruned weights.

Three ways: the paper's walk along two sorted lists, the best exchanges in blocks of candidates, and
all sets where they are few. Only entries of one part change places.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.surgeon.all_sets import Sets, all_sets
from jaxprune.surgeon.exchange import exchange_selection
from jaxprune.surgeon.floors import leaf_numbers, least_kept, protected
from jaxprune.surgeon.local_model import Site
from jaxprune.surgeon.progress import Progress, silent
from jaxprune.surgeon.quadratic import Quadratic, high


class Searched(NamedTuple):
    """Where a search ended.

    Attributes:
      mask: [d].
      swaps: how many exchanges led there.
      losses: true losses on the way, where they were looked at.
    """

    mask: jax.Array
    swaps: int
    losses: list[float]


@high
def selection_objective(quadratic: Quadratic, mask: jax.Array) -> jax.Array:
    """`1/2 u'H u`, u the weights where the mask [d] is False."""
    gone = jnp.where(mask, 0, quadratic.weights)
    rows = quadratic.times(gone)
    return 0.5 * (rows @ rows / quadratic.examples + quadratic.damping * (gone @ gone))


def _free_parts(
    quadratic: Quadratic, site: Site, sparsity: Any
) -> Callable[[jax.Array], jax.Array]:
    """`mask -> parts`, in which no exchange empties a leaf below what the selection keeps of it."""
    parts, leaf, least = site.parts(), leaf_numbers(site), least_kept(site, sparsity)
    worth = quadratic.weights**2 * quadratic.diagonal()
    return lambda mask: protected(parts, mask, worth, leaf, least)


def search_blocks(
    quadratic: Quadratic,
    site: Site,
    sparsity: Any,
    mask: jax.Array,
    *,
    block: int,
    steps: int,
    epsilon: float,
    told: Progress = silent,
) -> Searched:
    """The best exchanges, a block at a time, until the objective falls by less than a share.

    Args:
      block: candidates on each side.
      steps: at most so many blocks.
      epsilon: the share.
    """
    sets = all_sets(site, sparsity, mask)
    if sets is not None:
        return Searched(_best_of_all(quadratic, mask, sets), 0, [])
    parts_at = _free_parts(quadratic, site, sparsity)
    diagonal, swaps = quadratic.diagonal(), 0
    objective = float(selection_objective(quadratic, mask))
    eps = float(jnp.finfo(site.dtype).eps)
    for step in range(steps):
        least = jnp.asarray(10 * eps * objective, site.dtype)
        tried = exchange_selection(quadratic, mask, parts_at(mask), diagonal, least, block=block)
        after = float(selection_objective(quadratic, tried.mask))
        told("exchange", step + 1, steps)
        if not (int(tried.swaps) and after < objective):
            break
        small = objective - after < epsilon * objective
        mask, swaps, objective = tried.mask, swaps + int(tried.swaps), after
        if small:
            break
    return Searched(mask, swaps, [])


def _best_of_all(quadratic: Quadratic, mask: jax.Array, sets: Sets) -> jax.Array:
    """The mask with the best of the sets."""
    gone = jnp.where(sets.rows, 0, quadratic.weights[sets.where])
    best = int(jnp.argmin(_rises(quadratic, jnp.asarray(sets.where), gone)))
    return mask.at[sets.where].set(sets.rows[best])


@high
def _rises(quadratic: Quadratic, where: jax.Array, gone: jax.Array) -> jax.Array:
    """`u'H u`, [sets], for vectors u that are `gone` [sets, m] at `where` [m] and 0 elsewhere."""
    rows = gone @ quadratic.columns(where).T
    bends = jnp.sum(rows**2, axis=1) / quadratic.examples
    return bends + quadratic.damping * jnp.sum(gone**2, axis=1)


def search_lists(
    quadratic: Quadratic,
    site: Site,
    sparsity: Any,
    mask: jax.Array,
    loss_of: Callable[[jax.Array], float],
    *,
    reach: int,
    tries: int,
    steps: int,
    patience: int,
    epsilon: float,
    told: Progress = silent,
) -> Searched:
    """The local search of the paper: the set of the lowest true loss that it comes by.

    Args:
      loss_of: mask -> true loss.
      reach: how far from its own place in the list an entry looks for a partner.
      tries: entries without a partner, one after another, that end a step.
      steps: at most so many.
      patience: steps without a better true loss that end the search.
      epsilon: what twice the objective has to fall by in an exchange.
    """
    parts_at, diagonal = _free_parts(quadratic, site, sparsity), quadratic.diagonal()
    best, swaps, waited = mask, 0, 0
    losses = [loss_of(mask)]
    least = jnp.asarray(epsilon, site.dtype)
    for step in range(steps):
        mask, more = _walk(
            quadratic, mask, parts_at(mask), diagonal, least, jnp.int32(tries), reach=reach
        )
        told("step", step + 1, steps)
        if not int(more):
            break
        swaps += int(more)
        losses.append(loss_of(mask))
        better = losses[-1] < min(losses[:-1])
        best, waited = (mask, 0) if better else (best, waited + 1)
        if waited >= patience:
            break
    return Searched(best, swaps, losses)


class _Walk(NamedTuple):
    """Where a walk is: the place in the list, the mask, r = G u / n, failures in a row, swaps."""

    place: jax.Array
    mask: jax.Array
    rows: jax.Array
    failed: jax.Array
    swaps: jax.Array


@partial(high, static_argnames="reach")
def _walk(
    quadratic: Quadratic,
    mask: jax.Array,
    parts: jax.Array,
    diagonal: jax.Array,
    epsilon: jax.Array,
    tries: jax.Array,
    *,
    reach: int,
) -> tuple[jax.Array, jax.Array]:
    """One step: every pruned i, those that cost most first, looks for a kept j to take its place.

    With `alpha_i = 2 w_i (H u)_i - w_i^2 H_ii` (what restoring i gains, twice), `beta_j = 2 w_j
    (H u)_j + w_j^2 H_jj` and `gamma_ij = 2 w_i H_ij w_j`, the first j near the place of i with
    `beta_j - gamma_ij - alpha_i <= -epsilon` is taken. The lists are sorted once, the values of
    each pair are those of the present u.
    """
    n, d, w = quadratic.examples, mask.size, quadratic.weights
    gone = jnp.where(mask, 0, w)
    rows = quadratic.times(gone) / n
    twice = 2 * w * (quadratic.transposed(rows) + quadratic.damping * gone)
    own = w**2 * diagonal
    inside = parts >= 0
    part = jnp.where(inside, parts, d)
    # Lists within each part; an entry that is not in one goes to the end, to part d.
    pruned = jnp.where(mask, d, part)
    kept = jnp.where(mask, part, d)
    by_part = jnp.lexsort((-(twice - own), pruned))
    starts = _starts(pruned)
    where = jnp.zeros(d, jnp.int32).at[by_part].set(jnp.arange(d, dtype=jnp.int32))
    in_part = where - starts[pruned]
    order = jnp.lexsort((-(twice - own), pruned == d))
    partners = jnp.lexsort((twice + own, kept))
    first, last = _starts(kept), _starts(kept) + _sizes(kept)
    many = jnp.sum(pruned < d)
    near = jnp.arange(-reach, reach + 1, dtype=jnp.int32)

    def body(state: _Walk) -> _Walk:
        i = order[state.place]
        at = first[part[i]] + in_part[i] + near
        known = (at >= first[part[i]]) & (at < last[part[i]])
        j = partners[jnp.clip(at, 0, d - 1)]
        known &= state.mask[j]
        columns = quadratic.columns(jnp.append(j, i))
        slope = columns.T @ state.rows
        alpha = 2 * w[i] * (slope[-1] + quadratic.damping * w[i]) - own[i]
        beta = 2 * w[j] * slope[:-1] + own[j]
        gamma = 2 * w[i] * w[j] * (columns[:, :-1].T @ columns[:, -1]) / n
        good = known & (beta - gamma - alpha <= -epsilon)
        found, k = jnp.any(good), jnp.argmax(good)
        swapped = state.mask.at[i].set(True).at[j[k]].set(False)
        moved = (columns[:, k] * w[j[k]] - columns[:, -1] * w[i]) / n
        return _Walk(
            state.place + 1,
            jnp.where(found, swapped, state.mask),
            state.rows + jnp.where(found, moved, 0),
            jnp.where(found, 0, state.failed + 1),
            state.swaps + found,
        )

    zero = jnp.int32(0)
    done = jax.lax.while_loop(
        lambda state: (state.place < many) & (state.failed < tries),
        body,
        _Walk(zero, mask, rows, zero, zero),
    )
    return done.mask, done.swaps


def _sizes(numbers: jax.Array) -> jax.Array:
    return jnp.zeros(numbers.size + 1, jnp.int32).at[numbers].add(1)


def _starts(numbers: jax.Array) -> jax.Array:
    """Where each number begins once they are sorted."""
    return jnp.cumsum(_sizes(numbers)) - _sizes(numbers)
