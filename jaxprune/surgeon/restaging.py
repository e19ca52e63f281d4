"""Joint selection and update in stages: a new quadratic at every step of rising sparsity."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import trees
from jaxprune.curvature.examples import check_count
from jaxprune.select.ranking import lowest
from jaxprune.surgeon.finishing import (
    Candidate,
    Judged,
    begin,
    best_of,
    check_model,
    finish,
    judged,
    scaled,
    selection,
)
from jaxprune.surgeon.joining import check_grid
from jaxprune.surgeon.local_model import LocalModel, Site, quadratic_at
from jaxprune.surgeon.progress import Progress, listener
from jaxprune.surgeon.pursuit import drawn_probes, kept_worth, reached
from jaxprune.surgeon.quadratic import Quadratic
from jaxprune.surgeon.updating import kept_gram, solve, way_for
from jaxprune.types import Batch, Mask, Params, Pruned, Pruner, Schedule, Selection


def multi_stage_surgeon(
    model: LocalModel,
    select: Selection | None = None,
    *,
    stages: int = 12,
    tuning: int = 4,
    schedule: Schedule | None = None,
    dampings: Sequence[float] = (1e-1, 1e-2, 1e-3),
    scales: Sequence[float] = (0.25, 0.5, 1.0, 1.5),
    probes: int | None = 64,
    key: jax.Array | None = None,
    progress: Progress | None = None,
) -> Pruner:
    """Prune in stages, each with a quadratic of its own: slope, Fisher and examples drawn anew.

    Around the weights of stage t the model of the loss is `Q(z) = g'(z - w_t) + 1/2 (z - w_t)' H_t
    (z - w_t)`: weights have moved, so the slope g over the whole batch is part of it. What an entry
    is worth, the rest updated, decides what goes; the update is solved for every damping and taken
    at every scale, and training examples outside the Fisher choose. A stage is one step of a
    damped Newton method on the kept weights.

    Args:
      model: the loss around the weights; `first_order` is always on here, `damping` not used.
      select: constraints; by default `jp.select.lowest()`.
      stages: in which the sparsity rises. A pattern such as N:M, which has one sparsity, is
        reached in the first, whatever their number.
      tuning: more of them at the end, in which nothing is pruned.
      schedule: stage -> share of the sparsity in [0, 1], 1 at the last; by default every stage
        prunes the same share of what is left.
      dampings, scales: tried in every stage. A scale of 0, the mask alone, is always tried; where
        it is the best, larger dampings are.
      probes: random projections for what an entry is worth, as in `Effort`; None for none.
      key: of everything random, others in every stage; by default the model's draws the examples,
        and `jax.random.key(0)` the rest.
      progress: `(what, done, total)`.

    Returns:
      A `Pruner`. `info["stages"]` lists sparsity, loss, damping and scale of every stage.

    Raises:
      ValueError: damping 0, stages or probes < 1, tuning < 0, a schedule that does not rise to 1;
        when called, as `jp.one_shot`.
      TypeError: another model or selection than these; a call inside jit.

    References:
      Singh and Alistarh 2020, WoodFisher (gradual); Benbaki et al. 2023, CHITA++ (multi-stage).

    Example:
      >>> from jaxprune.surgeon import LocalModel, multi_stage_surgeon
      >>> loss = lambda y, t: 0.5 * (y - t) ** 2
      >>> model = LocalModel(lambda w, x: jnp.tanh(x @ w[:, 0]), loss)
      >>> x = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [2.0, 2.0, 1.0]])
      >>> w = jnp.array([[0.3], [0.4], [0.5]])
      >>> prune = multi_stage_surgeon(model, stages=2, tuning=2)
      >>> pruned = prune(w, (x, jnp.tanh(x @ w[:, 0])), sparsity=1 / 3)
      >>> pruned.mask.ravel(), len(pruned.info["stages"])
      (Array([False,  True,  True], dtype=bool), 4)
    """
    check_model(model)
    chosen = selection(select, lowest())
    dampings, scales = check_grid(dampings, scales)
    if probes is not None:
        check_count("probes", probes)
    path = _path(stages, tuning, schedule)
    sloped = replace(model, first_order=True)
    keys = jax.random.key(0) if key is None else key
    drawing = keys if key is not None or model.key is None else model.key
    told = listener(progress)

    def prune(
        params: Params, batch: Batch = None, *, sparsity: Any = None, mask: Mask | None = None
    ) -> Pruned:
        started = time.perf_counter()
        site = begin(sloped, chosen, params, sparsity, mask)
        done: list[dict[str, Any]] = []
        seen: list[Judged] = []
        targets = list(_targets(site, sparsity, path))
        for number, target in enumerate(targets):
            examples, own = (jax.random.fold_in(k, number) for k in (drawing, keys))
            quadratic, judge = quadratic_at(sloped, site, site.params, batch, examples)
            stage = _Stage(site, quadratic, target, drawn_probes(quadratic, probes, own))
            seen = _tried(sloped, stage, judge, dampings, scales)
            best, loss = best_of(sloped, seen)
            share = _sparsity(site, best.mask)
            done.append({**best.info, "loss": loss, "sparsity": share})
            kept = site.mask(best.mask)
            moved = jax.tree.map(trees.beside, site.weights(best.solution), params)
            site = Site(moved, chosen, sloped.adjust, kept)
            told("stage", number + 1, len(targets))
        tried = [one.said for one in seen]
        return finish(site, best, {"stages": done, "tried": tried}, started)

    return prune


class _Stage(NamedTuple):
    """Where a stage begins.

    Attributes:
      site, quadratic: around the weights of the stage before.
      target: sparsity, or `_KEEP`.
      probes: [n, r], for what an entry is worth; None computes it exactly.
    """

    site: Site
    quadratic: Quadratic
    target: Any
    probes: jax.Array | None


def _tried(
    model: LocalModel,
    stage: _Stage,
    judge: Batch,
    dampings: Sequence[float],
    scales: Sequence[float],
) -> list[Judged]:
    """The candidates of all dampings; and of larger ones, while no step is better than none."""
    site, quadratic = stage.site, stage.quadratic
    gram = _shared_gram(stage, max(dampings))
    more = [(max(dampings) * 10**i,) for i in range(1, _WIDER + 1)]
    seen: list[Judged] = []
    for some in (tuple(dampings), *more):
        for damping in some:
            damped = replace(quadratic, damping=jnp.asarray(damping, site.dtype))
            one = _candidate(stage._replace(quadratic=damped), gram)
            # The weights that a mask alone leaves depend on no damping: they are judged once.
            known = any(bool(jnp.all(one.mask == old.candidate.mask)) for old in seen)
            steps = [scale for scale in scales if scale != 0]
            offered = scaled(one, damped, steps if known else [0.0, *steps])
            seen += judged(model, site, offered, judge)
        if best_of(model, seen).candidate.info["scale"] > 0:
            break
    return seen


def _shared_gram(stage: _Stage, damping: float) -> jax.Array | None:
    """`G_K G_K'` of what the stage begins with, for all dampings; None where nothing reads it."""
    quadratic, mask = stage.quadratic, stage.site.old
    damped = replace(quadratic, damping=jnp.asarray(damping, stage.site.dtype))
    way = way_for(damped, int(jnp.sum(mask)))
    if way == "primal" or (stage.target is _KEEP and way != "dual"):
        return None
    return kept_gram(quadratic, mask)


def _candidate(stage: _Stage, gram: jax.Array | None) -> Candidate:
    """The mask and the update at a damping; gram is that of the entries still there."""
    site, quadratic, mask = stage.site, stage.quadratic, stage.site.old
    if stage.target is _KEEP:
        solved = solve(quadratic, mask, gram=gram)
    else:
        worth = kept_worth(quadratic, mask, stage.probes, gram)
        mask = site.choose(worth, stage.target)
        solved = solve(quadratic, mask)
    return Candidate(mask, solved.solution, {"damping": float(quadratic.damping)})


_WIDER = 3  # times that the damping is raised tenfold where the mask alone beats every update
_KEEP = object()  # the target of a stage that prunes nothing


def _targets(site: Site, sparsity: Any, path: list[float]) -> list[Any]:
    """The sparsity of every stage."""
    if site.select.fixed is not None or sparsity is None:
        return [sparsity] + [_KEEP] * (path.count(1.0) - 1)
    start = reached(site, sparsity)
    rising = [start + (sparsity - start) * share for share in path if 0 <= share < 1]
    if path[0] < 0:  # the same share of what is left, every time
        count = sum(share < 0 for share in path)
        left = (1 - sparsity) / max(1 - start, 1e-12)
        rising = [1 - (1 - start) * left ** (t / count) for t in range(1, count)]
    return [*rising, sparsity] + [_KEEP] * (path.count(1.0) - 1)


def _path(stages: int, tuning: int, schedule: Schedule | None) -> list[float]:
    """Shares of the sparsity, stage by stage; -1 where the default decides."""
    check_count("stages", stages)
    check_count("tuning", tuning, 0)
    if schedule is None:
        return [-1.0] * stages + [1.0] * (tuning + 1)
    path = [float(schedule(step)) for step in range(1, stages + 1)]
    if sorted(path) != path or path[0] < 0 or abs(path[-1] - 1) > 1e-6:
        raise ValueError(
            f"The schedule must rise to 1 over its {stages} stages, got {path}. It gives shares of "
            "the sparsity; the call gives the sparsity."
        )
    return [min(share, 1.0) for share in path[:-1]] + [1.0] * (tuning + 1)


def _sparsity(site: Site, mask: jax.Array) -> float:
    """Of the prunable entries, in [0, 1]."""
    movable = site.prunable_entries
    return 1 - int(jnp.sum(mask & movable)) / max(int(jnp.sum(movable)), 1)
