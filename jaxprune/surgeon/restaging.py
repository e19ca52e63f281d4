"""Joint selection and update in stages: a new quadratic at every step of rising sparsity."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.select.ranking import lowest
from jaxprune.surgeon.finishing import Candidate, begin, best_by_loss, finish, scaled
from jaxprune.surgeon.joining import check_grid
from jaxprune.surgeon.local_model import LocalModel, Site, quadratic_at
from jaxprune.surgeon.pursuit import Told, state_at
from jaxprune.surgeon.quadratic import Quadratic
from jaxprune.surgeon.updating import solve
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
    progress: Told | None = None,
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
      stages: in which the sparsity rises.
      tuning: more of them at the end, in which nothing is pruned.
      schedule: stage -> share of the sparsity in [0, 1], 1 at the last; by default every stage
        prunes the same share of what is left.
      dampings, scales: tried in every stage. A scale of 0, the mask alone, is always tried; where
        it is the best, larger dampings are.
      probes: random projections for what an entry is worth, as in `Effort`.
      key: draws examples and probes, others in every stage; by default `jax.random.key(0)`.
      progress: `(what, done, total)`.

    Returns:
      A `Pruner`. `info["stages"]` lists sparsity, loss, damping and scale of every stage.

    Raises:
      ValueError: damping 0, stages < 1, tuning < 0, a schedule that does not rise to 1; when
        called, as `jp.one_shot`.
      TypeError: a call inside jit.

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
    chosen = lowest() if select is None else select
    check_grid(dampings, scales)
    path = _path(stages, tuning, schedule)
    sloped = replace(model, first_order=True)
    keys = jax.random.key(0) if key is None else key

    def prune(
        params: Params, batch: Batch = None, *, sparsity: Any = None, mask: Mask | None = None
    ) -> Pruned:
        started = time.perf_counter()
        site = begin(sloped, chosen, params, sparsity, mask)
        done: list[dict[str, Any]] = []
        best: Candidate | None = None
        tried: list[dict[str, Any]] = []
        targets = list(_targets(site, sparsity, path))
        for number, target in enumerate(targets):
            own = jax.random.fold_in(keys, number)
            quadratic, judge = quadratic_at(sloped, site, site.params, batch, own)
            tried, wider = [], max(dampings)
            for damping in (tuple(dampings), *((wider * 10**i,) for i in range(1, _WIDER + 1))):
                candidates = [] if best is None or not tried else [best]
                for each in damping:
                    damped = replace(quadratic, damping=jnp.asarray(each, site.dtype))
                    candidates += _candidates(damped, site, target, scales, probes, own)
                best, more = best_by_loss(sloped, site, candidates, judge)
                tried += more
                if best.info["scale"] > 0:  # no step in reach was a good one otherwise: step less
                    break
            assert best is not None
            found = min(t["loss"] for t in tried)
            done.append({**best.info, "loss": found, "sparsity": _sparsity(site, best.mask)})
            kept = site.mask(best.mask)
            site = Site(site.weights(best.solution), chosen, sloped.adjust, kept)
            if progress is not None:
                progress("stage", number + 1, len(targets))
        assert best is not None
        return finish(site, best, {"stages": done, "tried": tried}, started)

    return prune


def _candidates(
    quadratic: Quadratic,
    site: Site,
    target: Any,
    scales: Sequence[float],
    probes: int | None,
    key: jax.Array,
) -> list[Candidate]:
    """The mask and update of one damping, at every scale and at 0."""
    projections = None
    if probes is not None and probes < quadratic.examples:
        shape = (quadratic.examples, probes)
        projections = jax.random.normal(key, shape, quadratic.weights.dtype) / np.sqrt(probes)
    mask = site.old
    if target is not _KEEP:
        state = state_at(quadratic, mask, projections)
        mask = site.choose(jnp.where(mask, state.worth, -jnp.inf), target)
    solved = solve(quadratic, mask)
    info = {"damping": float(quadratic.damping), "objective": float(solved.objective)}
    one = Candidate(mask, solved.solution, info)
    return scaled(one, quadratic.weights, [0.0, *scales])


_WIDER = 3  # times that the damping is raised tenfold where the mask alone beats every update
_KEEP = object()  # the target of a stage that prunes nothing


def _targets(site: Site, sparsity: Any, path: list[float]) -> list[Any]:
    """The sparsity of every stage."""
    if site.select.fixed is not None or sparsity is None:
        return [sparsity] + [_KEEP] * path.count(1.0)
    reached = _sparsity(site, site.old)
    rising = [reached + (sparsity - reached) * share for share in path if 0 <= share < 1]
    if path[0] < 0:  # the same share of what is left, every time
        count = sum(share < 0 for share in path)
        left = (1 - sparsity) / max(1 - reached, 1e-12)
        rising = [1 - (1 - reached) * left ** (t / count) for t in range(1, count)]
    return [*rising, sparsity] + [_KEEP] * (path.count(1.0) - 1)


def _path(stages: int, tuning: int, schedule: Schedule | None) -> list[float]:
    """Shares of the sparsity, stage by stage; -1 where the default decides."""
    for name, count, least in (("stages", stages, 1), ("tuning", tuning, 0)):
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise ValueError(f"`{name}` is an integer >= {least}, got {count!r}.")
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
