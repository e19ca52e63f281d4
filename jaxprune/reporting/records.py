"""What a report holds: a row per leaf, their totals, the cost of a call."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from jaxprune.reporting import rendering
from jaxprune.reporting.storage import LeafBytes, fraction
from jaxprune.reporting.timing import Latency


@dataclass(frozen=True)
class Row:
    """One leaf.

    Attributes:
      name: its path, such as `params/Dense_0/kernel`; "" for a tree that is one bare array.
      shape: of the leaf.
      dtype: of the leaf, as text.
      total: number of entries.
      kept: number of entries the mask keeps, exact.
      prunable: whether the predicate lets it be pruned.
      reason: why it does not, "" if it does.
      bytes: of the leaf as dense array, with a bit-mask, as CSR; not prunable: dense in all three.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    total: int
    kept: int
    prunable: bool
    reason: str
    bytes: LeafBytes

    @property
    def sparsity(self) -> float:
        """The fraction pruned; 0 for a leaf without entries."""
        return fraction(self.total - self.kept, self.total)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and text; `shape` as "3x4"."""
        row = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "bytes"}
        sizes = {f"bytes_{name}": size for name, size in self.bytes._asdict().items()}
        return row | {"shape": "x".join(map(str, self.shape)), "sparsity": self.sparsity} | sizes


@dataclass(frozen=True)
class Totals:
    """Sums over leaves.

    Attributes:
      total: entries of all leaves.
      kept: kept entries of all leaves.
      prunable_total: entries of prunable leaves.
      prunable_kept: kept entries of prunable leaves.
      bytes: of all leaves, in each format.
    """

    total: int
    kept: int
    prunable_total: int
    prunable_kept: int
    bytes: LeafBytes

    @property
    def sparsity_of_prunable(self) -> float:
        """Pruned entries over prunable entries: the sparsity that was asked for."""
        return fraction(self.prunable_total - self.prunable_kept, self.prunable_total)

    @property
    def sparsity_of_all(self) -> float:
        """Pruned entries over all entries, statistics, biases and embeddings included."""
        return fraction(self.total - self.kept, self.total)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        counts = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "bytes"}
        sizes = {f"bytes_{name}": size for name, size in self.bytes._asdict().items()}
        both = {name: getattr(self, name) for name in ("sparsity_of_prunable", "sparsity_of_all")}
        return counts | both | sizes


@dataclass(frozen=True)
class Cost:
    """What one call costs.

    Attributes:
      flops: of the dense model (matrix products and convolutions, 2 per multiply-add).
      flops_skipping_zeros: THEORETICAL, if every masked weight were skipped; no speed.
      latency: of the unpruned parameters; None where parameters or inputs hold no values.
      masked_latency: of the masked parameters, timed in turns with the unpruned ones.
    """

    flops: int
    flops_skipping_zeros: int
    latency: Latency | None
    masked_latency: Latency | None

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers; latencies as dictionaries."""
        times = {"latency": self.latency, "masked_latency": self.masked_latency}
        return {
            "flops": self.flops,
            "flops_skipping_zeros": self.flops_skipping_zeros,
            **{name: time and time._asdict() for name, time in times.items()},
        }


@dataclass(frozen=True)
class Report:
    """A pruned model in numbers; `print` it, or take them out.

    Attributes:
      rows: one a leaf, in flattening order.
      totals: their sums.
      cost: of one call, None without `apply` and `inputs`.
      warnings: leaves that are empty or nearly so, and FLOPs that could not be counted whole.
    """

    rows: tuple[Row, ...]
    totals: Totals
    cost: Cost | None
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        return rendering.as_text(self)

    def __rich__(self) -> Any:
        return rendering.report_view(self)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as dictionaries, lists, numbers and text."""
        return {
            "leaves": [row.as_dict() for row in self.rows],
            "totals": self.totals.as_dict(),
            "cost": self.cost.as_dict() if self.cost else None,
            "warnings": list(self.warnings),
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """`as_dict` as JSON; written to `path` if given."""
        return _written(json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n", path)

    def to_csv(self, path: str | Path | None = None) -> str:
        """One line a leaf, with a header; written to `path` if given."""
        lines = [row.as_dict() for row in self.rows]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return _written(text.getvalue(), path)


def _written(text: str, path: str | Path | None) -> str:
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text
