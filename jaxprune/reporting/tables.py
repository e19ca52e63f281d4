"""Tables of experiments: mean and sample standard deviation over seeds, n printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxprune.reporting.spread import MeanAndSpread, mean_and_spread

Results = Sequence[Mapping[str, Any]]
"""One dictionary a run: `{"method": "obd", "sparsity": 0.9, "seed": 0, "accuracy": 0.91}`."""


class Summary(NamedTuple):
    """The runs of one method at one sparsity.

    Attributes:
      method: its name.
      sparsity: the fraction pruned.
      value: mean, sample standard deviation and n over seeds.
    """

    method: str
    sparsity: float
    value: MeanAndSpread


def summarise(rows: Results, *, value: str = "accuracy") -> list[Summary]:
    """Group runs by (method, sparsity), methods in order of appearance, sparsities ascending.

    Args:
      rows: one dictionary a run, with "method", "sparsity" and `value`; where "seed" is given, a
        seed may appear once a group.
      value: the key to average.

    Raises:
      ValueError: a key is missing, a run appears twice, or a value is not finite.

    Example:
      >>> runs = [dict(method="obd", sparsity=0.9, seed=s, accuracy=a) for s, a in [(0, 1), (1, 3)]]
      >>> summarise(runs)[0].value.mean
      2.0
    """
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for i, row in enumerate(rows):
        missing = [key for key in ("method", "sparsity", value) if key not in row]
        if missing:
            raise ValueError(
                f"Row {i} has no {missing}; it has {sorted(row)}. Each run names its method, its "
                f"sparsity and its '{value}'."
            )
        groups.setdefault((row["method"], float(row["sparsity"])), []).append(row)
    methods = list(dict.fromkeys(method for method, _ in groups))
    ordered = sorted(groups, key=lambda group: (methods.index(group[0]), group[1]))
    return [Summary(*group, _mean(group, groups[group], value)) for group in ordered]


def method_table(
    rows: Results, *, value: str = "accuracy", digits: int = 4, title: str | None = None
) -> Any:
    """A rich table, methods down and sparsities across: `mean ± sample sd (n)` over seeds.

    Args:
      rows: as for `summarise`.
      value: the key to average.
      digits: decimals.
      title: printed above.

    Returns:
      A `rich.table.Table`; `as_text(table)` is its plain text.

    Example:
      >>> runs = [dict(method="obd", sparsity=0.9, seed=s, accuracy=a) for s, a in [(0, 1), (1, 3)]]
      >>> from jaxprune.reporting.rendering import as_text
      >>> print(as_text(method_table(runs, digits=1)).splitlines()[2])
      | obd    | 2.0 ± 1.4 (2) |
    """
    from rich.box import MARKDOWN
    from rich.table import Table
    from rich.text import Text

    found = {(s.method, s.sparsity): s.value for s in summarise(rows, value=value)}
    sparsities = sorted({sparsity for _, sparsity in found})
    caption = f"{value}: mean ± sample standard deviation (n), n = runs, one a seed"
    table = Table(box=MARKDOWN, title=title, caption=caption)
    table.add_column("method", overflow="fold")
    for sparsity in sparsities:
        table.add_column(f"{sparsity:.6g}", justify="right")
    for method in dict.fromkeys(method for method, _ in found):
        cells = [_cell(found.get((method, sparsity)), digits) for sparsity in sparsities]
        table.add_row(Text(str(method)), *cells)
    return table


def _mean(group: tuple[str, float], runs: list[Mapping[str, Any]], value: str) -> MeanAndSpread:
    seeds = [run["seed"] for run in runs if "seed" in run]
    twice = sorted({str(seed) for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise ValueError(
            f"Method '{group[0]}' at sparsity {group[1]} has seed {', '.join(twice)} more than "
            "once: n would count runs that are no new evidence. Keep one row a seed."
        )
    try:
        return mean_and_spread([run[value] for run in runs])
    except ValueError as error:
        raise ValueError(f"Method '{group[0]}' at sparsity {group[1]}: {error}") from error


def _cell(found: MeanAndSpread | None, digits: int) -> str:
    if found is None:
        return "-"
    spread = "-" if found.sd is None else f"{found.sd:.{digits}f}"
    return f"{found.mean:.{digits}f} ± {spread} ({found.n})"
