"""How every surgeon ends: candidates judged by their true loss, weights and masks put back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import trees
from jaxprune.surgeon.local_model import LocalModel, Site
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


def scaled(candidate: Candidate, weights: jax.Array, scales: Sequence[float]) -> list[Candidate]:
    """The same mask, with the update times a scale: `w + scale (z - w)` where kept."""
    found = []
    for scale in scales:
        moved = candidate.solution
        if scale != 1:
            moved = jnp.where(candidate.mask, weights + scale * (moved - weights), 0)
        found.append(Candidate(candidate.mask, moved, {**candidate.info, "scale": scale}))
    return found


def best_by_loss(
    model: LocalModel, site: Site, candidates: Sequence[Candidate], judge: Batch
) -> tuple[Candidate, list[dict[str, Any]]]:
    """The candidate of the lowest true loss, and the losses of all.

    Raises:
      ValueError: every candidate's weights or loss are NaN or infinite.
    """
    tried = []
    for candidate in candidates:
        finite = bool(jnp.all(jnp.isfinite(candidate.solution)))
        loss = float("inf")
        if finite:
            loss = model.loss_of(site.weights(candidate.solution), judge)
        tried.append({**candidate.info, "loss": loss})
    losses = [t["loss"] if t["loss"] == t["loss"] else float("inf") for t in tried]
    best = min(range(len(losses)), key=losses.__getitem__)
    if losses[best] == float("inf"):
        raise ValueError(
            f"No finite update was found with damping {model.damping}: the curvature of "
            f"{model.examples or 'all'} examples is singular, or the weights or the loss are not "
            "finite. Pass a larger `damping`, or check the parameters and the batch for NaN."
        )
    return candidates[best], tried


def finish(site: Site, candidate: Candidate, info: dict[str, Any], started: float) -> Pruned:
    """Weights and mask as trees, with the counts every Pruner gives."""
    mask = site.mask(candidate.mask)
    flags = site.prunable
    chosen = trees.select_leaves(mask, flags)
    total, kept = trees.count(chosen), trees.keep(chosen)
    counts = {"kept": kept, "prunable": total, "sparsity": 1 - kept / max(total, 1)}
    params = trees.apply_mask(site.weights(candidate.solution), mask)
    seconds = time.perf_counter() - started
    return Pruned(params, mask, {**counts, **candidate.info, **info, "seconds": seconds})
