"""Joint selection and update on one quadratic: which weights go, judged by Q AFTER the update.

Four moves, each of which starts from the best set so far:

    rounds     a path of rising sparsity; in each round an entry is worth what the objective would
               rise without it, the rest updated, and the selection chooses.
    pursuit    the same at the final sparsity, where what the objective would fall with a pruned
               entry counts too, as long as it pays (hard thresholding by curvature).
    exchanges  the best swaps of single entries, exact, in blocks of candidates.
    all sets   where there are few, every one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from jaxprune import trees
from jaxprune.curvature.examples import check_count
from jaxprune.surgeon.all_sets import Sets, all_sets
from jaxprune.surgeon.exchange import exchange_joint
from jaxprune.surgeon.finishing import not_finite
from jaxprune.surgeon.floors import leaf_numbers, least_kept, protected
from jaxprune.surgeon.local_model import Site
from jaxprune.surgeon.progress import Progress, silent
from jaxprune.surgeon.quadratic import Quadratic, high, value
from jaxprune.surgeon.updating import Dual, Solved, dual, few, padded, primal, solve

_STARTS = 8  # where a path may begin, from what is pruned already to the sparsity
_EXACT = 4  # times as many entries as examples, up to which shares are never estimated


@dataclass(frozen=True)
class Effort:
    """How hard a pursuit tries.

    Attributes:
      rounds: on the way to the sparsity.
      pursuits: at most so many at the final sparsity.
      blocks: at most so many blocks of exchanges; 0 for none.
      block: candidates on each side of an exchange.
      probes: random projections that estimate how far an entry is explained by the others; None
        computes it exactly, which costs as much as n of them, and so does any number where there
        are at most 4 n entries.
    """

    rounds: int = 8
    pursuits: int = 4
    blocks: int = 20
    block: int = 128
    probes: int | None = None

    def __post_init__(self) -> None:
        for name in ("rounds", "pursuits", "blocks", "block", "probes"):
            if name != "probes" or self.probes is not None:
                check_count(name, getattr(self, name), int(name in ("rounds", "block", "probes")))


class State(NamedTuple):
    """The minimum at a mask, and what every entry is worth there.

    Attributes:
      dual, solution, objective: as in `updating`.
      shares: `g' (n damping I + G_K G_K')^-1 g` for every column g of G, [d].
      worth: what Q would rise without an entry (kept), or fall with it (pruned), [d].
    """

    dual: Dual
    solution: jax.Array
    objective: jax.Array
    shares: jax.Array
    worth: jax.Array


class Pursued(NamedTuple):
    """Where a pursuit ended.

    Attributes:
      mask: [d].
      solved: its minimum.
      info: objectives on the way, and counts of what was done.
    """

    mask: jax.Array
    solved: Solved
    info: dict[str, Any]


def state_at(
    quadratic: Quadratic,
    mask: jax.Array,
    probes: jax.Array | None,
    gram: jax.Array | None = None,
) -> State:
    """The state at a mask.

    Where few entries are kept, what each is worth is read off their own inverse: in float32 the
    dual way loses it.

    Args:
      probes: [n, r], or None for exact shares.
      gram: as in `solve`.
    """
    state, kept = many_at(quadratic, mask, probes, gram), int(jnp.sum(mask))
    if not few(quadratic, kept):
        return state
    return _with_own(quadratic, mask, state, *_own_inverse(quadratic, mask, size=padded(kept)))


@high
def many_at(
    quadratic: Quadratic,
    mask: jax.Array,
    probes: jax.Array | None,
    gram: jax.Array | None,
) -> State:
    """The state from the space of examples; arguments as above."""
    found = dual(quadratic, mask, gram)
    root = found.root if probes is None else found.root @ probes
    shares = quadratic.projected_squares(root)
    solution = jnp.where(mask, found.proximal, 0)
    tiny = jnp.finfo(shares.dtype).eps
    apart = jnp.where(mask, jnp.maximum(1 - shares, tiny), 1 + shares)
    worth = quadratic.damping / 2 * found.proximal**2 / apart
    return State(found, solution, value(quadratic, solution), shares, worth)


@partial(high, static_argnames="size")
def _own_inverse(
    quadratic: Quadratic, mask: jax.Array, *, size: int
) -> tuple[jax.Array, jax.Array]:
    """z, and the diagonal of `H_KK^-1` (1 elsewhere), [d], from the kept entries' own matrix."""
    own = primal(quadratic, mask, size)
    eye = jnp.eye(size, dtype=own.lower.dtype)
    squares = jnp.sum(solve_triangular(own.lower, eye, lower=True) ** 2, axis=0)
    diagonal = jnp.ones_like(own.solution).at[own.where].set(squares, mode="drop")
    return own.solution, diagonal


