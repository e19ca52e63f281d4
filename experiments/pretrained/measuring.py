"""Pieces of the ledger: qualities, counts, bytes, and milliseconds taken in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

import jaxprune as jp
from experiments.ledger import Ledger
from experiments.pretrained.arms import Arm, Config, Small, arms
from experiments.pretrained.bench import Bench
from jaxprune.types import Params

MASKED = "masked"
"""What the masked network's milliseconds are called: it is computed whole, whatever is pruned."""


def measure_dense(bench: Bench) -> dict[str, Any]:
    """The published network."""
    params = bench.net.params
    small = Small(params, jp.trees.full_mask(params))
    return {"test": bench.net.quality(params), "source": bench.net.source, **_costs(bench, small)}


def try_rates(bench: Bench, arm: Arm) -> dict[str, float | None]:
    """Of each rate the distance to the dense outputs after a trial; None where it is not finite.

    Raises:
      FloatingPointError: it is finite for none.
    """
    small = bench.prune(arm)
    found: dict[str, float | None] = {}
    for rate in bench.config.rates:
        try:
            tuned = bench.distillation(small.params, small.mask, rate, trial=True)
            found[f"{rate:g}"] = tuned.after
        except FloatingPointError:
            found[f"{rate:g}"] = None
    chosen(found)
    return found


def rates(arm: Arm) -> str:
    """The piece with what the rates of an arm came to."""
    return f"rates {arm.name}"


def chosen(tried: Mapping[str, float | None]) -> float:
    """The rate of the least distance.

    Raises:
      FloatingPointError: no rate has a finite one.

    Example:
      >>> chosen({"0.1": None, "0.01": 0.4, "0.001": 0.7})
      0.01
    """
    finite = {rate: apart for rate, apart in tried.items() if apart is not None}
    if not finite:
        raise FloatingPointError(f"No rate of {', '.join(tried)} is finite. Lower `rates`.")
    return float(min(finite, key=lambda rate: finite[rate]))


def measure(bench: Bench, arm: Arm, rate: float) -> dict[str, Any]:
    """A network under an arm, raw and tuned."""
    small = bench.prune(arm)
    tuned = bench.distillation(small.params, small.mask, rate)
    return {
        "raw": bench.net.quality(small.params),
        "tuned": bench.net.quality(tuned.params),
        "apart": [tuned.before, tuned.after],
        "widths": small.widths,
        **_costs(bench, small._replace(params=tuned.params)),
    }


def _costs(bench: Bench, small: Small) -> dict[str, Any]:
    stored = jp.quantize.unquantized()(small.params, small.mask)
    return {
        "parameters": jp.trees.keep(small.mask),
        "bytes": {form: jp.quantize.stored_bytes(stored, form).total
                  for form in ("dense", "smallest")},
        "flops": bench.flops(small),
    }  # fmt: skip


def finished(config: Config, book: Ledger, bench: Callable[[int], Bench]) -> None:
    """Record the milliseconds of all networks of the first seed, unless they are there."""
    widths: dict[str, dict[str, int] | None] = {"dense": None, MASKED: None}
    for arm in arms(config):
        piece = book.pieces.get(f"{arm.name} seed 0")
        if arm.family == "units" and piece is not None:
            widths[arm.name] = piece["widths"]
    if widths.keys() != book.pieces.get("milliseconds", {}).keys():
        first = bench(0)
        with book.attempt("milliseconds"):
            book.record("milliseconds", taken(first, widths))


def taken(bench: Bench, widths: Mapping[str, dict[str, int] | None]) -> dict[str, Any]:
    """Median milliseconds of forward passes with their quartiles, by network and examples.

    All networks of a call's size in turns, so that a busy machine slows all of them alike.
    """
    found: dict[str, Any] = {name: {} for name in widths}
    networks = {name: _arrays(bench, name, own) for name, own in widths.items()}
    for count in bench.config.timed:
        inputs = bench.tools.few(count)
        calls = [(bench.net.apply, (params, inputs)) for params in networks.values()]
        for own, one in zip(found.values(), jp.reporting.latencies(calls), strict=True):
            own[str(count)] = [one.median_ms, one.lower_ms, one.upper_ms]
    return found


def _arrays(bench: Bench, name: str, widths: dict[str, int] | None) -> Params:
    """Arrays whose call takes as long: the masked ones have most of their weights at 0."""
    if widths is not None:
        return bench.of_widths(widths)
    if name != MASKED:
        return bench.net.params
    prune = jp.one_shot(jp.saliency.magnitude(), bench.tools.selection("layer"))
    found = prune(bench.net.params, sparsity=max(bench.config.sparsities))
    return jax.block_until_ready(found.params)
