"""Magnificent Minified Models (Harang, Sanders 2023): which way of making a network small?

From the same trained networks: single weights pruned (by every saliency, at once and in rounds),
whole neurons removed, merged, weights quantized, and all that against small networks trained from
scratch; accuracy at equal bytes, FLOPs and milliseconds, with paired differences over seeds.

    python experiments/minified_models.py                                # digits, minutes
    python experiments/minified_models.py --task mnist                   # LeNet-300-100
    python experiments/minified_models.py --task mails                   # spam or not
    python experiments/minified_models.py --preset smoke                 # digits, seconds
    python experiments/minified_models.py --preset full --task lenet5    # for a GPU

Every arm of a seed starts from the same dense checkpoint; arms from scratch share their new
weights, and what is held against each other its batches. Networks from scratch run twice: in the
steps of fine-tuning, and in the steps of dense training and fine-tuning together, with a warm-up of
their own and a full schedule. Learning rates (for every level and arm, at some of the sizes; all
selections of a level share them, and rounds take those of fine-tuning at once) and what stands for
a family at a size are chosen on the validation part; test examples only measure. Interrupted runs
resume where they stopped.

OBD-SD's definition is not in the abstract that is public: `obd_sd_damage`, `obd_sd_gradient` and
`obd_sd_input` are our readings.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import ledger
from experiments.methods import METHODS
from experiments.minified import parameters, quantized, report, units
from experiments.minified.lab import Config, Lab
from experiments.minified.task import TASKS
from experiments.naming import check_known, check_seeds
from experiments.presenting import progress
from experiments.problems import PROBLEMS

WORK = Path(__file__).parent / "runs"  # checkpoints and raw results, not committed
# LAMP is a way of sharing out magnitude, SNIP ranks as Taylor does.
SINGLE = tuple(m for m in METHODS if m not in ("lamp", "snip"))

_CPU = Config(
    task="digits", preset="cpu", seeds=5,
    sizes=(0.5, 0.25, 0.1, 0.05, 0.03, 0.02, 0.01, 0.005),
    methods=(*SINGLE, "joint"), iterative=SINGLE, unit_methods=units.METHODS, rounds=4,
    dense_epochs=20, tune_epochs=10, batch=64, rates=(3e-2, 1e-2, 3e-3, 1e-3),
    rate_sizes=(0.5, 0.1, 0.03, 0.01), scratch=(*SINGLE, "joint"), score_examples=1000,
    examples=None, bits=(8, 6, 4, 3, 2), grids=quantized.GRIDS,
    combined=(("uniform", 8), ("uniform", 4), ("shared", 4)),
    extra=("magnitude", "obd_sd_damage", "l2"), drops=512,
)  # fmt: skip
_LENET = replace(
    _CPU, dense_epochs=6, tune_epochs=2, batch=256, examples=20_000,
    scratch=("magnitude", "obd", "obd_sd_damage"),
)  # fmt: skip
# Two million weights or convolutions: what one core does in an hour or two.
_FEWER = ("random", "magnitude", "fisher", "obd", "obd_sd_damage", "joint")
_FULL = replace(_LENET, preset="full", seeds=10, dense_epochs=40, tune_epochs=10, batch=128,
                scratch=_CPU.scratch, score_examples=10_000, drops=4096, rounds=8,
                examples=None)  # fmt: skip
_SMOKE = replace(
    _CPU, preset="smoke", seeds=2, sizes=(0.1,),
    methods=("magnitude", "obd_sd_damage", "joint"), iterative=("magnitude",),
    unit_methods=("l2", "dropout", "merge_pairs"), rounds=2, dense_epochs=2, tune_epochs=1,
    rates=(1e-2,), rate_sizes=(0.1,), scratch=("magnitude",), score_examples=64, examples=512,
    bits=(4,), grids=("symmetric tensor max",),
    combined=(("shared", 4),), drops=16,
)  # fmt: skip
PRESETS: dict[str, dict[str, Config]] = {
    "smoke": dict.fromkeys(TASKS, _SMOKE),
    "cpu": {
        "digits": _CPU,
        "mnist": _LENET,
        "fashion_mnist": _LENET,
        "cifar10": _LENET,
        "mails": replace(_CPU, dense_epochs=4, tune_epochs=1, rates=(1e-2, 3e-3, 1e-3), drops=256,
                         score_examples=500, methods=_FEWER, iterative=("magnitude",),
                         scratch=("magnitude", "obd_sd_damage")),
        "lenet5": replace(_LENET, dense_epochs=4, tune_epochs=1, examples=5_000, drops=256,
                          sizes=(0.5, 0.25, 0.1, 0.03, 0.01),
                          rates=(3e-2, 1e-2, 3e-3), rate_sizes=(0.25, 0.05, 0.01),
                          methods=_FEWER, iterative=("magnitude",), scratch=("magnitude",),
                          grids=quantized.GRIDS[::3]),
    },
    "full": dict.fromkeys(TASKS, _FULL),
}  # fmt: skip


@dataclass(frozen=True)
class Arguments:
    """Make trained networks small in every way, and compare."""

    task: str = "digits"
    """digits (in the wheel, no download), mnist, fashion_mnist, mails, lenet5 or cifar10."""
    preset: Literal["smoke", "cpu", "full"] = "cpu"
    """How much: smoke in seconds, cpu in minutes to an hour or two, full for a GPU."""
    seeds: int | None = None
    """How many seeds, if not the preset's."""
    data_dir: Path | None = None
    """Where tensorflow_datasets keeps prepared data."""
    out: Path | None = None
    """Folder of the results; by default the run's own folder under experiments/runs."""


def configure(arguments: Arguments) -> Config:
    """The configuration that the arguments ask for.

    Raises:
      ValueError: an unknown task; fewer than 2 seeds, which have no spread.
    """
    check_known("task", [arguments.task], TASKS)
    config = replace(PRESETS[arguments.preset][arguments.task], task=arguments.task)
    check_seeds(arguments.seeds, "dense networks are compared", least=2)
    return config if arguments.seeds is None else replace(config, seeds=arguments.seeds)


def run(arguments: Arguments) -> Path:
    """Run or resume a comparison; returns the path of its JSON."""
    config = configure(arguments)
    name = f"minified_models-{config.task}-{ledger.digest(config)}"
    work = WORK / name
    out = work if arguments.out is None else arguments.out
    book = ledger.Ledger(out / f"{name}.json", config)
    lab = Lab(config, book, work, arguments.data_dir)
    cells = len(config.sizes) * (len(config.methods) + len(config.unit_methods) + 1)
    with progress(cells + len(quantized.schemes(config)) + len(config.bits)) as advance:
        quantized.run(lab, advance)
        parameters.run(lab, advance)
        units.run(lab, advance)
    report.show(lab, out / name)
    book.check_failed()
    return book.path


if __name__ == "__main__":
    import tyro

    try:
        run(tyro.cli(Arguments, description=__doc__))
    except PROBLEMS as problem:
        sys.exit(f"error: {problem}")
