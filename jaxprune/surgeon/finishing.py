"""How every surgeon ends: candidates judged by their true loss, weights and masks put back."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import trees
from jaxprune.surgeon.local_model import LocalModel, Site
from jaxprune.surgeon.quadratic import Quadratic, value
from jaxprune.trees import check_sparsity
from jaxprune.types import Batch, Mask, Params, Pruned, Selection


class Candidate(NamedTuple):
    """Weights that a surgeon offers.

    Attributes:
      mask: [d].
      solution: z, [d].
      info: what it came from: damping, scale, objective.
    """

    mask: jax.Array
    solution: jax.Array
    info: dict[str, Any]


class Judged(NamedTuple):
    """A candidate and its true loss, infinite if its weights are not finite."""

    candidate: Candidate
    loss: float

    @property
    def said(self) -> dict[str, Any]:
        """The candidate's info, and its loss."""
        return {**self.candidate.info, "loss": self.loss}


def check_model(model: Any) -> None:
    """Raise unless it is a `LocalModel`.

    Raises:
      TypeError: it is not.
    """
    if not isinstance(model, LocalModel):
        raise TypeError(
            "A surgeon starts from the loss around the weights, "
            f"`jp.surgeon.LocalModel(apply, loss)`; got {type(model).__name__}."
        )


def selection(select: Selection | None, default: Selection) -> Selection:
    """The selection, or the default for None.

    Raises:
      TypeError: it is no selection.
    """
    if select is None:
        return default
    if not isinstance(select, Selection):
        raise TypeError(f"`select` is a selection, such as `jp.select.lowest()`; got {select!r}.")
    return select


def numbers(name: str, values: Any) -> tuple[float, ...]:
    """The numbers of an argument that takes several.

    Raises:
      ValueError: it is something else; names the argument.
    """
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise ValueError(
            f"`{name}` are several numbers, such as (0.1, 1.0); got {values!r}."
        ) from None


def begin(
    model: LocalModel, select: Selection, params: Params, sparsity: Any, mask: Mask | None
) -> Site:
    """Check what a surgeon is called with.

    Raises:
      ValueError: a sparsity outside [0, 1), trees that differ, a selection of units.
      TypeError: a traced call; complex or integer leaves to prune.
    """
    if sparsity is not None:
        check_sparsity(sparsity)
    if trees.is_traced(params, sparsity, mask):
        raise TypeError(
            "A surgeon looks at losses while it works and cannot be traced: call it outside jit. "
            "The mask it returns goes into jitted steps."
        )
    return Site(params, select, model.adjust, mask)


def scaled(
    candidate: Candidate,
    quadratic: Quadratic,
    scales: Sequence[float],
    start: jax.Array | None = None,
) -> list[Candidate]:
    """The same mask, with the update times a scale, and the objective of each.

    Args:
      candidate: the whole update, z.
      quadratic: what `objective` is a value of.
      scales: s of `w + s (z - w)` where kept.
      start: w, [d]; the quadratic's own weights by default.
    """
    w = quadratic.weights if start is None else start
    found = []
    for scale in scales:
        moved = candidate.solution
        if scale != 1:
            moved = jnp.where(candidate.mask, w + scale * (moved - w), 0)
        info = {**candidate.info, "scale": scale, "objective": float(value(quadratic, moved))}
        found.append(Candidate(candidate.mask, moved, info))
    return found


def judged(
    model: LocalModel, site: Site, candidates: Sequence[Candidate], judge: Batch
) -> list[Judged]:
    """The true loss of every candidate."""
    found = []
    for candidate in candidates:
        loss = math.inf
        if bool(jnp.all(jnp.isfinite(candidate.solution))):
            loss = model.loss_of(site.weights(candidate.solution), judge)
        found.append(Judged(candidate, loss))
    return found


def not_finite(damping: Any, examples: int | None) -> ValueError:
    """What is said where no update is a number."""
    return ValueError(
        f"No finite update was found with damping {damping:g}: the curvature of "
        f"{examples or 'all'} examples is singular, or the weights or the loss are not "
        "finite. Pass a larger `damping`, or check the parameters and the batch for NaN."
    )


def best_of(model: LocalModel, found: Sequence[Judged]) -> Judged:
    """The one of the lowest true loss, of equal ones the first.

    Raises:
      ValueError: every candidate's weights or loss are NaN or infinite.
    """
    best = min(found, key=lambda one: math.inf if math.isnan(one.loss) else one.loss)
    if not best.loss < math.inf:
        raise not_finite(model.damping, model.examples)
    return best


def best_by_loss(
    model: LocalModel, site: Site, candidates: Sequence[Candidate], judge: Batch
) -> tuple[Candidate, list[dict[str, Any]]]:
    """The candidate of the lowest true loss, and what is said of all.

    Raises:
      ValueError: as `best_of`.
    """
    found = judged(model, site, candidates, judge)
    return best_of(model, found).candidate, [one.said for one in found]


def finish(site: Site, candidate: Candidate, info: dict[str, Any], started: float) -> Pruned:
    """Weights and mask as trees beside the parameters, with the counts every Pruner gives."""
    mask = site.mask(candidate.mask)
    counts = trees.prunable_counts(mask, site.prunable)
    params = trees.apply_mask(site.weights(candidate.solution), mask)
    params, mask = (jax.tree.map(trees.beside, tree, site.params) for tree in (params, mask))
    seconds = time.perf_counter() - started
    return Pruned(params, mask, {**counts, **candidate.info, **info, "seconds": seconds})
