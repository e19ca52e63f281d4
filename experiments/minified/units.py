"""Unit level: whole neurons and channels removed, merged, fine-tuned; the small net from scratch.

Every hidden layer keeps the same share of its units, so that all selections, all seeds and the
network trained from scratch have one architecture at a size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import jax

import jaxprune as jp
from experiments import training
from experiments.minified import quantized, rates
from experiments.minified.lab import Lab, Piece, dense_bytes
from experiments.minified.task import Widths
from jaxprune.coupling.groups import Kept
from jaxprune.types import Params, Saliency

METHODS = (
    "random", "l1", "l2", "taylor", "obd", "obd_sd_damage", "obd_sd_input", "fisher_gates",
    "dropout", "ablation", "merge_pairs",
)  # fmt: skip


def name_of(method: str, size: float) -> str:
    """A piece's name in the ledger; the method of a network from scratch is "scratch"."""
    return f"units {method} {size}"


def run(lab: Lab, advance: Callable[..., None]) -> None:
    """Every selection at every size that is not in the ledger yet, and the nets from scratch."""
    for size in lab.config.sizes:
        if name_of("scratch", size) not in lab.book.pieces:
            with lab.book.attempt(name_of("scratch", size)):
                lab.book.record(name_of("scratch", size), from_scratch(lab, size))
        advance(1, "small dense")
    for method in lab.config.unit_methods:
        scores = None
        for size in lab.config.sizes:
            name = name_of(method, size)
            if name not in lab.book.pieces:
                with lab.book.attempt(name):
                    if scores is None and method != "merge_pairs":
                        scores = scored(lab, method)
                    lab.book.record(name, cell(lab, method, size, scores))
            advance(1, f"units {method}")


def widths_at(lab: Lab, size: float) -> Widths | None:
    """The widest network of the dense one's shape in at most `size` of its bytes.

    None if even one unit a layer takes more.
    """
    coupling = lab.coupling
    whole = {name: group.units for name, group in coupling.groups.items()}
    taken = dense_bytes(lab.networks[0])
    headers = taken - 4 * coupling.parameters({})
    target = int(size * taken - headers) // 4
    least = coupling.parameters(jp.structure.kept_of(coupling, dict.fromkeys(whole, 1)))
    if target < least:
        return None
    found = jp.structure.scaled_profile(coupling, whole, parameters=target)
    return tuple(found.values())


def from_scratch(lab: Lab, size: float) -> Piece:
    """The small dense network: the architecture that all selections leave at this size."""
    widths = widths_at(lab, size)
    if widths is None:
        return {"arms": {}}
    apply, start, own = lab.problem.apply_at(widths), lab.fresh(2, widths), budgets(lab, size)
    short = lab.fit(start, own["short"], 2, apply=apply)
    long = lab.fit(start, own["long"], 2, apply=apply)
    arms = {
        "scratch_short": lab.measure(short, apply),
        "scratch_long": lab.measure(long, apply),
    }
    extra = quantized.after(lab, long, jp.trees.full_mask(long), widths)
    return {"arms": arms, "quantized": extra, **lab.weighed(widths)}


def scored(lab: Lab, method: str) -> list[dict[str, jax.Array]]:
    """Scores of the units of every seed's network."""
    make = lambda seed: build(lab, method, seed)
    first = make(0)
    drawn = method in ("random", "dropout")
    return [
        jax.block_until_ready((make(seed) if drawn else first)(network, lab.batch))
        for seed, network in enumerate(lab.networks)
    ]


