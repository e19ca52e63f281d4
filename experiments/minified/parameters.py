"""Parameter level: single weights pruned, fine-tuned, or the same mask trained from scratch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax

import jaxprune as jp
from experiments import training
from experiments.minified import quantized, rates
from experiments.minified.lab import Lab, Piece, bytes_of
from experiments.training import Budget
from jaxprune.types import Mask, Params, Pruned, Scores


class Stack(NamedTuple):
    """Pruned networks of all seeds, with a leading axis."""

    params: Params
    masks: Mask


def name_of(method: str, size: float) -> str:
    """A piece's name in the ledger."""
    return f"parameters {method} {size}"


def run(lab: Lab, advance: Callable[..., None]) -> None:
    """Every selection at every size that is not in the ledger yet."""
    surgeon = joint(lab)
    for method in lab.config.methods:
        scores: list[Scores] | None = None
        for size in lab.config.sizes:
            name = name_of(method, size)
            if name not in lab.book.pieces:
                with lab.book.attempt(name):
                    if method == "joint":
                        pruned = [surgeon(n, lab.batch, sparsity=1 - size) for n in lab.networks]
                    else:
                        scores = scored(lab, method, lab.networks) if scores is None else scores
                        pruned = [
                            by(s)(n, sparsity=1 - size)
                            for n, s in zip(lab.networks, scores, strict=True)
                        ]
                    lab.book.record(name, cell(lab, method, size, pruned))
            advance(1, method)


def scored(lab: Lab, method: str, networks: list[Params]) -> list[Scores]:
    """The scores of every seed's network on the first training examples."""
    return jax.block_until_ready(
        [
            lab.saliency(method, seed if method == "random" else 0)(network, lab.batch)
            for seed, network in enumerate(networks)
        ]
    )


def by(scores: Scores) -> jp.Pruner:
    """A Pruner that has its scores already."""
    return jp.one_shot(lambda *_: scores, jp.select.lowest())


def joint(lab: Lab) -> jp.Pruner:
    """Selection and update together, the scale of the update by training loss."""
    problem = lab.problem
    curvature = jp.curvature.sketched_gauss_newton(lab.apply, problem.loss, root=problem.root)
    model = jp.surgeon.LocalModel(
        lab.apply, problem.loss, curvature, damping=1e-2,
        examples=lab.config.score_examples // 2, key=jax.random.key(0),
    )  # fmt: skip
    effort = jp.surgeon.Effort(rounds=2, pursuits=0, probes=16, blocks=2)
    select = jp.select.lowest()
    return jp.surgeon.joint_surgeon(
        model, select, effort=effort, dampings=(1e-1, 1e-3), scales=(0.0, 0.5, 1.0)
    )


def stacked(pruned: list[Pruned]) -> Stack:
    """The seeds' networks as one tree."""
    return Stack(
        training.stack([p.params for p in pruned]), training.stack([p.mask for p in pruned])
    )


def cell(lab: Lab, method: str, size: float, pruned: list[Pruned]) -> Piece:
    """All arms of one selection at one size."""
    nets, own = stacked(pruned), budgets(lab, size)
    tuned = trained(lab, nets, "tune", own["tune"])
    arms = {"one_shot": lab.measure(nets.params), "fine_tuned": lab.measure(tuned)}
    if method in lab.config.scratch:
        for arm in ("short", "long"):
            arms[f"scratch_{arm}"] = lab.measure(trained(lab, nets, arm, own[arm]))
    if method in lab.config.iterative:
        path = iterated(lab, method, size)
        arms["iterative"] = lab.measure(path.params) | {"bytes": sizes_of(path)}
    more = {}
    if method in lab.config.extra:
        more["quantized"] = quantized.after(lab, tuned, nets.masks)
    return {"arms": arms, **more, **weighed(lab, nets, pruned[0])}


def trained(lab: Lab, nets: Stack, arm: str, budget: Budget) -> Params:
    """Pruned networks fine-tuned, or their masks trained from new weights."""
    if arm == "tune":
        return lab.fit(nets.params, budget, 1, nets.masks)
    again = jax.vmap(jp.apply_mask)(lab.fresh(1), nets.masks)
    return lab.fit(again, budget, 2, nets.masks)


def budgets(lab: Lab, size: float) -> rates.Budgets:
    """Rates chosen on networks that magnitude has pruned to the nearest size of a choice."""
    at = rates.nearest(size, lab.config.rate_sizes)

    @cache
    def nets() -> Stack:
        scores = scored(lab, "magnitude", lab.networks)
        own = zip(lab.networks, scores, strict=True)
        return stacked([by(s)(n, sparsity=1 - at) for n, s in own])

    train = lambda arm, budget: trained(lab, nets(), arm, budget)
    return rates.budgets(lab, f"weights {at:g}", train)


def weighed(lab: Lab, nets: Stack, first: Pruned) -> Piece:
    """Bytes, FLOPs and parameters; skipped products are theory, no kernel here skips them."""
    count = jp.reporting.flops_by_operation(lab.apply, first.params, lab.problem.train.inputs[:1])
    return {
        "bytes": sizes_of(nets),
        "flops": jp.reporting.flops_skipping_zeros(count, first.mask),
        "parameters": jp.trees.keep(first.mask),
        "widths": list(lab.widths),
    }


def sizes_of(nets: Stack) -> list[int]:
    """Bytes of every seed's network."""
    own = zip(training.unstack(nets.params), training.unstack(nets.masks), strict=True)
    return [bytes_of(params, mask) for params, mask in own]


def iterated(lab: Lab, method: str, size: float) -> Stack:
    """Prune and tune in turns, in all the steps of fine-tuning; shares left fall geometrically."""
    rounds, steps = lab.config.rounds, lab.tune_steps
    params, masks = lab.dense(), jp.trees.full_mask(lab.dense())
    for number in range(1, rounds + 1):
        networks, old = training.unstack(params), training.unstack(masks)
        scores = scored(lab, method, networks)
        left = size ** (number / rounds)
        pruned = [
            by(s)(n, sparsity=1 - left, mask=m)
            for n, s, m in zip(networks, scores, old, strict=True)
        ]
        nets = stacked(pruned)
        own = steps // rounds + (steps % rounds if number == rounds else 0)
        masks = nets.masks
        budget = budgets(lab, left)["tune"]._replace(steps=own)
        params = lab.fit(nets.params, budget, 10 + number, masks)
    return Stack(params, masks)
