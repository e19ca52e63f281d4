"""What a comparison shows: progress while it runs, then one table, as text and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.ledger import Ledger, write_atomically
from experiments.tables import markdown, percent, spread, with_failed
from jaxprune.reporting import accuracy_plot

if TYPE_CHECKING:
    from rich.progress import Progress

ARMS = ("one_shot", "fine_tuned", "scratch")
COLUMNS = (
    "pruned", "method", "one-shot %", "tuned %", "scratch %",
    "kept", "KiB", "MFLOP", "ms",
)  # fmt: skip


def bar(text: str, **options: Any) -> Progress:
    """A bar on stderr with a text, steps done, and the time taken and left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    left = TimeRemainingColumn(elapsed_when_finished=True)
    return Progress(*columns, left, console=Console(stderr=True), **options)


@contextmanager
def progress(total: int) -> Iterator[Callable[..., None]]:
    """A bar of named steps; yields `advance(steps=1, what="")`."""
    with bar("{task.description:16}") as shown:
        task = shown.add_task("dense", total=total)
        yield lambda steps=1, what="dense": shown.update(task, advance=steps, description=what)


def show_page(text: str, stem: Path, results: Path, draw: Callable[[Path], None]) -> None:
    """Print Markdown, write it as a page and a plot beside the results, and say where they are."""
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    console.print(Markdown(text))
    page = stem.with_name(stem.name + ".md")
    write_atomically(page, text)
    draw(stem.with_name(stem.name + ".png"))
    console.print(f"Results: {results}\nTables:  {page}", soft_wrap=True)


def table_rows(book: Ledger) -> list[tuple[str, ...]]:
    """The finished groups as rows of text, dense first, then by sparsity and method."""
    rows = []
    sparsities, methods = book.config["sparsities"], book.config["methods"]
    for sparsity, method in [(0.0, "dense"), *((s, m) for s in sparsities for m in methods)]:
        piece = book.pieces.get("dense" if method == "dense" else f"{method} {sparsity}")
        if piece is None or "report" not in piece:
            continue
        totals, cost = piece["report"]["totals"], piece["report"]["cost"]
        fewest = min(totals[f"bytes_{form}"] for form in ("dense", "bitmask", "csr"))
        rows.append(
            (
                percent(sparsity),
                method,
                *(spread(piece[arm]) for arm in ARMS),
                f"{totals['kept']:,}",
                f"{fewest / 1024:.1f}",
                f"{cost['flops_skipping_zeros'] / 1e6:.2f}",
                f"{cost['masked_latency']['median_ms']:.2f}",
            )
        )
    return rows


def caption(book: Ledger, hardware: dict[str, Any]) -> str:
    """What the columns mean and what was measured on what."""
    config = book.config
    seeds, dense, tune = config["seeds"], config["dense_epochs"], config["tune_epochs"]
    return (
        f"{config['dataset']}, MLP {'-'.join(map(str, config['hidden']))}, {seeds} seeds (0 to "
        f"{seeds - 1}): mean ± sample standard deviation of test accuracy. Dense {dense} epochs, "
        f"tuned {tune} more; scratch: the same mask on new weights, {dense + tune} epochs. Kept, "
        "KiB (the smallest of dense, bit-mask and CSR), MFLOP (theoretical: products with zero not "
        "counted) and ms (measured, the masked network as it is, batch 256) are the first "
        f"seed's. Measured on {hardware['device']} ({hardware['platform']}, {hardware['cores']} "
        f"cores), jax {hardware['jax']}."
    )


def show(book: Ledger, stem: Path, hardware: dict[str, Any]) -> None:
    """Print the table; write it as Markdown, and the accuracies as a plot, beside the JSON."""
    from rich.console import Console
    from rich.table import Table

    rows, text = table_rows(book), caption(book, hardware)
    table = Table(caption=text, caption_justify="left", padding=(0, 0, 0, 1))
    for i, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if i == 1 else "right", no_wrap=True)
    for before, row in zip([None, *rows], rows, strict=False):
        if before is not None and before[0] != row[0]:
            table.add_section()
        table.add_row(*row)
    console = Console(width=max(110, Console().width))
    console.print(table)
    page = with_failed(f"{markdown(COLUMNS, rows)}\n\n{text}\n", book.failed)
    write_atomically(stem.with_name(stem.name + ".md"), page)
    console.print(f"Results: {book.path}", soft_wrap=True)
    if found := runs(book):  # of a comparison that failed as a whole there is nothing to draw
        picture = stem.with_name(stem.name + ".png")
        accuracy_plot(found, picture, value=ARMS, title=f"{book.config['dataset']}, accuracy in %")
        console.print(f"Plot:    {picture}", soft_wrap=True)


def runs(book: Ledger) -> list[dict[str, Any]]:
    """One dictionary a run: method, sparsity, seed and the accuracy of each arm."""
    found = []
    for method in book.config["methods"]:
        for sparsity in book.config["sparsities"]:
            piece = book.pieces.get(f"{method} {sparsity}", {})
            for seed in range(book.config["seeds"] if piece else 0):
                accuracies = {arm: piece[arm][seed] for arm in ARMS}
                found.append({"method": method, "sparsity": sparsity, "seed": seed, **accuracies})
    return found
