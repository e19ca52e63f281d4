"""Pruning neural networks: is it time to nip it in the bud? (Crowley and others 2018)

A trained network loses one unit after the other while it is fine-tuned, by what its own train steps
say of them (Fisher pruning), and gives a family of sizes. Beside every size: the architecture that
is left trained from new weights, in the steps of dense training and in those of dense training and
fine-tuning together; networks made small by hand (depth, width, middle width); and copycats, the
last profile scaled. With real inference time.

    python experiments/nip_it_in_the_bud.py                            # WRN-10-1, Fashion-MNIST
    python experiments/nip_it_in_the_bud.py --preset smoke             # digits, no download
    python experiments/nip_it_in_the_bud.py --preset full              # WRN-40-2, CIFAR-10, a GPU
    python experiments/nip_it_in_the_bud.py --preset full --network densenet

Units are the channels between the two convolutions of a block, as in the paper. All arms of a seed
share its batches. The test part measures and chooses nothing. Interrupted runs resume.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import ledger
from experiments.naming import check_known, check_seeds
from experiments.nipping import report
from experiments.nipping.arms import TRIALS, Bench, Told, marks, smaller_marks, steps_to, tuned
from experiments.nipping.fitting import Program
from experiments.nipping.task import COSTS, NETWORKS, Config, Problem
from experiments.presenting import progress
from experiments.problems import PROBLEMS

WORK = Path(__file__).parent / "runs"  # checkpoints and raw results, not committed

_CPU = Config(
    preset="cpu", dataset="fashion_mnist", network="wrn", depth=10, width=1, seeds=3, epochs=2,
    batch=32, learning_rate=0.05, weight_decay=5e-4, tune_rates=(1e-2, 3e-3, 8e-4), every=8, each=1,
    signals=("fisher", "l1", "random"), marks=(0.25, 0.5, 0.75, 0.9), depths=(),
    widths=(0.5, 0.25), zs=(0.5, 0.25, 0.1), scratch=("fisher",), examples=12_000,
)  # fmt: skip
_WRN = Config(
    preset="full", dataset="cifar10", network="wrn", depth=40, width=2, seeds=3, epochs=200,
    batch=128, learning_rate=0.1, weight_decay=5e-4, tune_rates=(8e-4,), every=100, each=1,
    signals=("fisher", "l1", "random"), marks=(0.25, 0.5, 0.75, 0.9), depths=(34, 28, 22, 16),
    widths=(1.5, 1.0, 0.75), zs=(0.5, 0.25, 0.125), scratch=("fisher", "l1"),
    drops=(0.3, 0.6, 0.8),
)  # fmt: skip
_DENSENET = replace(
    _WRN, network="densenet", depth=100, width=12, epochs=300, batch=64, weight_decay=1e-4,
    tune_rates=(1e-3,), depths=(82, 64, 40), widths=(10, 8, 6), drops=(0.5, 0.75), drop=0.1,
)  # fmt: skip
_SMOKE = replace(
    _CPU, preset="smoke", dataset="digits", seeds=1, epochs=1, batch=16, every=1, each=28,
    tune_rates=(8e-4,),
    signals=("fisher",), marks=(0.5,), widths=(), zs=(0.5,), examples=64, batches=(1, 4),
)  # fmt: skip
_small = partial(replace, network="densenet", depth=10, width=4, widths=(2,))
PRESETS: dict[str, dict[str, Config]] = {
    "smoke": {"wrn": _SMOKE, "densenet": _small(_SMOKE)},
    "cpu": {"wrn": _CPU, "densenet": _small(_CPU)},
    "full": {"wrn": _WRN, "densenet": _DENSENET},
}


@dataclass(frozen=True)
class Arguments:
    """Prune and tune, or reduce and train from scratch."""

    network: str = "wrn"
    """wrn or densenet."""
    preset: Literal["smoke", "cpu", "full"] = "cpu"
    """How much: smoke in seconds, cpu in an hour or two, full as in the paper, for a GPU."""
    dataset: str | None = None
    """If not the preset's: digits, mnist, fashion_mnist or cifar10."""
    seeds: int | None = None
    """How many runs of every arm, if not the preset's."""
    cost: str | None = None
    """What a unit's signal is divided by: none, parameters, flops, bytes or activations."""
    shrink_every: int = 0
    """Removals after which the network is really made smaller; 0: units are masked to the end."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic; parameters are float32."""
    data_dir: Path | None = None
    """Where tensorflow_datasets keeps prepared data."""
    out: Path | None = None
    """Folder of the results; by default the run's own folder under experiments/runs."""


def configure(arguments: Arguments) -> Config:
    """The configuration that the arguments ask for.

    Raises:
      ValueError: an unknown network or cost; less than one seed; shrunk every -1 removals.
    """
    check_known("network", [arguments.network], NETWORKS)
    if arguments.shrink_every < 0:
        raise ValueError(f"`shrink_every` is at least 0, got {arguments.shrink_every}.")
    cost = arguments.cost or "none"
    check_known("cost", [cost], ("none", *COSTS))
    config = replace(
        PRESETS[arguments.preset][arguments.network], dtype=arguments.dtype,
        cost=None if cost == "none" else cost,
        shrink_every=arguments.shrink_every,
    )  # fmt: skip
    if arguments.dataset is not None:
        config = replace(config, dataset=arguments.dataset)
    check_seeds(arguments.seeds, "runs every arm has")
    return config if arguments.seeds is None else replace(config, seeds=arguments.seeds)


def run(arguments: Arguments) -> Path:
    """Run or resume a comparison; returns the path of its JSON."""
    config = configure(arguments)
    name = f"nip_it_in_the_bud-{config.network}-{ledger.digest(config)}"
    out = WORK / name if arguments.out is None else arguments.out
    book = ledger.Ledger(out / f"{name}.json", config)
    problem = Problem(config, arguments.data_dir)
    programs = cache(partial(Program, problem))
    with progress(total(config, problem)) as advance:
        for seed in range(config.seeds):
            bench = Bench(problem, programs, book, WORK / name, seed)
            run_seed(bench, lambda steps, what: advance(steps, what[:16]))
    report.measure(config, problem, book)
    report.show(config, problem, book, out / name)
    book.check_failed()
    return book.path


def run_seed(bench: Bench, told: Told) -> None:
    """Every arm of a seed that is not finished; what fails is recorded, and the others go on."""
    config, rate = bench.config, None
    with bench.attempt("dense"):
        bench.train(bench.dense_arm, told)
    if not bench.has("dense"):
        return
    with bench.book.attempt(TRIALS):
        rate = bench.tune_rate(told)
    if rate is not None:
        for signal in config.signals:
            with bench.attempt(tuned(signal, max(config.marks))):
                bench.path(signal, rate, told)
    for arm in bench.others():
        with bench.attempt(arm.name):
            bench.train(arm, told)


def total(config: Config, problem: Problem) -> int:
    """About how many steps there are, for the bar."""
    dense, ends = problem.dense_steps, marks(config, problem).values()
    path = steps_to(config, max(ends))
    twice = sum(2 * dense + steps_to(config, count) for count in ends)
    small = len(config.depths) + len(config.widths) + len(config.zs)
    small += len(smaller_marks(config)) if config.copies else 0
    each = dense * (1 + small) + len(config.signals) * path + len(config.scratch) * twice
    trials = len(config.tune_rates) if len(config.tune_rates) > 1 else 0
    return config.seeds * each + trials * path


if __name__ == "__main__":
    import tyro

    try:
        run(tyro.cli(Arguments, description=__doc__))
    except PROBLEMS as problem:
        sys.exit(f"error: {problem}")
