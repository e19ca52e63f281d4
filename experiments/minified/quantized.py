"""Quantization: of the dense networks, of pruned and shrunk ones, and fine-tuned through it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax

import jaxprune as jp
from experiments import training
from experiments.minified import rates
from experiments.minified.lab import Config, Lab, Piece
from experiments.minified.task import Widths
from jaxprune import quantize
from jaxprune.types import Mask, Params


def name_of(scheme: str, bits: str) -> str:
    """A piece's name in the ledger."""
    return f"quantized {scheme} {bits}"


GRIDS = tuple(
    f"{kind} {per} {calibration}"
    for kind in ("symmetric", "affine")
    for per in ("tensor", "channel")
    for calibration in ("max", "percentile", "mse")
)


def schemes(config: Config) -> list[tuple[str, str]]:
    """(scheme, bits) of every quantizer of the dense networks."""
    short = [(scheme, str(b)) for b in config.bits for scheme in (*config.grids, "shared")]
    return [*short, ("half", "bfloat16"), ("half", "float16")]


@cache
def quantizer(scheme: str, bits: str) -> quantize.Quantizer:
    """The quantizer of a scheme's name."""
    if scheme == "half":
        return quantize.half_precision(bits)
    if scheme == "shared":
        return quantize.shared_values(int(bits))
    kind, per, calibration = scheme.split()
    return quantize.uniform(
        int(bits), symmetric=kind == "symmetric", channels=per == "channel",
        calibration=calibration,
    )  # fmt: skip


def combined(kind: str, bits: int) -> tuple[str, str]:
    """The scheme that is put on pruned and shrunk networks."""
    return ("shared", str(bits)) if kind == "shared" else ("symmetric channel mse", str(bits))


@partial(jax.jit, static_argnames=("scheme", "bits"))
def _quantized(scheme: str, bits: str, params: Params, mask: Mask) -> quantize.Quantized:
    return quantizer(scheme, bits)(params, mask)


def put_on(
    lab: Lab, scheme: str, bits: str, params: Params, masks: Mask, widths: Widths | None = None
) -> Piece:
    """Stacked networks quantized as they are: metrics and bytes."""
    own = zip(training.unstack(params), training.unstack(masks), strict=True)
    found = [_quantized(scheme, bits, p, m) for p, m in own]
    apply = lab.problem.apply_at(widths or lab.widths)
    return {
        **lab.measure(training.stack([one.params for one in found]), apply),
        "bytes": [quantize.stored_bytes(one).total for one in found],
    }


def after(lab: Lab, params: Params, masks: Mask, widths: Widths | None = None) -> Piece:
    """What quantization does to networks that pruning or shrinking has made small."""
    return {
        f"{kind} {bits}": put_on(lab, *combined(kind, bits), params, masks, widths)
        for kind, bits in lab.config.combined
    }


def run(lab: Lab, advance: Callable[..., None]) -> None:
    """Every quantizer on the dense networks, and the uniform ones fine-tuned through."""
    dense = lab.dense()
    full = jp.trees.full_mask(dense)
    run_dense(lab)
    for scheme, bits in schemes(lab.config):
        name = name_of(scheme, bits)
        if name not in lab.book.pieces:
            with lab.book.attempt(name):
                found = put_on(lab, scheme, bits, dense, full)
                lab.book.record(name, {"arms": {"one_shot": found}, **_costs(lab)})
        advance(1, f"{bits} bits")
    for bits in map(str, lab.config.bits):
        name = name_of("straight through", bits)
        if name not in lab.book.pieces:
            with lab.book.attempt(name):
                lab.book.record(name, {"arms": {"fine_tuned": tuned(lab, bits)}, **_costs(lab)})
        advance(1, f"{bits} bits tuned")


def run_dense(lab: Lab) -> None:
    """The dense networks as they are, and fine-tuned."""
    if "dense" in lab.book.pieces:
        return
    train = lambda _, budget: lab.fit(lab.dense(), budget, salt=1)
    budget = rates.budgets(lab, "dense", train, arms=["tune"])["tune"]
    tuned = lab.measure(train("tune", budget))
    arms = {"one_shot": lab.measure(lab.dense()), "fine_tuned": tuned}
    lab.book.record("dense", {"arms": arms, **lab.weighed(lab.widths)})


def tuned(lab: Lab, bits: str) -> Piece:
    """The dense networks fine-tuned with quantized weights in the forward pass."""
    scheme = "symmetric channel max"  # its scales are cheap enough to follow every step
    apply = quantize.fake_quantized(lab.apply, quantizer(scheme, bits))
    dense = lab.dense()
    train = lambda _, budget: lab.fit(dense, budget, 1, apply=apply)
    # The rate is judged with quantized weights too.
    budget = rates.budgets(lab, f"straight through {bits}", train, arms=["tune"], apply=apply)
    params = train("tune", budget["tune"])
    return put_on(lab, scheme, bits, params, jp.trees.full_mask(dense))


def _costs(lab: Lab) -> dict[str, Any]:
    dense = lab.book.pieces["dense"]
    return {"flops": dense["flops"], "parameters": dense["parameters"], "widths": list(lab.widths)}
