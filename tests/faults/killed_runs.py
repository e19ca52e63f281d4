"""An experiment in a process of its own, which may be told to kill itself while it writes.

    python -m tests.faults.killed_runs NAME FOLDER [WRITE MOMENT]

WRITE counts the writes of results and checkpoints from 0; MOMENT is "before", "inside" or "after".
"""

import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import orbax.checkpoint as ocp

from experiments import (
    combinatorial_brain_surgeon,
    compare_saliencies,
    dense_networks,
    ledger,
    minified_models,
    nip_it_in_the_bud,
    pretrained_models,
    resumable,
    to_prune_or_not,
)
from tests.faults import breaking

FEW = ("magnitude", "obd_sd_damage", "random")
NAMES = {
    "compare_saliencies": lambda: compare_saliencies.run(
        compare_saliencies.Arguments(preset="smoke", methods=FEW)
    ),
    "minified_models": lambda: minified_models.run(minified_models.Arguments(preset="smoke")),
    "to_prune_or_not": lambda: to_prune_or_not.run(
        to_prune_or_not.Arguments(task="lm", preset="smoke", seeds=1)
    ),
    "combinatorial_brain_surgeon": lambda: combinatorial_brain_surgeon.run(
        combinatorial_brain_surgeon.Arguments(
            preset="smoke", seeds=1, methods=("MP", "WF-S", "SparseGPT")
        )
    ),
    "nip_it_in_the_bud": lambda: nip_it_in_the_bud.run(nip_it_in_the_bud.Arguments(preset="smoke")),
    "pretrained_models": lambda: pretrained_models.run(
        pretrained_models.Arguments(model="toy", preset="smoke")
    ),
}
REPORT = {
    "totals": {"kept": 1, "bytes_dense": 4, "bytes_bitmask": 4, "bytes_csr": 4},
    "cost": {"flops_skipping_zeros": 1.0, "masked_latency": {"median_ms": 1.0}},
}
"""What a table reads of a network that nobody weighs."""
MOMENTS = ("before", "inside", "after")
TIMES = {"hardware", "milliseconds", "ms", "score_seconds", "seconds", "train_seconds", "time"}


def without_times(found):
    """What a second run must have too."""
    if isinstance(found, list):
        return [without_times(value) for value in found]
    if not isinstance(found, dict):
        return found
    kept = {k: v for k, v in found.items() if k not in TIMES and "latency" not in k}
    return {key: without_times(value) for key, value in kept.items()}


def read(path):
    """The results of a run, without times."""
    return without_times(json.loads(Path(path).read_text()))


class Writes:
    """Stands in the way of every write, and dies at one of them.

    Args:
      at: which write, from 0; None for none.
      moment: one of `MOMENTS`.
      die: what happens then.
    """

    def __init__(self, at, moment, die):
        self.at, self.moment, self.die, self.count = at, moment, die, 0

    def _guard(self, half, write):
        dies, self.count = self.count == self.at, self.count + 1
        if dies and self.moment == "inside":
            half()
        if dies and self.moment != "after":
            self.die()
        write()
        if dies:
            self.die()

    def install(self, patch):
        """Put it where the ledger and the checkpoints write, by `patch(owner, name, value)`."""
        plain = ocp.Checkpointer.save

        def replace(source, target):
            self._guard(lambda: breaking.cut(source), lambda: os.replace(source, target))

        def save(checkpointer, path, *args, **options):
            part = path.with_name(f"{path.name}.orbax-checkpoint-tmp") / "tree"
            half = lambda: part.mkdir(parents=True)
            self._guard(half, lambda: plain(checkpointer, path, *args, **options))

        known = {name: getattr(os, name) for name in ("cpu_count", "getpid")}
        patch(ledger, "os", SimpleNamespace(replace=replace, **known))
        patch(ocp.Checkpointer, "save", save)


def work_in(folder, patch):
    """Everything an experiment writes goes there, and checkpoints after every step."""
    ours = (compare_saliencies, minified_models, nip_it_in_the_bud, pretrained_models)
    for module in (*ours, combinatorial_brain_surgeon, dense_networks, to_prune_or_not):
        patch(module, "WORK", folder)
    patch(dense_networks, "RESULTS", folder)
    patch(resumable, "SAVE_SECONDS", 0.0)


if __name__ == "__main__":
    name, folder, *fate = sys.argv[1:]
    work_in(Path(folder), setattr)
    if fate:
        kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
        Writes(int(fate[0]), fate[1], kill).install(setattr)
    print(NAMES[name]())
