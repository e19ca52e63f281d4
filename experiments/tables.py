"""What every results file is made of: Markdown tables, and means with their spread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jaxprune.reporting import mean_and_spread, paired_difference


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


def difference(
    a: Sequence[float], b: Sequence[float], words: tuple[str, str] = ("lower", "higher")
) -> tuple[str, str]:
    """`a - b` paired, with its 95 % interval, and what follows: a word or "undecided".

    Example:
      >>> difference([2.0, 3.1, 4.0], [1.0, 2.0, 3.0])
      ('+1.03 [+0.89, +1.18]', 'higher')
      >>> difference([2.0], [1.0])
      ('+1.00', 'one seed')
      >>> difference([0.1 + 0.2, 0.3], [0.3, 0.3])  # rounding decides nothing
      ('+0.00 [+0.00, +0.00]', 'undecided')
    """
    if np.allclose(a, b, rtol=1e-12, atol=0):
        a = b
    if len(a) < 2:
        return f"{a[0] - b[0]:+.2f}", "one seed"
    mean, low, high = paired_difference(a, b)
    verdict = words[1] if low > 0 else words[0] if high < 0 else "undecided"
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]", verdict


def percent(share: float) -> str:
    """A share as per cent.

    Example:
      >>> percent(0.95)
      '95 %'
    """
    return f"{100 * share:g} %"


def with_failed(text: str, failed: Mapping[str, str]) -> str:
    """Markdown with what has failed, and why, below it.

    Example:
      >>> print(with_failed("A table.", {"obd 0.9": "The loss is nan."}))
      A table.
      <BLANKLINE>
      Failed, and missing above:
      <BLANKLINE>
      | run | reason |
      |---|---|
      | obd 0.9 | The loss is nan. |
      >>> with_failed("A table.", {})
      'A table.'
    """
    if not failed:
        return text
    rows = [[name, " ".join(why.split()).replace("|", "/")] for name, why in failed.items()]
    table = markdown(["run", "reason"], rows)
    return f"{text.rstrip()}\n\nFailed, and missing above:\n\n{table}" + "\n" * text.endswith("\n")
