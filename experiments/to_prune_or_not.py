"""To prune, or not to prune (Zhu, Gupta 2017): large-sparse against small-dense networks.

A large network is pruned while it trains, its sparsity rising along a cubic; small dense networks
of the same kind train for the same steps. At equal nonzeros, and at equal bytes with the index
counted, which one is better?

    python experiments/to_prune_or_not.py --task lm                  # two-layer LSTM
    python experiments/to_prune_or_not.py --task seq2seq             # letters to phonemes
    python experiments/to_prune_or_not.py --task cnn                 # MobileNetV1 on CIFAR-10
    python experiments/to_prune_or_not.py --task lm --preset smoke   # synthetic text, seconds
    python experiments/to_prune_or_not.py --task seq2seq --dataset verses --preset full

Runs use all local devices, a batch shared among them, and resume from their checkpoints bit for
bit. What the masks did lies beside the checkpoints, as JSON Lines. Perplexities are of the World
English Bible's words, not of Penn Treebank.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import ledger
from experiments.gradual import images, language, report, translation
from experiments.gradual.running import Program, Run
from experiments.gradual.task import Config, Task
from experiments.gradual.ways import Arm, arms, choose_rates, trials
from experiments.locking import alone
from experiments.naming import check_known, check_seeds
from experiments.presenting import progress
from experiments.problems import PROBLEMS

WORK = Path(__file__).parent / "runs"  # checkpoints and raw results, not committed
TASKS: dict[str, Callable[[Config, Path | None], Task]] = {
    "cnn": images.task,
    "lm": language.task,
    "seq2seq": translation.task,
}
_OTHERS = ("global", "straight through", "rigl", "set")

_CNN = Config(
    task="cnn", preset="cpu", dataset="cifar10", large=0.25, small=(0.0625, 0.125),
    sparsities=(0.75, 0.9, 0.95), seeds=3, steps=1200, batch=32, rates=(1e-2, 3e-3),
    every=40,
)  # fmt: skip
_LM = Config(
    task="lm", preset="cpu", dataset="web_words", large=128, small=(8, 16, 32, 64),
    sparsities=(0.5, 0.8, 0.85, 0.9, 0.95), seeds=3, steps=600, batch=32, rates=(6e-2, 3e-2, 1e-2),
    every=30, others=_OTHERS, other_sparsities=(0.9,), length=20,
)  # fmt: skip
_SEQ2SEQ = Config(
    task="seq2seq", preset="cpu", dataset="cmudict", large=96, small=(24, 48),
    sparsities=(0.8, 0.9), seeds=3, steps=1200, batch=64, rates=(4e-2, 2e-2, 1e-2),
    every=40, length=14,
)  # fmt: skip
_smoke = partial(
    replace, preset="smoke", seeds=2, steps=12, batch=8, every=2, sparsities=(0.8,), examples=2000,
    rates=(1e-2, 3e-3),
)  # fmt: skip
PRESETS: dict[str, dict[str, Config]] = {
    "smoke": {
        "cnn": _smoke(_CNN, dataset="digits", large=0.25, small=(0.0625,)),
        "lm": _smoke(
            _LM, dataset="toy_words", large=16, small=(2,), length=5, others=("rigl",),
            other_sparsities=(0.8,),
        ),
        "seq2seq": _smoke(_SEQ2SEQ, dataset="toy_pairs", large=16, small=(4,), length=10),
    },
    "cpu": {"cnn": _CNN, "lm": _LM, "seq2seq": _SEQ2SEQ},
    "full": {
        "cnn": replace(
            _CNN, preset="full", large=1.0, small=(0.25, 0.5, 0.75), steps=60_000, batch=128,
            every=100, others=_OTHERS, other_sparsities=(0.9,), sparsities=(0.5, 0.75, 0.9, 0.95),
        ),
        "lm": replace(
            _LM, preset="full", large=1500, small=(100, 200, 400, 650), steps=60_000, every=100,
            dropout=0.5, length=35, rates=(3e-3, 1e-3), sparsities=(0.8, 0.85, 0.9, 0.95, 0.975),
        ),
        "seq2seq": replace(
            _SEQ2SEQ, preset="full", large=512, small=(64, 128, 256), steps=60_000, every=100,
            dropout=0.2, rates=(3e-3, 1e-3), length=0, others=_OTHERS, other_sparsities=(0.9,),
            sparsities=(0.8, 0.85, 0.9, 0.95),
        ),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Arguments:
    """Train large-sparse and small-dense networks, and compare."""

    task: str = "lm"
    """cnn, lm or seq2seq."""
    preset: Literal["smoke", "cpu", "full"] = "cpu"
    """How much: smoke in seconds on data that need no download, cpu in an hour or two, full for a
    GPU."""
    dataset: str | None = None
    """If not the preset's: mnist, fashion_mnist or cifar10; web_words; cmudict or verses."""
    seeds: int | None = None
    """How many runs of every arm, if not the preset's."""
    data_dir: Path | None = None
    """Where tensorflow_datasets keeps prepared data."""
    out: Path | None = None
    """Folder of the results; by default the run's own folder under experiments/runs."""


