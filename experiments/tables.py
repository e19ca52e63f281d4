"""What every results file is made of: Markdown tables, and means with their spread."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jaxprune.reporting import mean_and_spread


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, without a newline at its end.

    Example:
      >>> print(markdown(["pruned", "%"], [["90 %", "93.3"]]))
      | pruned | % |
      |---|---|
      | 90 % | 93.3 |
    """
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def spread(values: Sequence[float] | None, digits: int = 2) -> str:
    """Mean and sample standard deviation, or the value alone; "-" where there is none.

    Example:
      >>> spread([1.0, 2.0]), spread([1.5]), spread(None)
      ('1.50 ± 0.71', '1.50', '-')
    """
    if not values:
        return "-"
    mean, sd, _ = mean_and_spread(values)
    return f"{mean:.{digits}f}" if sd is None else f"{mean:.{digits}f} ± {sd:.{digits}f}"


def percent(share: float) -> str:
    """A share as per cent.

    Example:
      >>> percent(0.95)
      '95 %'
    """
    return f"{100 * share:g} %"
