"""What a report on arrays holds: a row per leaf, and sums."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jaxprune.reporting import array_rendering
from jaxprune.reporting.rendering import as_text
from jaxprune.reporting.storage import LeafBytes, fraction


@dataclass(frozen=True)
class MaskCount:
    """What one mask says of a leaf.

    Attributes:
      name: of the mask's own leaf.
      size: number of entries.
      kept: entries that are True.
      not_zero: entries that it prunes and that are not 0.
    """

    name: str
    size: int
    kept: int
    not_zero: int

    @property
    def sparsity(self) -> float:
        """The fraction it prunes; 0 for a leaf without entries."""
        return fraction(self.size - self.kept, self.size)


@dataclass(frozen=True)
class LeafCount:
    """One leaf.

    Attributes:
      name: its path; "" for a tree that is one bare array.
      shape, dtype: of the array.
      size: number of entries.
      nonzeros: entries that are not 0; NaN is not, -0 is.
      zero_slices: of each axis, how many slices across it have entries and only zeros: of a
        kernel rows and columns, of a convolution's last two axes channels in and out.
      masks: those that lie in the same tree, see `masks_beside`.
      bytes: of the array, and of its nonzeros with a bit-mask and as CSR.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    nonzeros: int
    zero_slices: tuple[int, ...]
    masks: tuple[MaskCount, ...]
    bytes: LeafBytes

    @property
    def sparsity(self) -> float:
        """The fraction of entries that are 0; 0 for a leaf without entries."""
        return fraction(self.size - self.nonzeros, self.size)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and text."""
        row = asdict(self) | {"sparsity": self.sparsity}
        del row["bytes"]
        row["masks"] = [asdict(mask) | {"sparsity": mask.sparsity} for mask in self.masks]
        return row | {f"bytes_{name}": size for name, size in self.bytes._asdict().items()}


@dataclass(frozen=True)
class ArrayTotals:
    """Sums over leaves.

    Attributes:
      leaves: how many.
      size, nonzeros: entries.
      bytes: in each format.
      smallest: bytes with every leaf in its smallest format.
    """

    leaves: int
    size: int
    nonzeros: int
    bytes: LeafBytes
    smallest: int

    @property
    def sparsity(self) -> float:
        """The fraction of entries that are 0; 0 where there are none."""
        return fraction(self.size - self.nonzeros, self.size)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        counts = {name: getattr(self, name) for name in ("leaves", "size", "nonzeros", "sparsity")}
        sizes = {**self.bytes._asdict(), "smallest": self.smallest}
        return counts | {f"bytes_{name}": size for name, size in sizes.items()}


ORDERS: dict[str, Callable[[LeafCount], Any]] = {
    "sparsity": lambda row: -row.sparsity,
    "size": lambda row: -row.size,
    "name": lambda row: row.name,
}


@dataclass(frozen=True)
class ArrayReport:
    """Arrays in numbers; `print` it, or take them out."""

    rows: tuple[LeafCount, ...]

    @property
    def totals(self) -> ArrayTotals:
        """Sums over all rows."""
        return _totals(self.rows)

    @property
    def parts(self) -> dict[str, ArrayTotals]:
        """Sums over the rows that begin with the same name, such as `params` and `opt_state`."""
        found = defaultdict(list)
        for row in self.rows:
            found[row.name.split("/")[0]].append(row)
        return {name: _totals(rows) for name, rows in found.items()}

    def ordered(self, by: str) -> ArrayReport:
        """The same rows, the most sparse, the largest, or the first names first; see `ORDERS`."""
        return ArrayReport(tuple(sorted(self.rows, key=ORDERS[by])))

    def __str__(self) -> str:
        return as_text(self, width=10_000)  # a line a leaf, however long its name

    def __rich__(self) -> Any:
        return array_rendering.array_view(self)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as dictionaries, lists, numbers and text."""
        parts = {name: totals.as_dict() for name, totals in self.parts.items()}
        leaves = [row.as_dict() for row in self.rows]
        return {"leaves": leaves, "parts": parts, "totals": self.totals.as_dict()}

    def to_json(self, **more: Any) -> str:
        """`as_dict` as JSON, after whatever else there is to say."""
        return json.dumps(more | self.as_dict(), indent=2, allow_nan=False)


def _totals(rows: Sequence[LeafCount]) -> ArrayTotals:
    sizes = LeafBytes(*(sum(getattr(row.bytes, f) for row in rows) for f in LeafBytes._fields))
    size, nonzeros = (sum(getattr(row, f) for row in rows) for f in ("size", "nonzeros"))
    return ArrayTotals(len(rows), size, nonzeros, sizes, sum(min(row.bytes) for row in rows))
