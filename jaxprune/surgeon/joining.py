"""Joint selection and update as a Pruner, around one set of weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import trees
from jaxprune.curvature.examples import check_count
from jaxprune.select.ranking import lowest
from jaxprune.surgeon.allocation import is_global, search_shares
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
from jaxprune.surgeon.local_model import LocalModel, Site, quadratic_at
from jaxprune.surgeon.progress import Progress, listener
from jaxprune.surgeon.pursuit import Effort, pursue
from jaxprune.surgeon.quadratic import Quadratic, value
from jaxprune.surgeon.updating import solve
from jaxprune.types import Batch, Mask, Params, Pruned, Pruner, Selection

_MUCH_LESS = 0.9  # times the loss of a global choice, for shares a leaf to be worth their limits


def joint_surgeon(
    model: LocalModel,
    select: Selection | None = None,
    *,
    effort: Effort | None = None,
    dampings: Sequence[float] | None = None,
    scales: Sequence[float] = (1.0,),
    share_tries: int = 0,
    starts: Sequence[Pruner] = (),
    key: jax.Array | None = None,
    progress: Progress | None = None,
) -> Pruner:
    """Which weights go and where the others move, decided together: `min Q(z), |z|_0 <= k`.

    A set is scored by the objective AFTER the optimal update of what it keeps. Backward rounds,
    hard thresholding by curvature and exact exchanges (see `pursuit`) find it, on the factors of
    the Fisher: nothing of d x d, and of n x d for dense layers, is ever formed.

    Args:
      model: the loss around the weights; its damping must be > 0.
      select: constraints (global, per leaf, N:M, protected leaves); by default
        `jp.select.lowest()`.
      effort: how hard to try.
      dampings: solve for each, keep the weights of the lowest true loss on training examples that
        the Fisher was not taken over; by default the model's own only.
      scales: of the update, judged in the same way: below 1 where the quadratic promises too much.
      share_tries: for a global selection at high sparsity: how many true losses to spend on how
        much each leaf loses before weights are chosen; 0 for none, 150 is much. What is found is
        kept if it lowers the loss of the masked weights by a tenth.
      starts: other Pruners of the same selection, such as `exact_obs(apply, select=select)`. The
        minimum of Q on each one's mask, at every scale between that Pruner's own weights (0) and
        the minimum (1), is judged too. At high sparsity the quadratic is a poor judge of masks,
        and the loss prefers these.
      key: of everything random; by default the model's draws the examples, and `jax.random.key(0)`
        the rest.
      progress: `(what, done, total)`, called as it goes.

    Returns:
      A `Pruner`. Its `info` has the objective of magnitude pruning with the same update
      (`objective_magnitude`), after rounds and at the end, how many swaps, the losses of all
      candidates, and seconds.

    Raises:
      ValueError: damping 0, no scale, counts out of range; when called, a selection of units, and
        as `jp.one_shot`.
      TypeError: another model, selection or starts than these; a call inside jit.

    References:
      The objective is that of Yu et al. 2022, The Combinatorial Brain Surgeon, eq. 2; hard
      thresholding with least squares on the support: Foucart 2011, Benbaki et al. 2023 (CHITA).

    Example:
      >>> from jaxprune.surgeon import LocalModel, joint_surgeon
      >>> loss = lambda y, t: 0.5 * (y - t) ** 2
      >>> model = LocalModel(lambda w, x: x @ w[:, 0], loss, damping=1e-4)
      >>> x = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [2.0, 2.0, 1.0]])
      >>> w = jnp.array([[1.0], [1.1], [0.5]])
      >>> pruned = joint_surgeon(model)(w, (x, jnp.zeros(3)), sparsity=1 / 3)
      >>> pruned.params.ravel().round(2)  # the first goes, its twin takes over
      Array([0. , 2.1, 0.5], dtype=float32)
    """
    check_model(model)
    chosen = selection(select, lowest())
    tried, scales = check_grid((model.damping,) if dampings is None else dampings, scales)
    check_count("share_tries", share_tries, 0)
    if callable(starts):
        raise TypeError("`starts` are several Pruners: pass a tuple, such as `starts=(prune,)`.")
    work = Effort() if effort is None else effort
    keys = jax.random.key(0) if key is None else key
    told = listener(progress)

    def prune(
        params: Params, batch: Batch = None, *, sparsity: Any = None, mask: Mask | None = None
    ) -> Pruned:
        started = time.perf_counter()
        free = site = begin(model, chosen, params, sparsity, mask)
        quadratic, judge = quadratic_at(model, site, site.params, batch, key)
        info: dict[str, Any] = {}
        if share_tries and is_global(site):
            own = jax.random.fold_in(keys, 1)
            shared, info = _shared(model, site, quadratic, sparsity, judge, share_tries, own, told)
            # Leaves that compete freely find better sets, unless the loss says otherwise.
            if info["loss_shares"] < _MUCH_LESS * info["loss_global"]:
                site = shared
        candidates: list[Candidate] = []
        for damping in tried:
            damped = replace(quadratic, damping=jnp.asarray(damping, site.dtype))
            found = pursue(
                damped, site, sparsity, effort=work, key=jax.random.fold_in(keys, 2), told=told
            )
            said = {**found.info, "damping": float(damping)}
            one = Candidate(found.mask, found.solved.solution, said)
            candidates += scaled(one, damped, scales)
        for number, start in enumerate(starts):
            told("start", number, len(starts))
            pruned = start(free.params, batch, sparsity=sparsity, mask=mask)
            candidates += _from_start(free, quadratic, pruned, number, sparsity, tried, scales)
        best, losses = best_by_loss(model, site, candidates, judge)
        return finish(site, best, {**info, "tried": losses}, started)

    return prune


def _from_start(
    site: Site,
    quadratic: Quadratic,
    pruned: Pruned,
    number: int,
    sparsity: Any,
    dampings: Sequence[float],
    scales: Sequence[float],
) -> list[Candidate]:
    """Another Pruner's mask: its own weights, and the way from there to the minimum of Q.

    Raises:
      ValueError: it pruned another number of entries, or leaves that do not move here.
    """
    mask = site.flat(pruned.mask).astype(bool) & site.old
    wanted = site.choose(jnp.abs(quadratic.weights), sparsity)
    if int(jnp.sum(mask)) != int(jnp.sum(wanted)) or trees.drop(pruned.mask) != int(jnp.sum(~mask)):
        raise ValueError(
            f"`starts[{number}]` pruned {trees.drop(pruned.mask)} entries, this selection prunes "
            f"{int(jnp.sum(~wanted))}. Make it with the same `select`."
        )
    own = jnp.where(mask, site.flat(pruned.params), 0)
    said: dict[str, Any] = {"start": number}
    rise = float(value(quadratic, own))
    found = [Candidate(mask, own, {**said, "scale": 0.0, "objective": rise})]
    for damping in dampings:
        damped = replace(quadratic, damping=jnp.asarray(damping, site.dtype))
        here = {**said, "damping": float(damping)}
        found += scaled(Candidate(mask, solve(damped, mask).solution, here), damped, scales, own)
    return found


def _shared(
    model: LocalModel,
    site: Site,
    quadratic: Quadratic,
    sparsity: Any,
    judge: Batch,
    tries: int,
    key: jax.Array,
    told: Progress,
) -> tuple[Site, dict[str, Any]]:
    """The site with a sparsity a leaf, searched by true loss."""
    w = quadratic.weights
    scores = [jnp.abs(w), w**2 * quadratic.diagonal()]
    select, info = search_shares(
        model, site, scores, sparsity, judge, tries=tries, key=key, told=told
    )
    shared = Site(site.params, select, model.adjust, site.mask(site.old))
    return shared, info


def check_grid(
    dampings: Sequence[float], scales: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Both as tuples, if all dampings are > 0 and there is one of each.

    Raises:
      ValueError: an empty or impossible grid.
    """
    dampings, scales = numbers("dampings", dampings), numbers("scales", scales)
    if not dampings or not all(d > 0 for d in dampings):
        raise ValueError(
            f"The joint solver divides by the damping: all must be > 0, got {dampings}."
        )
    if not scales:
        raise ValueError("`scales` is empty: pass at least one, such as (1.0,).")
    return dampings, scales