@high
def _with_own(
    quadratic: Quadratic, mask: jax.Array, state: State, z: jax.Array, diagonal: jax.Array
) -> State:
    """The state with what `_own_inverse` found, where that is a number."""
    damping, moved = quadratic.damping, z - quadratic.weights
    slopes = quadratic.slopes + quadratic.transposed(quadratic.times(moved)) / quadratic.examples
    y = jnp.where(mask, z, quadratic.weights - slopes / damping)
    shares = jnp.where(mask, 1 - damping * diagonal, state.shares)
    worth = jnp.where(mask, z**2 / (2 * diagonal), damping / 2 * y**2 / (1 + shares))
    found = State(state.dual._replace(proximal=y), z, value(quadratic, z), shares, worth)
    fine = jnp.all(jnp.isfinite(jnp.where(mask, worth, 0)))
    return jax.tree.map(lambda one, other: jnp.where(fine, one, other), found, state)


def kept_worth(
    quadratic: Quadratic,
    mask: jax.Array,
    probes: jax.Array | None,
    gram: jax.Array | None = None,
) -> jax.Array:
    """`State.worth` of every kept entry, [d]; -inf for the others. Arguments as above.

    Raises:
      ValueError: a worth is NaN or infinite.
    """
    kept = int(jnp.sum(mask))
    fine = lambda worth: bool(jnp.all(jnp.isfinite(jnp.where(mask, worth, 0))))
    worth = jnp.full_like(quadratic.weights, jnp.nan)
    if few(quadratic, kept):  # with no detour through the examples
        z, diagonal = _own_inverse(quadratic, mask, size=padded(kept))
        worth = z**2 / (2 * diagonal)
    if not fine(worth):
        worth = many_at(quadratic, mask, probes, gram).worth
    if not fine(worth):
        raise not_finite(float(quadratic.damping), quadratic.examples)
    return jnp.where(mask, worth, -jnp.inf)


def drawn_probes(quadratic: Quadratic, count: int | None, key: jax.Array) -> jax.Array | None:
    """Random P [n, count] with `E P P' = I`; None where exact shares cost no more.

    And where there are not many more entries than examples: shares are near 1 then, and what
    counts, their distance from it, would be lost in the noise of the estimate.
    """
    few_entries = quadratic.weights.size <= _EXACT * quadratic.examples
    if count is None or count >= quadratic.examples or few_entries:
        return None
    shape = (quadratic.examples, count)
    return jax.random.normal(key, shape, quadratic.weights.dtype) / math.sqrt(count)


def pursue(
    quadratic: Quadratic,
    site: Site,
    sparsity: Any,
    *,
    effort: Effort,
    key: jax.Array,
    told: Progress = silent,
) -> Pursued:
    """The best mask found, and its minimum; the objective never rises from one move to the next."""
    plain = site.choose(jnp.abs(quadratic.weights), sparsity)
    sets = all_sets(site, sparsity, plain)
    if sets is not None:
        return _best_of_all(quadratic, plain, sets)
    probes = drawn_probes(quadratic, effort.probes, key)
    state = state_at(quadratic, plain, probes)
    info: dict[str, Any] = {"objective_magnitude": float(state.objective)}
    best = plain
    climbed = _climb(quadratic, site, sparsity, effort.rounds, probes, told)
    found = state_at(quadratic, climbed, probes)
    if found.objective < state.objective:
        best, state = climbed, found
    info["objective_rounds"] = float(state.objective)
    pursuits = 0
    for pursuits in range(1, effort.pursuits + 1):
        if not bool(jnp.all(jnp.isfinite(state.worth))):
            break  # float32 has lost what the pruned entries would bring
        after = site.choose(state.worth, sparsity)
        found = state_at(quadratic, after, probes)
        told("pursuit", pursuits, effort.pursuits)
        if not found.objective < state.objective:
            break
        best, state = after, found
    swaps, blocks = 0, 0
    parts = site.parts()
    if parts is not None:
        leaf, least = leaf_numbers(site), least_kept(site, sparsity)
        free = lambda mask, worth: protected(parts, mask, worth, leaf, least)
        for step in _exchanges(quadratic, best, state, free, effort, probes):
            best, state, more = step
            swaps, blocks = swaps + more, blocks + 1
            told("exchange", blocks, effort.blocks)
    solved = solve(quadratic, best)
    info |= {"objective": float(solved.objective), "swaps": swaps, "pursuits": pursuits}
    return Pursued(best, solved, info)


