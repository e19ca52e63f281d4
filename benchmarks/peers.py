"""The same jobs on the same weights here and in the peers: time, memory, and what comes out wrong.

    python benchmarks/peers.py [--save]
    python benchmarks/peers.py --quick     # small, 3 pairs

Needs the extra `bench`: torch.nn.utils.prune, Torch-Pruning, BackPACK; a peer that is not installed
is skipped and named. Both sides are timed in turns. Memory is how far a call raises the peak of the
process (Linux), after one call that is not counted. Wider tables, one peer each, are those of
`structure.py --only peers` and `curvature.py --only backpack`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measuring  # isort: skip  # sets XLA's threads: before jax

from benchmarks.curvature_cases import compared


class Job(NamedTuple):
    """Something both sides do.

    Attributes:
      name: what, and on what.
      peer: whose, with its version.
      ours, theirs: calls that return when their work is done; None if the peer cannot do it.
      wrong_ours, wrong_theirs: what does not hold of the results, in words; "" if all does.
    """

    name: str
    peer: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any] | None
    wrong_ours: str = ""
    wrong_theirs: str = ""


def peak(call: Callable[[], Any]) -> float | None:
    """MiB by which a call raises the process's peak above what it holds; None where unknown."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def read(field: str) -> int:
        lines = status.read_text().splitlines()
        return int(next(line for line in lines if line.startswith(field)).split()[1])

    try:
        reset.write_text("5")  # the peak is what is held now
        held = read("VmRSS")
        call()
        return max(read("VmHWM") - held, 0) / 1024
    except OSError:
        return None


def row_of(job: Job, most: int) -> list[str]:
    """Cells of a job."""
    ratio = compared(job.ours, job.theirs or job.ours, most)
    memory = [call and peak(call) for call in (job.ours, job.theirs)]
    told = ["-" if found is None else f"{found:,.0f}" for found in memory]
    times = [f"{ratio.median:.2f}", ratio.interval(2), str(ratio.pairs)]
    if job.theirs is None:
        times = ["-", "-", str(ratio.pairs)]
    return [
        job.name, job.peer, *times, f"{ratio.baseline:.2f}",
        f"{ratio.milliseconds:.2f}" if job.theirs else "-", *told,
        job.wrong_ours or "-", job.wrong_theirs or "-",
    ]  # fmt: skip


def main() -> None:
    """Measure every job of every peer that is installed."""
    quick = measuring.is_quick(__doc__)
    rows = []
    for name in ("peers_masks", "peers_structure", "peers_curvature"):
        try:
            module = importlib.import_module(f"benchmarks.{name}")
            found = module.jobs(quick)
        except ModuleNotFoundError as error:
            print(f"Rows of {name} are skipped: {error}. Install the extra `bench`.")
            continue
        rows += [row_of(job, 3 if quick else 25) for job in found]
    head = ["job", "peer", "peer's time, x ours", "95 %", "pairs", "ours ms", "peer's ms",
            "ours MiB", "peer's MiB", "wrong in ours", "wrong in the peer's"]  # fmt: skip
    measuring.publish("peers", "python benchmarks/peers.py", head, rows)


if __name__ == "__main__":
    main()
