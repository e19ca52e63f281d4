"""The Combinatorial Brain Surgeon (Yu et al. 2022), its comparison and what goes beyond it.

One-shot pruning of trained networks WITHOUT fine-tuning: which weights go together, and how the
others move. Published numbers are printed beside ours.

    python experiments/combinatorial_brain_surgeon.py                     # MLPNet on MNIST
    python experiments/combinatorial_brain_surgeon.py --weights FILE.npz  # on outside weights
    python experiments/combinatorial_brain_surgeon.py --network resnet20  # CIFAR-10
    python experiments/combinatorial_brain_surgeon.py --preset smoke      # digits, seconds

The dense network comes from `dense_networks.py`, or from an archive of arrays named as the model's
parameters (fc1, fc2, fc3 of shapes [in, out]). A seed draws the training examples of the Fisher,
the partitions and the probes; the weights are the same. Every choice is made by the loss on
training examples; test examples are only counted at the end. Interrupted runs resume. The seconds
of every call are in the results; the cpu presets take hours on two cores. Runs of different
`--methods` may go on at the same time, and add to the same results.

ResNet-20 prunes its 18 convolutions inside blocks, as in the paper; MLPNet all its weights.
"""

from __future__ import annotations

import hashlib
import sys
import time
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple
from zipfile import BadZipFile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from experiments import data, ledger, surgeon_tables
from experiments.dense_networks import dense_network
from experiments.image_batches import normalise
from experiments.models import MLPNet
from experiments.naming import check_known, check_seeds, check_sparsities
from experiments.presenting import progress
from experiments.problems import PROBLEMS
from experiments.surgeon_methods import METHODS, Settings, Surgeons, three_by_three
from experiments.training import check_finite
from jaxprune.types import Apply, Batch, Params, Selection

WORK = Path(__file__).parent / "runs"  # not committed
Network = Literal["mlpnet", "resnet20"]
Preset = Literal["smoke", "cpu", "full"]


@dataclass(frozen=True)
class Config:
    """Everything the results depend on; its hash names them.

    Attributes:
      weights: which dense network: "trained", or the SHA-256 of an archive.
      batch: training examples that a surgeon is given.
    """

    network: Network
    dataset: str
    preset: Preset
    weights: str
    sparsities: tuple[float, ...]
    methods: tuple[str, ...]
    seeds: int
    batch: int
    settings: Settings