def _climb(
    quadratic: Quadratic,
    site: Site,
    sparsity: Any,
    rounds: int,
    probes: jax.Array | None,
    told: Progress,
) -> jax.Array:
    """The mask at the end of a path of rising sparsity."""
    mask = site.old
    path = list(sparsities(site, sparsity, rounds))
    for step, target in enumerate(path, start=1):
        mask = site.choose(kept_worth(quadratic, mask, probes), target)
        told("round", step, len(path))
    return mask


def sparsities(site: Site, sparsity: Any, rounds: int) -> Iterator[Any]:
    """A path to a sparsity: slower towards the end, as what is left matters more."""
    if site.select.fixed is not None or sparsity is None:
        yield sparsity
        return
    start = reached(site, sparsity)
    for step in range(1, rounds):
        yield max(start, sparsity + (start - sparsity) * (1 - step / rounds) ** 3)
    yield sparsity


def reached(site: Site, sparsity: Any) -> Any:
    """Where a path to a sparsity begins: the largest share that a part has lost already.

    Below it a selection that gives every part the same share would have to bring entries back. No
    more than the sparsity itself, which shares that differ from part to part may allow, and more
    where a selection that gives parts shares of its own refuses to begin so low.
    """
    number = np.zeros(site.size, np.int32)
    if site.select.parts is not None:
        leaves = trees.select_leaves(site.select.parts(site.params), site.moving)
        number = np.concatenate([np.ravel(x) for x in leaves])
    inside = np.asarray(site.prunable_entries)
    lost = np.bincount(number[inside & ~np.asarray(site.old)], minlength=site.size)
    share = np.max(lost / np.maximum(np.bincount(number[inside], minlength=site.size), 1))
    start = min(float(share), sparsity)
    tried = (start + (sparsity - start) * k / _STARTS for k in range(_STARTS))
    return next((s for s in tried if not np.any(lost) or _accepts(site, s)), sparsity)


def _accepts(site: Site, sparsity: Any) -> bool:
    """True if the selection can go on to the sparsity from what is pruned already."""
    try:
        site.choose(jnp.ones(site.size, site.dtype), sparsity)
    except ValueError:
        return False
    return True


def _exchanges(
    quadratic: Quadratic,
    mask: jax.Array,
    state: State,
    free_parts: Callable[[jax.Array, jax.Array], jax.Array],
    effort: Effort,
    probes: jax.Array | None,
) -> Iterator[tuple[jax.Array, State, int]]:
    """Blocks of swaps, as long as the objective really falls."""
    for _ in range(effort.blocks):
        eps = float(jnp.finfo(state.objective.dtype).eps)
        tolerance = jnp.asarray(10 * eps * abs(float(state.objective)), state.objective.dtype)
        free = free_parts(mask, state.worth)
        tried = exchange_joint(
            quadratic, state.dual, state.shares, mask, free, tolerance, block=effort.block
        )
        if not int(tried.swaps):
            return
        found = state_at(quadratic, tried.mask, probes)
        if not found.objective < state.objective:
            return
        fell = float(state.objective - found.objective)
        mask, state = tried.mask, found
        yield mask, state, int(tried.swaps)
        if fell < 1e-4 * abs(float(state.objective)):
            return


def _best_of_all(quadratic: Quadratic, plain: jax.Array, sets: Sets) -> Pursued:
    """The best of the sets; plain is the mask of magnitude."""
    solved = lambda mask: solve(quadratic, mask, "primal")
    mask_of = lambda row: plain.at[sets.where].set(row)
    values = [float(solved(mask_of(row)).objective) for row in sets.rows]
    # Where none is a number the caller finds no finite candidate.
    mask = mask_of(sets.rows[int(np.argmin(np.where(np.isnan(values), np.inf, values)))])
    best = solved(mask)
    info = {
        "objective_magnitude": float(solved(plain).objective),
        "objective": float(best.objective),
        "swaps": 0,
        "sets": len(values),
    }
    return Pursued(mask, best, info)
