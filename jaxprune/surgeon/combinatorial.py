"""The Combinatorial Brain Surgeon: which weights go together, then where the others move."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxprune.curvature.examples import check_count
from jaxprune.select.ranking import lowest
from jaxprune.surgeon.finishing import (
    Candidate,
    begin,
    best_by_loss,
    check_model,
    finish,
    numbers,
    scaled,
    selection,
)
from jaxprune.surgeon.local_model import LocalModel, quadratic_at
from jaxprune.surgeon.local_search import (
    Searched,
    search_blocks,
    search_lists,
    selection_objective,
)
from jaxprune.surgeon.partitions import best_draw
from jaxprune.surgeon.progress import Progress, listener
from jaxprune.surgeon.quadratic import value
from jaxprune.surgeon.updating import solve
from jaxprune.types import Batch, Mask, Params, Pruned, Pruner, Selection

Search = Literal["exchange", "paper"]


def combinatorial_brain_surgeon(
    model: LocalModel,
    select: Selection | None = None,
    *,
    draws: int = 50,
    buckets: int | None = None,
    search: Search | None = "exchange",
    update: bool = True,
    scales: Sequence[float] = (1.0,),
    dampings: Sequence[float] | None = None,
    block: int = 128,
    range: int = 10,
    tries: int = 20,
    steps: int = 50,
    patience: int = 5,
    epsilon: float = 1e-4,
    key: jax.Array | None = None,
    progress: Progress | None = None,
) -> Pruner:
    """The Combinatorial Brain Surgeon: select (CBS-S), then update (CBS-U).

    Selection minimises `1/2 u'H u`, u the pruned weights: the best of random magnitude prunings by
    true loss, then exchanges of a pruned and a kept weight of the same part of the selection (so
    never across layers where these have their own sparsity, nor across N:M groups). The update is
    `min 1/2 (z - w)'H(z - w)` with z = 0 where pruned, in closed form.

    Args:
      model: the loss around the weights. Its gradient, if it has one, is used by the update only.
      select: what chooses, by default `jp.select.lowest()`.
      draws: random magnitude prunings, of which the first is plain magnitude; 1 for that alone.
      buckets: in each draw so many random buckets lose the same share; by default
        `max(1, min(floor(sqrt N), 1000))`.
      search: "exchange" takes the best exchanges, `block` candidates on each side at a time (all
        sets, where there are few), and offers start and end; "paper" is the paper's walk along
        sorted lists; None searches no further. Selections of blocks are not searched.
      update: move what is kept (CBS-U); otherwise it is only masked (CBS-S).
      scales: of the update; those with the dampings are judged by true loss.
      dampings: of the update, by default the model's own.
      block: of "exchange".
      range: of "paper": how far from its place in the list a weight looks for a partner (rho).
      tries: of "paper": weights without a partner in a row that end a step (tau).
      steps: at most so many steps, or blocks.
      patience: of "paper": steps without a better true loss that end the search.
      epsilon: of "paper", what twice the objective has to fall by in an exchange; of "exchange",
        the share that it has to fall by in a block.
      key: of the draws; by default `jax.random.key(0)`.
      progress: `(what, done, total)`, called as it goes.

    Returns:
      A `Pruner`. Its `info` has `objective_start` and `objective_selection` (`1/2 u'H u` after the
      draws and after the search), `objective` (of the weights returned), `swaps`, `draw` (which one
      was best), `losses_draws`, `losses_search` and `tried`, the candidates with their losses.

    Raises:
      ValueError: an unknown search, counts out of range, a damping < 0; when called, as
        `jp.one_shot`, or if no candidate is finite.
      TypeError: a call inside jit.

    References:
      Yu, Serra, Ramalingam and Zhe 2022, The Combinatorial Brain Surgeon: Pruning Weights That
      Cancel One Another in Neural Networks: the subproblems CBS-S and CBS-U, randomized magnitude
      pruning and the swap local search.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune.surgeon import LocalModel
      >>> from jaxprune.surgeon.combinatorial import combinatorial_brain_surgeon
      >>> loss = lambda y, t: 0.5 * (y - t) ** 2
      >>> model = LocalModel(lambda w, x: x @ w[:, 0], loss, damping=1e-4)
      >>> x = jnp.array([[1.0, 1.0, 0.0], [2.0, 2.0, 1.0]])
      >>> w = jnp.array([[1.0], [-1.1], [0.5]])  # the first two cancel one another
      >>> cbs = combinatorial_brain_surgeon(model, update=False)
      >>> cbs(w, (x, jnp.array([-0.2, 0.5])), sparsity=2 / 3).params.ravel()
      Array([0. , 0. , 0.5], dtype=float32)
    """
    check_model(model)
    chosen = selection(select, lowest())
    tried = numbers("dampings", (model.damping,) if dampings is None else dampings)
    scales = numbers("scales", scales)
    counts = {"draws": draws, "block": block, "range": range, "tries": tries, "steps": steps,
              "patience": patience, "buckets": 1 if buckets is None else buckets}  # fmt: skip
    _check(search, counts, epsilon, tried, scales)
    keys = jax.random.key(0) if key is None else key
    told = listener(progress)

    def prune(
        params: Params, batch: Batch = None, *, sparsity: Any = None, mask: Mask | None = None
    ) -> Pruned:
        started = time.perf_counter()
        site = begin(model, chosen, params, sparsity, mask)
        quadratic, judge = quadratic_at(model, site, site.params, batch)
        w = quadratic.weights
        drawn = best_draw(
            model, site, sparsity, judge, draws=draws, buckets=buckets, key=keys, told=told
        )
        found = Searched(drawn.mask, 0, [])
        if search is not None and chosen.parts is not None:
            if search == "exchange":
                found = search_blocks(
                    quadratic, site, sparsity, drawn.mask,
                    block=block, steps=steps, epsilon=epsilon, told=told,
                )  # fmt: skip
            else:
                masked = lambda m: model.loss_of(site.weights(jnp.where(m, w, 0)), judge)
                found = search_lists(
                    quadratic, site, sparsity, drawn.mask, masked, reach=range, tries=tries,
                    steps=steps, patience=patience, epsilon=epsilon, told=told,
                )  # fmt: skip
        offered = [found.mask]
        if search == "exchange" and bool(jnp.any(found.mask != drawn.mask)):
            offered.append(drawn.mask)
        candidates: list[Candidate] = []
        for kept in offered:
            own = {"objective_selection": float(selection_objective(quadratic, kept))}
            if not update:
                solution = jnp.where(kept, w, 0)
                own["objective"] = float(value(quadratic, solution))
                candidates.append(Candidate(kept, solution, own))
                continue
            for damping in tried:
                damped = replace(quadratic, damping=jnp.asarray(damping, site.dtype))
                z = solve(damped, kept).solution
                more = {**own, "damping": float(damping)}
                candidates += scaled(Candidate(kept, z, more), quadratic, scales)
            told("update", len(candidates), len(offered) * len(tried) * len(scales))
        best, losses = best_by_loss(model, site, candidates, judge)
        info = {
            "objective_start": float(selection_objective(quadratic, drawn.mask)),
            "swaps": found.swaps,
            "draws": draws,
            "draw": drawn.draw,
            "losses_draws": drawn.losses,
            "losses_search": found.losses,
            "tried": losses,
        }
        return finish(site, best, info, started)

    return prune


def _check(
    search: Any,
    counts: dict[str, Any],
    epsilon: float,
    dampings: Sequence[float],
    scales: Sequence[float],
) -> None:
    if search not in ("exchange", "paper", None):
        raise ValueError(f'`search` is "exchange", "paper" or None, got {search!r}.')
    for name, count in counts.items():
        check_count(name, count, 0 if name == "range" else 1)
    if not epsilon >= 0:
        raise ValueError(f"`epsilon` is the least gain of an exchange, >= 0; got {epsilon!r}.")
    if not dampings or not all(d >= 0 for d in dampings):
        raise ValueError(f"`dampings` are numbers >= 0, at least one; got {tuple(dampings)}.")
    if not scales:
        raise ValueError("`scales` is empty: pass at least one, such as (1.0,).")
