"""Ratios of things measured side by side in one process, as CPU time on one pinned core.

The machine may be shared and noisy: absolute times move, ratios of interleaved runs hold. Import
this module before JAX: it sets how many threads XLA uses.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # set it to measure an accelerator
ON_CPU = os.environ["JAX_PLATFORMS"] == "cpu"
if ON_CPU:
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

RESULTS = Path(__file__).parent / "results"


class Ratio(NamedTuple):
    """How many times as long as the baseline.

    Attributes:
      median: of the paired ratios.
      ends: of the 95 % interval of the median, see `interval_of`.
      pairs: number of pairs.
      milliseconds: median time of one call.
      baseline: median time of one call of the baseline, milliseconds.
    """

    median: float
    ends: tuple[float, float] | None
    pairs: int
    milliseconds: float
    baseline: float

    def interval(self, digits: int) -> str:
        """The 95 % interval, in words."""
        return interval_told(self.ends, digits)

    def told(self, digits: int) -> str:
        """The median and its interval."""
        return f"{self.median:.{digits}f} ({self.interval(digits)})"


def interval_of(ratios: np.ndarray) -> tuple[float, float] | None:
    """Ends of the 95 % interval of the median: order statistics, no distribution is assumed.

    None below six ratios, whose smallest and largest enclose the median less often than that.
    """
    if (n := len(ratios)) < 6:
        return None
    ratios = np.sort(ratios)
    width = 0.98 * np.sqrt(n)  # binomial, normal limit
    low, high = max(int(np.floor(n / 2 - width)), 0), min(int(np.ceil(n / 2 + width)), n - 1)
    return float(ratios[low]), float(ratios[high])


def interval_told(ends: tuple[float, float] | None, digits: int) -> str:
    """An interval in words; `-` for none."""
    return "-" if ends is None else f"{ends[0]:.{digits}f} .. {ends[1]:.{digits}f}"


def clock() -> float:
    """CPU seconds of this process; wall-clock seconds where an accelerator does the work."""
    return time.process_time() if ON_CPU else time.perf_counter()


def paired(
    baseline: Callable[[], Any], other: Callable[[], Any], pairs: int = 40, least: float = 0.05
) -> Ratio:
    """Time two calls in turns and compare them pair by pair.

    Args:
      baseline, other: calls that return only when their work is done.
      pairs: number of pairs; the order inside a pair alternates.
      least: a call is repeated until one measurement takes about this many seconds.
    """
    baseline(), other()
    start = clock()
    baseline()
    repeats = max(1, round(least / max(clock() - start, 1e-6)))

    def timed(call: Callable[[], Any]) -> float:
        start = clock()
        for _ in range(repeats):
            call()
        return (clock() - start) / repeats

    times = np.empty((pairs, 2))
    for i in range(pairs):
        for j in (0, 1) if i % 2 else (1, 0):
            times[i, j] = timed((baseline, other)[j])
    ratios = times[:, 1] / times[:, 0]
    base, took = np.median(times, axis=0) * 1e3
    return Ratio(float(np.median(ratios)), interval_of(ratios), pairs, took, base)


def environment() -> str:
    """One line about what was measured on what."""
    import jax

    device = jax.local_devices()[0]
    cpu = "one pinned core, CPU time" if ON_CPU else "wall-clock time"
    return (
        f"{device.device_kind} ({platform.machine()}), {cpu}; jax {jax.__version__}, Python "
        f"{platform.python_version()}"
    )


def publish(name: str, command: str, header: list[str], rows: list[list[str]]) -> None:
    """Print a table; with `--save` on the command line, keep it under benchmarks/results."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, title=name)
    for row in rows:
        table.add_row(*row)
    console = Console(width=max(110, Console().width))
    console.print(table, environment())
    if "--save" not in sys.argv:
        return
    lines = [f"`{command} --save`  ", f"{environment()}", "", "| " + " | ".join(header) + " |"]
    lines += ["|" + "---|" * len(header), *("| " + " | ".join(row) + " |" for row in rows)]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")


def ratio_cells(ratio: Ratio) -> list[str]:
    """A ratio as cells: median, interval, pairs, both times."""
    return [
        f"{ratio.median:.3f}",
        ratio.interval(3),
        str(ratio.pairs),
        f"{ratio.milliseconds:.3f}",
        f"{ratio.baseline:.3f}",
    ]


def schedule_cells(
    plain: Callable[[], Any],
    between: Callable[[], Any],
    busy: Callable[[], Any],
    *,
    every: int,
    pairs: int,
) -> list[str]:
    """Steps that do something more every so many steps: cells against plain steps.

    Args:
      plain, between, busy: calls that take a step: plain, between two times, and at such a time.
      every: steps from one time to the next, for the average.
      pairs: number of pairs.
    """
    idle, active = (paired(plain, call, pairs=pairs) for call in (between, busy))
    average = idle.median + (active.median - idle.median) / every
    return [f"{idle.baseline:.2f}", idle.told(3), active.told(3), f"{average:.3f}"]


def is_quick(about: str | None) -> bool:
    """Was the benchmark asked for a try on tiny cases, which is not kept?"""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--save", action="store_true", help="keep the table")
    parser.add_argument("--quick", action="store_true", help="tiny networks, few pairs")
    asked = parser.parse_args()
    if asked.quick and asked.save:
        parser.error("--quick measures nothing worth saving")
    return bool(asked.quick)
