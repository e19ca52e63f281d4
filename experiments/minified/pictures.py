"""Quality against bytes, FLOPs and milliseconds, one line a family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.minified.candidates import FAMILIES, Candidate, collect
from experiments.minified.lab import Config, latency_of
from experiments.minified.task import TASKS
from jaxprune.reporting import mean_and_spread

Pieces = dict[str, Any]


def draw(config: Config, pieces: Pieces, path: Path) -> Path:
    """Three panels; points are those that no smaller one of the family beats on validation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    milliseconds = lambda c: pieces[latency_of(c.widths)]["256"]
    costs: dict[str, Callable[[Candidate], float]] = {
        "bytes on disk": lambda c: float(c.largest),
        "FLOPs of one example (masks: theory)": lambda c: float(c.flops),
        "ms a forward pass, batch 256": milliseconds,
    }
    figure, axes = pyplot.subplots(1, 3, figsize=(18, 5.5), sharey=True)
    candidates = collect(config, pieces)
    for panel, (name, cost) in zip(axes, costs.items(), strict=True):
        for number, family in enumerate(FAMILIES):
            _line(panel, number, family, [c for c in candidates if c.family == family], cost)
        panel.set_xscale("log")
        panel.set_xlabel(name)
        panel.grid(alpha=0.3)
    metric = next(iter(pieces["dense"]["arms"]["one_shot"]["test"]))
    axes[0].set_ylabel(f"test {metric} in %, mean ± sd")
    axes[0].legend(fontsize=8)
    figure.suptitle(f"{TASKS[config.task].title}, {config.seeds} seeds")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _line(
    panel: Any, number: int, family: str, found: list[Candidate], cost: Callable[..., float]
) -> None:
    front = frontier(found, cost)
    if not front:
        return
    values = [mean_and_spread(next(iter(c.test.values()))) for c in front]
    panel.errorbar(
        [cost(c) for c in front], [v.mean for v in values], yerr=[v.sd or 0.0 for v in values],
        label=family, marker="osv^Dxphd"[number], color=f"C{number}", capsize=2, linewidth=1,
    )  # fmt: skip


def frontier(found: list[Candidate], cost: Callable[[Candidate], float]) -> list[Candidate]:
    """Those that beat everything cheaper on the validation part, cheapest first."""
    front: list[Candidate] = []
    for candidate in sorted(found, key=lambda c: (cost(c), -c.promise)):
        if not front or candidate.promise > front[-1].promise:
            front.append(candidate)
    return front