def configure(arguments: Arguments) -> Config:
    """The configuration that the arguments ask for.

    Raises:
      ValueError: an unknown task; less than one seed.
    """
    check_known("task", [arguments.task], TASKS)
    config = PRESETS[arguments.preset][arguments.task]
    if arguments.dataset is not None:
        config = replace(config, dataset=arguments.dataset)
    check_seeds(arguments.seeds, "runs every arm has")
    return config if arguments.seeds is None else replace(config, seeds=arguments.seeds)


def run(arguments: Arguments) -> Path:
    """Run or resume a comparison; returns the path of its JSON."""
    config = configure(arguments)
    name = f"to_prune_or_not-{config.task}-{ledger.digest(config)}"
    out = WORK / name if arguments.out is None else arguments.out
    book = ledger.Ledger(out / f"{name}.json", config)
    task = TASKS[config.task](config, arguments.data_dir)
    programs: dict[str, Program] = {}

    def run_all(todo: list[Arm], attempt: Callable[[str], AbstractContextManager[None]]) -> None:
        """Run what is not in the book; what fails ends its arm."""
        for arm in todo:
            if arm.name in book.pieces or diverged(arm.name) in book.pieces:
                continue
            if arm.kind not in programs:
                programs[arm.kind] = Program(config, task, arm)
            one = Run(programs[arm.kind], arm.seed, WORK / name)
            with attempt(arm.name):
                book.record(arm.name, run_one(one, partial(advance, what=arm.name)))

    @contextmanager
    def trying(name: str) -> Iterator[None]:
        """A trial that fails is not chosen, and not tried again."""
        try:
            yield
        except FloatingPointError as problem:
            book.record(diverged(name), str(problem))

    tried = trials(config)
    any_rate = dict.fromkeys((*config.small, config.large), config.rates[0])
    names = {arm.name for arm in (*tried, *arms(config, any_rate))}  # as many at any other rates
    with progress((len(names) - len(book.pieces)) * config.steps) as advance:
        run_all(tried, trying)
        run_all(arms(config, choose_rates(config, task, book.pieces)), book.attempt)
    report.show(config, task, book, out / name)
    book.check_failed()
    return book.path


def diverged(name: str) -> str:
    """The piece that tells of a trial why it has no result."""
    return f"{name} diverged"


def run_one(one: Run, told: Callable[[int], None]) -> dict[str, Any]:
    """Train and measure one arm."""
    with alone(one.folder, wait=False):
        return one.result(one.train(told))


if __name__ == "__main__":
    import tyro

    try:
        run(tyro.cli(Arguments, description=__doc__))
    except PROBLEMS as problem:
        sys.exit(f"error: {problem}")
