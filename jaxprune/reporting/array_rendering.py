"""Reports on arrays as text: a table of leaves, and one of sums."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from jaxprune.reporting.rendering import percent

if TYPE_CHECKING:
    from jaxprune.reporting.array_records import ArrayReport, ArrayTotals, LeafCount, MaskCount

_BYTES = ("dense B", "bit-mask B", "CSR B")


def array_view(report: ArrayReport) -> Any:
    """The report as a rich renderable."""
    from rich.console import Group

    leaves = _table(
        ("leaf", "shape", "dtype"),
        ("size", "nonzeros", "sparsity", "by mask", "zero slices", *_BYTES),
        map(_cells, report.rows),
    )
    parts = {name: found for name, found in report.parts.items() if found.leaves > 1}
    sums = {**(parts if len(report.parts) > 1 else {}), "all": report.totals}
    header = ("leaves", "size", "nonzeros", "sparsity", *_BYTES, "smallest B")
    return Group(leaves, _table(("sum of",), header, (_sums(*item) for item in sums.items())))


def _table(texts: Sequence[str], numbers: Sequence[str], rows: Iterable[list[str]]) -> Any:
    from rich.box import MARKDOWN
    from rich.table import Table
    from rich.text import Text

    table = Table(box=MARKDOWN)
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _cells(row: LeafCount) -> list[str]:
    shape = "x".join(map(str, row.shape)) or "scalar"
    slices = "x".join(map(str, row.zero_slices)) if len(row.shape) > 1 else ""
    masks = ", ".join(dict.fromkeys(map(_by_mask, row.masks)))
    counts = [f"{row.size:,}", f"{row.nonzeros:,}", percent(row.sparsity), masks, slices]
    return [row.name or "(the only leaf)", shape, row.dtype, *counts, *_numbers(row.bytes)]


def _by_mask(mask: MaskCount) -> str:
    text = percent(mask.sparsity)
    return f"{text} ({mask.not_zero:,} not 0)" if mask.not_zero else text


def _sums(name: str, found: ArrayTotals) -> list[str]:
    counts = _numbers((found.leaves, found.size, found.nonzeros))
    return [name, *counts, percent(found.sparsity), *_numbers((*found.bytes, found.smallest))]


def _numbers(values: Iterable[int]) -> list[str]:
    return [f"{value:,}" for value in values]
