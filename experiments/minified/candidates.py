"""Every small network of a ledger as one list, and the best of each family at a size."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from experiments.minified import parameters, quantized, units
from experiments.minified.lab import Config

FAMILIES = (
    "pruned", "pruned + quantized", "shrunk", "shrunk + quantized", "merged", "quantized",
    "small dense, tuning steps", "small dense, all steps", "small dense + quantized",
)  # fmt: skip
BASELINE = "small dense, all steps"


class Candidate(NamedTuple):
    """One way to a small network, all seeds together.

    Attributes:
      family: one of `FAMILIES`.
      label: method, size or bits, and arm.
      bytes: of each seed's network on disk.
      flops: of a forward pass of one example; for masked networks theory.
      widths: hidden widths of what is run.
      validation: metric -> a value a seed.
      test: the same on test examples.
    """

    family: str
    label: str
    bytes: tuple[int, ...]
    flops: int
    widths: tuple[int, ...]
    validation: dict[str, list[float]]
    test: dict[str, list[float]]

    @property
    def largest(self) -> int:
        """Bytes of the largest of the seeds' networks."""
        return max(self.bytes)

    @property
    def promise(self) -> float:
        """Mean quality on the validation part: what choices are made by."""
        return float(np.mean(next(iter(self.validation.values()))))


def collect(config: Config, pieces: dict[str, Any]) -> list[Candidate]:
    """All small networks that are candidates of a family."""
    found: list[Candidate] = []
    for size in config.sizes:
        for method in config.methods:
            piece = pieces.get(parameters.name_of(method, size), {})
            label = f"{method} {100 * size:g} %"
            for arm in ("fine_tuned", "iterative"):
                found += _arm(piece, arm, "pruned", f"{label} {arm}")
            found += _quantized(piece, "pruned + quantized", label)
        for method in config.unit_methods:
            piece = pieces.get(units.name_of(method, size), {})
            label = f"{method} {100 * size:g} %"
            found += _arm(piece, "fine_tuned", "shrunk", label)
            found += _arm(piece, "merged_tuned", "merged", label)
            found += _quantized(piece, "shrunk + quantized", label)
        piece = pieces.get(units.name_of("scratch", size), {})
        label = f"{100 * size:g} %"
        found += _arm(piece, "scratch_short", "small dense, tuning steps", label)
        found += _arm(piece, "scratch_long", BASELINE, label)
        found += _quantized(piece, "small dense + quantized", label)
    names = [*quantized.schemes(config), *(("straight through", str(b)) for b in config.bits)]
    for scheme, bits in names:
        piece = pieces.get(quantized.name_of(scheme, bits), {})
        for arm in ("one_shot", "fine_tuned"):
            found += _arm(piece, arm, "quantized", f"{scheme} {bits}")
    return found


def _arm(piece: dict[str, Any], arm: str, family: str, label: str) -> list[Candidate]:
    measured = piece.get("arms", {}).get(arm)
    return [] if measured is None else [_candidate(piece, measured, family, label)]


def _quantized(piece: dict[str, Any], family: str, label: str) -> list[Candidate]:
    return [
        _candidate(piece, measured, family, f"{label} {how}")
        for how, measured in piece.get("quantized", {}).items()
    ]


def _candidate(
    piece: dict[str, Any], measured: dict[str, Any], family: str, label: str
) -> Candidate:
    return Candidate(
        family, label, tuple(measured.get("bytes") or piece["bytes"]), piece["flops"],
        tuple(piece["widths"]), measured["validation"], measured["test"],
    )  # fmt: skip


def best_within(candidates: list[Candidate], family: str, limit: float) -> Candidate | None:
    """The candidate of a family with the best validation quality in at most `limit` bytes."""
    fitting = [c for c in candidates if c.family == family and c.largest <= limit]
    return max(fitting, key=lambda c: c.promise, default=None)