def build(lab: Lab, method: str, seed: int) -> Saliency:
    """The unit saliency of a method's name."""
    coupling, loss, saliency = lab.coupling, lab.problem.loss, jp.saliency
    key = jax.random.key(2000 + seed)
    if method == "random":
        return saliency.random_units(coupling, key)
    if method in ("l1", "l2"):
        return saliency.unit_magnitude(coupling, int(method[1]), incoming=True)
    if method == "taylor":
        return saliency.unit_taylor(coupling, loss)
    if method == "fisher_gates":
        return saliency.unit_fisher(coupling, loss)
    if method == "dropout":
        return saliency.dropout_damage(coupling, loss, key, masks=lab.config.drops, rate=0.1)
    if method == "ablation":
        return saliency.unit_ablation(coupling, loss)
    return saliency.on_units(coupling, lab.saliency(method))


def cell(lab: Lab, method: str, size: float, scores: list[dict[str, jax.Array]] | None) -> Piece:
    """All arms of one selection at one size."""
    widths = widths_at(lab, size)
    if widths is None:
        return {"arms": {}}
    apply, budget = lab.problem.apply_at(widths), budgets(lab, size)["tune"]
    arms = {}
    if scores is None:
        profile = dict(zip(lab.coupling.groups, widths, strict=True))
        merged = [_pairs(lab, network, profile) for network in lab.networks]
    else:
        kept = [best(lab, widths, own) for own in scores]
        plain = shrunk(lab, kept)
        tuned = lab.fit(plain, budget, 1, apply=apply)
        arms = {"one_shot": lab.measure(plain, apply), "fine_tuned": lab.measure(tuned, apply)}
        merged = [_merged(lab, n, k) for n, k in zip(lab.networks, kept, strict=True)]
    poured = training.stack(merged)
    after = lab.fit(poured, budget, 1, apply=apply)
    arms["merged"] = lab.measure(poured, apply)
    arms["merged_tuned"] = lab.measure(after, apply)
    more = {}
    if method in lab.config.extra and scores is not None:
        more["quantized"] = quantized.after(lab, tuned, jp.trees.full_mask(tuned), widths)
    return {"arms": arms, **more, **lab.weighed(widths)}


def budgets(lab: Lab, size: float) -> rates.Budgets:
    """Rates chosen on networks shrunk to the nearest size of a choice, by their weights' norms."""
    feasible = [s for s in lab.config.rate_sizes if widths_at(lab, s) is not None]
    at = rates.nearest(size, feasible or [size])
    widths = widths_at(lab, at)
    assert widths is not None  # `size` itself has widths
    apply = lab.problem.apply_at(widths)

    @cache
    def start(arm: str) -> Params:
        if arm != "tune":
            return lab.fresh(2, widths)
        return shrunk(lab, [best(lab, widths, scores) for scores in scored(lab, "l2")])

    train = lambda arm, budget: lab.fit(start(arm), budget, 1 if arm == "tune" else 2, apply=apply)
    return rates.budgets(lab, f"units {at:g}", train, apply=apply)


def shrunk(lab: Lab, kept: list[Kept]) -> Params:
    """Every seed's network without its other units, stacked."""
    own = zip(lab.networks, kept, strict=True)
    return training.stack([jp.structure.shrink_units(n, k, lab.coupling) for n, k in own])


def best(lab: Lab, widths: Widths, scores: dict[str, jax.Array]) -> Kept:
    """The units with the highest scores, as many of each group as the widths say."""
    groups = lab.coupling.groups.items()
    shares = {name: 1 - n / group.units for (name, group), n in zip(groups, widths, strict=True)}
    select = jp.select.lowest_units(lab.coupling, scope=shares)
    return lab.coupling.kept(select(lab.networks[0], scores, sparsity=0.0))


def _merged(lab: Lab, network: Params, kept: Kept) -> Params:
    merged = jp.structure.merge_similar(network, kept, lab.coupling)
    return jp.structure.shrink_units(merged.variables, merged.kept, lab.coupling)


def _pairs(lab: Lab, network: Params, profile: dict[str, int]) -> Params:
    merged = jp.structure.merge_pairs(network, lab.coupling, profile)
    return jp.structure.shrink_units(merged.variables, merged.kept, lab.coupling)
