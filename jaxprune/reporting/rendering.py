"""Reports as text: a table of leaves, the totals under it, warnings last."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxprune.reporting.records import Cost, Report, Row, Totals
    from jaxprune.reporting.timing import Latency


def as_text(renderable: Any, width: int = 100) -> str:
    """Anything rich can show, as plain text without colours, the same on every terminal.

    Example:
      >>> as_text("kept 12")
      'kept 12'
    """
    from rich.console import Console

    file = io.StringIO()
    Console(file=file, width=width, color_system=None, force_jupyter=False).print(renderable)
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    return "\n".join(lines).strip("\n")


def report_view(report: Report) -> Any:
    """The report as a rich renderable."""
    from rich.console import Group
    from rich.text import Text

    lines = _totals(report.totals) + (_cost(report.cost) if report.cost else [])
    warnings = [Text(f"warning: {warning}", "bold yellow") for warning in report.warnings]
    return Group(_leaves(report), *map(Text, lines), *warnings)


def _leaves(report: Report) -> Any:
    from rich.box import MARKDOWN
    from rich.table import Table
    from rich.text import Text

    table = Table(box=MARKDOWN)  # plain characters: logs, terminals and pages all take them
    for name in ("leaf", "shape", "dtype"):
        table.add_column(name, overflow="fold")
    for name in ("kept", "total", "sparsity"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("not prunable", overflow="fold")
    for row in report.rows:
        table.add_row(*map(Text, _cells(row)))
    return table


def _cells(row: Row) -> list[str]:
    shape = "x".join(map(str, row.shape)) or "scalar"
    counts = [f"{row.kept:,}", f"{row.total:,}", percent(row.sparsity)]
    return [row.name or "(the only leaf)", shape, row.dtype, *counts, row.reason]


def percent(sparsity: float) -> str:
    """A sparsity in percent, to two decimals; 100 % only where nothing is left."""
    text = f"{100 * sparsity:.2f} %"
    return "> 99.99 %" if text == "100.00 %" and sparsity < 1 else text


def _totals(totals: Totals) -> list[str]:
    size = totals.bytes
    return [
        f"prunable  kept {totals.prunable_kept:,} of {totals.prunable_total:,}, "
        f"sparsity {percent(totals.sparsity_of_prunable)}",
        f"all       kept {totals.kept:,} of {totals.total:,}, "
        f"sparsity {percent(totals.sparsity_of_all)}",
        f"bytes     dense {size.dense:,}, bit-mask {size.bitmask:,}, CSR {size.csr:,}",
    ]


def _cost(cost: Cost) -> list[str]:
    flops = (
        f"FLOPs     dense {cost.flops:,}, theoretical {cost.flops_skipping_zeros:,} "
        "if zeros were skipped (a mask skips none)"
    )
    if cost.latency is None or cost.masked_latency is None:
        return [flops, "latency   not measured: abstract parameters or inputs"]
    return [
        flops,
        f"latency   dense {milliseconds(cost.latency)}, masked {milliseconds(cost.masked_latency)}",
        f"          median (quartiles) of {cost.latency.repeats} calls on {cost.latency.device}",
    ]


def milliseconds(latency: Latency) -> str:
    """A latency as text: the median, and the quartiles in brackets."""
    return f"{latency.median_ms:.3g} ms ({latency.lower_ms:.3g} to {latency.upper_ms:.3g})"
