"""Pruning networks that others have trained and published: what is lost, what is saved.

The published weights of a network are pruned one by one, by scores and by surgeons, and whole units
are removed and the arrays really shrunk; each raw and after a short fine-tuning towards the outputs
of the dense network. Quality on test examples against parameters, bytes and milliseconds.

    python experiments/pretrained_models.py --model g2p-en               # minutes of one core
    python experiments/pretrained_models.py --model magika
    python experiments/pretrained_models.py --model minilm
    python experiments/pretrained_models.py --preset smoke               # digits, no download
    python experiments/pretrained_models.py --model g2p-en --preset full

Seeds draw the calibration examples: all that scores, surgeons and fine-tuning see. The rate of
fine-tuning is chosen for every arm, on a quarter of the first draw that trials do not train on.
Test examples only measure. Interrupted runs resume.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import ledger
from experiments.locking import alone
from experiments.naming import check_known, check_seeds
from experiments.presenting import progress
from experiments.pretrained import networks, report
from experiments.pretrained.arms import UNITS, Arm, Config, arms
from experiments.pretrained.bench import Bench
from experiments.pretrained.measuring import (
    chosen,
    finished,
    measure,
    measure_dense,
    rates,
    try_rates,
)
from experiments.pretrained.tools import Tools
from experiments.problems import PROBLEMS

WORK = Path(__file__).parent / "runs"  # raw results, not committed

_CPU = Config(
    model="g2p-en", preset="cpu", seeds=3, calibration=4096, scored=512, test=2000,
    weights=(
        "magnitude", "magnitude, global", "Fisher", "Wanda", "ExactOBS",
        "magnitude, 2:4", "Wanda, 2:4", "ExactOBS, 2:4",
    ),
    sparsities=(0.5, 0.7), units=UNITS, budgets=(0.75, 0.5),
    steps=64, batch=64, rates=(3e-3, 1e-3, 2e-4),
)  # fmt: skip
_more = partial(
    replace, preset="full", seeds=5, steps=2000, batch=128,
    sparsities=(0.5, 0.6, 0.7, 0.8, 0.9, 0.95),
)  # fmt: skip
_SMOKE = replace(
    _CPU, model="toy", preset="smoke", seeds=2, calibration=64, scored=32, test=64,
    weights=("magnitude", "Wanda", "ExactOBS", "magnitude, 2:4"), sparsities=(0.8,),
    units=("magnitude", "Fisher, rebuilt"), budgets=(0.5,), steps=8, batch=16,
    rates=(1e-2, 1e-3), timed=(8,),
)  # fmt: skip
# Hundreds of MFLOP an example: a surgeon that eliminates in blocks, fewer and smaller draws.
_LARGE = replace(
    _CPU, calibration=256, scored=64, test=256,
    weights=("magnitude", "Wanda", "SparseGPT", "SparseGPT, 2:4"),
    sparsities=(0.5, 0.7), units=("magnitude", "Fisher"), budgets=(0.75, 0.5), steps=24,
    batch=16, rates=(3e-4, 1e-4), timed=(1, 16),
)  # fmt: skip
_SHAPES = {
    "toy": replace(_CPU, model="toy", calibration=1024, test=360),
    "g2p-en": _CPU,
    "magika": replace(_LARGE, model="magika"),
    # Its rows of words are half of all parameters, and stay.
    "minilm": replace(_LARGE, model="minilm", budgets=(0.85, 0.7)),
}
PRESETS: dict[str, dict[str, Config]] = {
    "smoke": {name: replace(_SMOKE, model=name) for name in networks.NETWORKS},
    "cpu": _SHAPES,
    "full": {
        "toy": _more(_SHAPES["toy"]),
        "g2p-en": _more(_CPU, calibration=32_768, scored=2048, test=20_000),
        "magika": _more(_SHAPES["magika"], calibration=2048, scored=256, test=2000),
        "minilm": _more(_SHAPES["minilm"], calibration=8192, scored=512, test=2000),
    },
}


@dataclass(frozen=True)
class Arguments:
    """Prune a published network in every way, and measure."""

    model: str | None = None
    """g2p-en, magika or minilm; toy (digits, no download). By default g2p-en, of smoke toy."""
    preset: Literal["smoke", "cpu", "full"] = "cpu"
    """How much: smoke in seconds, cpu in minutes of one core, full for a GPU or hours."""
    seeds: int | None = None
    """How many draws of calibration examples, if not the preset's."""
    data_dir: Path | None = None
    """Where data and published weights are kept."""
    out: Path | None = None
    """Folder of the results; by default the run's own folder under experiments/runs."""


def configure(arguments: Arguments) -> Config:
    """The configuration that the arguments ask for.

    Raises:
      ValueError: an unknown network; fewer than 2 seeds, which have no spread.
    """
    usual = "toy" if arguments.preset == "smoke" else "g2p-en"
    model = usual if arguments.model is None else arguments.model
    check_known("model", [model], networks.NETWORKS)
    config = PRESETS[arguments.preset][model]
    check_seeds(arguments.seeds, "draws of calibration examples there are", least=2)
    return config if arguments.seeds is None else replace(config, seeds=arguments.seeds)


def run(arguments: Arguments) -> Path:
    """Run or resume a comparison; returns the path of its JSON."""
    config = configure(arguments)
    name = f"pretrained_models-{config.model}-{ledger.digest(config)}"
    out = WORK / name if arguments.out is None else arguments.out
    book = ledger.Ledger(out / f"{name}.json", config)

    @cache
    def bench(seed: int) -> Bench:
        drawn = networks.load(
            config.model, config.calibration, config.test, seed, arguments.data_dir
        )
        return Bench(
            config, drawn, seed, Tools(drawn, config.steps) if seed == 0 else bench(0).tools
        )

    with alone(WORK / name / "lock", wait=False):
        compute(config, book, bench)
    report.show(config, book, out / name)
    book.check_failed()
    return book.path


def compute(config: Config, book: ledger.Ledger, bench: Callable[[int], Bench]) -> None:
    """Every piece that is not finished; what fails is recorded, and the others go on."""
    every = arms(config)
    with progress(config.seeds * len(every)) as advance:
        if "dense" not in book.pieces:
            book.record("dense", measure_dense(bench(0)))
        for seed in range(config.seeds):
            for arm in every:
                _one(book, bench, arm, seed)
                advance(1, f"{arm.way} {seed}"[:16])
        finished(config, book, bench)


def _one(book: ledger.Ledger, bench: Callable[[int], Bench], arm: Arm, seed: int) -> None:
    name = f"{arm.name} seed {seed}"
    if name not in book.pieces:
        with book.attempt(name):
            if rates(arm) not in book.pieces:
                book.record(rates(arm), try_rates(bench(0), arm))
            rate = chosen(book.pieces[rates(arm)])
            book.record(name, measure(bench(seed), arm, rate))


if __name__ == "__main__":
    import tyro

    try:
        run(tyro.cli(Arguments, description=__doc__))
    except PROBLEMS as problem:
        sys.exit(f"error: {problem}")
