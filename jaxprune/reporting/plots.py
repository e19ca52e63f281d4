"""Figures as PNG: accuracy, layers, sensitivity. matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.reporting.curves import Sensitivity
from jaxprune.reporting.records import Report
from jaxprune.reporting.tables import Results, Summary, summarise

# Okabe and Ito (2008): told apart with every common colour blindness. With markers and line
# styles of other periods, 8 x 7 x 3 lines look different, in grey print too.
_COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999",
)  # fmt: skip
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", ":")


def accuracy_plot(
    rows: Results,
    path: str | Path,
    *,
    value: str | Sequence[str] = "accuracy",
    title: str | None = None,
) -> Path:
    """Accuracy against sparsity: a line a method, its band mean ± sample standard deviation.

    The sparsity axis is logarithmic in what is KEPT, so that 90, 95 and 98 % lie well apart.

    Args:
      rows: one dictionary a run, as for `summarise`: "method", "sparsity", "seed" and `value`.
      path: of the PNG; parent folders must exist.
      value: the key to draw, or several keys, a panel each.
      title: printed above.

    Returns:
      The path written.

    Raises:
      ImportError: matplotlib is missing. ValueError: no rows, no value, or as `summarise`.
    """
    values = [value] if isinstance(value, str) else list(value)
    if not values:
        raise ValueError("`value` is empty: there is nothing to draw. Pass the keys to draw.")
    summaries = [summarise(rows, value=key) for key in values]
    _check_any(summaries[0], "rows")
    figure, axes = _figure(2.5 + 4.5 * len(values), 4.5, panels=len(values))
    for panel, key, found in zip(axes, values, summaries, strict=True):
        _accuracy_lines(panel, found, labelled=panel is axes[0])
        panel.set(xlabel="sparsity (fraction pruned)", ylabel=f"{key}, mean ± sd")
    figure.suptitle(title)
    return _save(figure, path)


def _accuracy_lines(axes: Any, summaries: list[Summary], labelled: bool) -> None:
    for i, method in enumerate(dict.fromkeys(s.method for s in summaries)):
        ours = [s for s in summaries if s.method == method]
        x = [s.sparsity for s in ours]
        y = [s.value.mean for s in ours]
        sd = [s.value.sd or 0.0 for s in ours]
        runs = sorted({s.value.n for s in ours})
        label = f"{method} (n = {', '.join(map(str, runs))})" if labelled else None
        axes.plot(x, y, label=label, **_style(i))
        low, high = ([a + sign * b for a, b in zip(y, sd, strict=True)] for sign in (-1, 1))
        axes.fill_between(x, low, high, color=_style(i)["color"], alpha=0.2, linewidth=0)
    sparsities = sorted({s.sparsity for s in summaries})
    spread = lambda s: -np.log(np.maximum(1 - s, 1e-6))  # margins may reach beyond 1
    axes.set_xscale("function", functions=(spread, lambda t: 1 - np.exp(-t)))
    axes.set_xticks(sparsities, [f"{s:g}" for s in sparsities], fontsize=8)


def layer_plot(report: Report, path: str | Path, *, title: str | None = None) -> Path:
    """The sparsity of every prunable leaf as a bar, with its kept entries; first leaf on top.

    Raises:
      ImportError: matplotlib is missing.
    """
    rows = [row for row in report.rows if row.prunable]
    figure, (axes,) = _figure(7.0, 1.5 + 0.28 * len(rows))
    names = [row.name or "(the only leaf)" for row in rows]
    places = range(len(rows))
    bars = axes.barh(places, [row.sparsity for row in rows], color=_COLOURS[0])
    axes.bar_label(bars, [f"{row.kept:,} kept" for row in rows], padding=3, fontsize=8)
    axes.set_yticks(places, names, fontsize=8, parse_math=False)
    axes.invert_yaxis()
    overall = report.totals.sparsity_of_prunable
    axes.axvline(overall, color=_COLOURS[1], linestyle="--", label=f"all prunable: {overall:.4f}")
    axes.set(xlabel="sparsity (fraction pruned)", xlim=(0, 1.25), title=title)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    return _save(figure, path)


def sensitivity_plot(
    curves: Sensitivity, path: str | Path, *, ylabel: str = "value", title: str | None = None
) -> Path:
    """A line a leaf: what the model is worth with that leaf alone pruned; dotted: unpruned.

    Raises:
      ImportError: matplotlib is missing.
    """
    figure, (axes,) = _figure(8.5, max(4.5, 1.0 + 0.2 * len(curves.names)))
    for i, (name, values) in enumerate(zip(curves.names, curves.values, strict=True)):
        axes.plot(curves.sparsities, values, label=name or "(the only leaf)", **_style(i))
    axes.axhline(curves.baseline, color="#555555", linestyle=":", label="unpruned")
    axes.set(xlabel="sparsity of this leaf alone", ylabel=ylabel, title=title)
    return _save(figure, path)


def _figure(width: float, height: float, panels: int = 1) -> tuple[Any, list[Any]]:
    """A figure with panels that share their x axis.

    It is one of its own: pyplot's global state, and what the user set there, is left alone.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Plots need matplotlib, which is not installed. Install the extra: "
            "`pip install 'jaxprune[experiments]'`."
        ) from error
    figure = Figure(figsize=(width, min(height, 60.0)), layout="constrained")
    FigureCanvasAgg(figure)
    drawn = figure.subplots(1, panels, sharex=True, squeeze=False)[0]
    for axes in drawn:
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    return figure, list(drawn)


def _style(i: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[i % len(_COLOURS)],
        "marker": _MARKERS[i % len(_MARKERS)],
        "linestyle": _LINES[i // len(_COLOURS) % len(_LINES)],
        "markersize": 5,
    }


def _save(figure: Any, path: str | Path) -> Path:
    """Write the PNG, the legend beside the axes where it hides no line."""
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=150, format="png")
    return Path(path)


def _check_any(items: list[Any], what: str) -> None:
    if not items:
        raise ValueError(f"`{what}` is empty: there is nothing to draw. Pass one row a run.")