_MLPNET = Settings(
    examples=1000, joint_examples=2000, damping=1e-3, dampings=(1e-2, 3e-4),
    scales=(0.5, 0.75, 1.0, 1.25, 1.5, 2.0), stage_dampings=(1e-1, 1e-2, 1e-3),
    stage_scales=(0.25, 0.5, 1.0, 1.5), share_tries=150, stages=12, tuning=8,
)  # fmt: skip
_RESNET = replace(
    _MLPNET, joint_examples=1000, damping=1e-5, dampings=(1e-4,), stage_dampings=(1.0,),
    stage_scales=(0.5, 1.0), share_tries=12, stages=4, tuning=1, draws=10, steps=2, judged=500,
)  # fmt: skip
_TINY = replace(
    _MLPNET, examples=60, joint_examples=60, dampings=(1e-3,), scales=(1.0, 0.5),
    stage_dampings=(1e-2,), stage_scales=(0.5,), share_tries=6, stages=2, tuning=1, draws=3,
    steps=2, judged=200,
)  # fmt: skip
PRESETS: dict[str, dict[str, Config]] = {
    "mlpnet": {
        "smoke": Config(
            "mlpnet", "digits", "smoke", "trained", (0.9,), tuple(METHODS), 2, 300, _TINY
        ),
        "cpu": Config(
            "mlpnet", "mnist", "cpu", "trained", (0.8, 0.9, 0.95, 0.98),
            tuple(METHODS), 5, 20_000, _MLPNET,
        ),
        "full": Config(
            "mlpnet", "mnist", "full", "trained", (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98),
            tuple(METHODS), 5, 55_000, replace(_MLPNET, joint_examples=4000, stages=24, tuning=16),
        ),
    },
    "resnet20": {
        "cpu": Config(
            "resnet20", "cifar10", "cpu", "trained", (0.5, 0.6, 0.7, 0.8, 0.9),
            tuple(METHODS), 2, 3000, _RESNET,
        ),
        "full": Config(
            "resnet20", "cifar10", "full", "trained", (0.5, 0.6, 0.7, 0.8, 0.9),
            tuple(METHODS), 5, 45_000,
            replace(
                _RESNET, dampings=(1e-3, 1e-4), stage_dampings=(1.0, 0.1), share_tries=40,
                stages=16, tuning=8, draws=50, steps=50, judged=5000,
            ),
        ),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Arguments:
    """Prune trained networks by every surgeon."""

    preset: Preset = "cpu"
    """How much: smoke in seconds, cpu in minutes to an hour, full for a GPU."""
    network: Network = "mlpnet"
    """mlpnet on MNIST (digits for smoke), or resnet20 on CIFAR-10."""
    weights: Path | None = None
    """An archive (.npz) of trained weights to use instead of our own; MLPNet only."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Which methods to run now; processes that run others at the same time add to one result."""
    sparsities: tuple[float, ...] = ()
    """Which sparsities, if not the preset's."""
    seeds: int | None = None
    """How many seeds, if not the preset's."""
    data_dir: Path | None = None
    """Where tensorflow_datasets keeps prepared data."""
    out: Path | None = None
    """Folder of the results; by default the run's own folder under experiments/runs."""


class Case(NamedTuple):
    """A dense network to prune, and its data, already normalised."""

    apply: Apply
    params: Params
    select: Selection
    train: Batch
    test: Batch


def configure(arguments: Arguments) -> Config:
    """The configuration that the arguments ask for.

    Raises:
      ValueError: an unknown method, a preset the network does not have, no seed, a sparsity that
        is not in [0, 1), a weights file that is missing, damaged or for another network.
      FloatingPointError: weights that are NaN or infinite.
    """
    check_known("method", arguments.methods, METHODS)
    check_sparsities(arguments.sparsities)
    presets = PRESETS[arguments.network]
    if arguments.preset not in presets:
        raise ValueError(f"{arguments.network} has the presets {', '.join(presets)}.")
    config = presets[arguments.preset]
    if arguments.sparsities:
        config = replace(config, sparsities=arguments.sparsities)
    check_seeds(arguments.seeds, "runs a method has")
    if arguments.seeds is not None:
        config = replace(config, seeds=arguments.seeds)
    if arguments.weights is None:
        return config
    if arguments.network != "mlpnet" or arguments.preset == "smoke":
        raise ValueError("`weights` replaces MLPNet's on MNIST: use the cpu or the full preset.")
    if not arguments.weights.is_file():
        raise ValueError(f"There is no file {arguments.weights}; `weights` is an .npz archive.")
    outside_weights(arguments.weights)  # before data are read and results begun
    content = arguments.weights.read_bytes()
    return replace(config, weights=hashlib.sha256(content).hexdigest()[:16])


def load_case(config: Config, arguments: Arguments) -> Case:
    """The dense network and its data."""
    found = data.load(config.dataset, data_dir=arguments.data_dir)
    ready = lambda split: (
        normalise(jnp.asarray(split.inputs), config.dataset), jnp.asarray(split.targets)
    )  # fmt: skip
    if arguments.weights is not None:
        return Case(*outside_weights(arguments.weights), ready(found.train), ready(found.test))
    model, variables, _ = dense_network(
        config.network, config.dataset, config.preset, data_dir=arguments.data_dir
    )
    rest = {name: value for name, value in variables.items() if name != "params"}
    apply = lambda params, inputs: model.apply({"params": params, **rest}, inputs)
    plain = jp.select.lowest()
    select = jp.select.lowest(prunable=three_by_three) if config.network == "resnet20" else plain
    return Case(apply, variables["params"], select, ready(found.train), ready(found.test))


def outside_weights(path: Path) -> tuple[Apply, Params, Selection]:
    """MLPNet with weights from an archive.

    Raises:
      ValueError: the file is no whole archive; arrays are missing, have other shapes, or are not of
        real numbers.
      FloatingPointError: a weight is NaN or infinite.
    """
    shapes = {"fc1": (784, 40), "fc2": (40, 20), "fc3": (20, 10)}
    try:
        with np.load(path) as archive:  # of a single array, .npy: no context
            found = {name: archive[name] for name in archive.files}
    except (TypeError, ValueError, RuntimeError, EOFError, BadZipFile, zlib.error) as problem:
        raise ValueError(
            f"{path} is no whole .npz archive of arrays ({type(problem).__name__}). Write one by "
            "`numpy.savez`, with arrays fc1, fc2 and fc3."
        ) from problem
    if (got := {name: np.shape(array) for name, array in found.items()}) != shapes:
        raise ValueError(f"{path} holds {got}; MLPNet takes {shapes}, [in, out].")
    if kinds := {str(a.dtype) for a in found.values() if a.dtype.kind not in "fiu"}:
        raise ValueError(f"{path} holds {', '.join(sorted(kinds))}; weights are real numbers.")
    params = {name: {"kernel": jnp.asarray(found[name], jnp.float32)} for name in shapes}
    check_finite(params, f"{path} holds no weights that can be used")
    model = MLPNet()
    return (lambda p, x: model.apply({"params": p}, x)), params, jp.select.lowest()


class Comparison:
    """The unfinished work of one configuration."""

    def __init__(self, config: Config, case: Case, book: ledger.Ledger):
        self.config, self.case, self.book = config, case, book
        self.surgeons = Surgeons(case.apply, case.select, config.settings)
        self.correct = jax.jit(self._correct)

    def _correct(self, params: Params, batch: Batch) -> jax.Array:
        inputs, targets = batch
        return jnp.sum(jnp.argmax(jnp.asarray(self.case.apply(params, inputs)), -1) == targets)

    def accuracy(self, params: Params) -> float:
        """Per cent correct of the test examples."""
        inputs, targets = self.case.test
        cuts = [slice(i, i + 1000) for i in range(0, len(targets), 1000)]
        parts = [(inputs[cut], targets[cut]) for cut in cuts]
        return 100 * sum(int(self.correct(params, part)) for part in parts) / len(targets)

    def run_dense(self) -> None:
        """The dense network's accuracy."""
        self.book.record("dense", {"accuracy": self.accuracy(self.case.params)})

    def run_one(self, method: str, sparsity: float, seed: int) -> None:
        """Prune once; record accuracy, seconds and what the surgeon says of itself."""
        batch = self.batch(seed)
        prune = self.surgeons.build(method, seed)
        start = time.perf_counter()
        pruned = jax.block_until_ready(prune(self.case.params, batch, sparsity=sparsity))
        seconds = time.perf_counter() - start
        check_finite(pruned.params, f"{method} gave no weights that can be used")
        flags = jp.trees.prunable_flags(self.case.params, self.case.select.prunable)
        left = jp.trees.select_leaves(pruned.mask, flags)
        said = {k: v for k, v in pruned.info.items() if isinstance(v, int | float)}
        self.book.record(
            surgeon_tables.name_of(method, sparsity, seed),
            {
                "accuracy": self.accuracy(pruned.params),
                "seconds": seconds,
                "sparsity": 1 - jp.trees.keep(left) / jp.trees.count(left),
                "info": said,
            },
        )

    def batch(self, seed: int) -> Batch:
        """A seed's training examples."""
        inputs, targets = self.case.train
        rows = np.random.default_rng(seed).permutation(len(targets))[: self.config.batch]
        return inputs[rows], targets[rows]


def run(arguments: Arguments) -> Path:
    """Run or resume a comparison; returns the path of its JSON."""
    config = configure(arguments)
    name = f"combinatorial_brain_surgeon-{config.network}-{ledger.digest(config)}"
    out = WORK / name if arguments.out is None else arguments.out
    book = ledger.Ledger(out / f"{name}.json", config)
    comparison = Comparison(config, load_case(config, arguments), book)
    if "dense" not in book.pieces:
        comparison.run_dense()
    work = [
        (method, sparsity, seed)
        for method in arguments.methods
        for sparsity in config.sparsities
        for seed in seeds(config, method)
    ]
    with progress(len(work)) as advance:
        for method, sparsity, seed in work:
            one = surgeon_tables.name_of(method, sparsity, seed)
            if one not in book.pieces:
                with book.attempt(one):
                    comparison.run_one(method, sparsity, seed)
            advance(1, method)
    surgeon_tables.show(book, out / name, ledger.hardware())
    book.check_failed()
    return book.path


def seeds(config: Config, method: str) -> range:
    """Seeds of a method; magnitude has nothing to draw."""
    return range(1 if method == "MP" else config.seeds)


if __name__ == "__main__":
    import tyro

    try:
        run(tyro.cli(Arguments, description=__doc__))
    except PROBLEMS as problem:
        sys.exit(f"error: {problem}")
