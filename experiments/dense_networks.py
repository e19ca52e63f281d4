"""Dense networks that pruning starts from: trained once, kept as checkpoints, read by others.

    python experiments/dense_networks.py                                      # MLPNet, a minute
    python experiments/dense_networks.py --network resnet20 --dataset cifar10 # hours on one core
    python experiments/dense_networks.py --network resnet20 --dataset cifar10 --minutes 30

SGD with Nesterov momentum; the rate rises linearly and falls to 0 along a cosine; weight decay on
kernels only; images of CIFAR-10 are shifted and mirrored. A part of the training examples is held
out for validation, as `experiments.data.load` has it; the test part is used once, at the end.

A run that was stopped, or that used up its `--minutes`, goes on where it was when it is started
again, and ends with the same bits. From Python:

    model, variables, info = dense_network("mlpnet", "mnist")
    logits = model.apply(variables, normalise(images, "mnist"))  # of experiments.image_batches
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
from flax import linen as nn

import jaxprune as jp
from experiments import data, ledger
from experiments.data import Split
from experiments.dense_training import NETWORKS, About, Config, State, Training, variables
from experiments.image_batches import CHANNELS
from experiments.locking import alone
from experiments.naming import check_known
from experiments.presenting import bar
from experiments.problems import PROBLEMS
from experiments.resumable import newest
from experiments.tables import markdown
from experiments.training import check_finite

WORK = Path(__file__).parent / "runs"  # checkpoints, not committed
RESULTS = Path(__file__).parent / "results"
Preset = Literal["smoke", "cpu", "full"]

_MLPNET = Config("mlpnet", "mnist", 20, batch=128, learning_rate=0.1, weight_decay=5e-5)
_RESNET = Config("resnet20", "cifar10", 15, batch=128, learning_rate=0.2, weight_decay=5e-4)
PRESETS: dict[str, dict[str, Config]] = {
    "mlpnet": {
        "smoke": replace(_MLPNET, epochs=2, batch=32, examples=256),
        "cpu": _MLPNET,
        "full": replace(_MLPNET, epochs=100),
    },
    **{
        name: {
            "smoke": replace(_RESNET, network=name, epochs=2, batch=16, examples=64),
            "cpu": replace(_RESNET, network=name),
            "full": replace(_RESNET, network=name, epochs=200, learning_rate=0.1),
        }
        for name in ("resnet8", "resnet20")
    },
}


@dataclass(frozen=True)
class Arguments:
    """Train a dense network to a checkpoint."""

    network: str = "mlpnet"
    """mlpnet, resnet8 or resnet20."""
    dataset: str = "mnist"
    """digits (in the wheel, no download), mnist, fashion_mnist or cifar10."""
    preset: Preset = "cpu"
    """How much: smoke in seconds, cpu in minutes (ResNets in hours), full for a GPU."""
    minutes: float | None = None
    """Stop after so many; started again, the run goes on."""
    seed: int | None = None
    """Chooses first weights, batches, shifts and the validation part, if not the preset's."""
    data_dir: Path | None = None
    """Where tensorflow_datasets keeps prepared data."""
    out: Path | None = None
    """Folder of the results; by default experiments/results, for smoke the run's own folder."""


class DenseNetwork(NamedTuple):
    """A trained network.

    Attributes:
      model: Flax module; `model.apply(variables, inputs)` on normalised inputs gives logits.
      variables: its parameters, and the running statistics of BatchNorm where it has them.
      info: accuracies, loss, seconds and number of parameters; the configuration under "config",
        the folder of checkpoints under "checkpoints".
    """

    model: nn.Module
    variables: dict[str, Any]
    info: dict[str, Any]


def dense_network(
    network: str,
    dataset: str,
    preset: Preset = "cpu",
    *,
    config: Config | None = None,
    data_dir: Path | None = None,
) -> DenseNetwork:
    """The trained network, from its checkpoint if there is one; else it is trained, or goes on.

    Args:
      network: "mlpnet", "resnet8" or "resnet20".
      dataset: a name that `experiments.data.load` knows; not read if the network is there.
      preset: "smoke", "cpu" or "full".
      config: takes the place of all three.
      data_dir: where tensorflow_datasets keeps prepared data.

    Raises:
      ValueError: an unknown network, data set or preset; the nearest known one is suggested.
      DataUnavailable: it must be trained, and the data cannot be read.
      Busy: another process trains it.
    """
    run = Run(configure(network, dataset, preset) if config is None else config, data_dir)
    state = run.train()
    more = {"config": asdict(run.config), "checkpoints": str(run.folder)}
    return DenseNetwork(run.training.model, variables(state), run.book.pieces["dense"] | more)


def configure(
    network: str, dataset: str, preset: Preset = "cpu", *, seed: int | None = None
) -> Config:
    """The configuration of a network on a data set.

    Raises:
      ValueError: an unknown network, set of images or preset; the nearest known one is suggested.
    """
    check_known("network", [network], NETWORKS)
    check_known("data set", [dataset], CHANNELS)
    check_known("preset", [preset], PRESETS["mlpnet"])
    config = replace(PRESETS[network][preset], dataset=dataset)
    if dataset == "cifar10":  # not the others: a mirrored digit is another sign
        config = replace(config, shift=4, mirror=True)
    return config if seed is None else replace(config, seed=seed)


class Run:
    """One run: its data, its checkpoints, its book.

    Args:
      config: what is trained.
      data_dir: where tensorflow_datasets keeps prepared data.
      save_seconds: how much work a kill may cost.
    """

    def __init__(self, config: Config, data_dir: Path | None = None, save_seconds: float = 60.0):
        self.config, self.data_dir, self.save_seconds = config, data_dir, save_seconds
        name = f"dense_networks-{config.network}-{config.dataset}-{ledger.digest(config)}"
        self.folder = WORK / name / "checkpoints"
        self.book = ledger.Ledger(WORK / name / f"{name}.json", config)

    @cached_property
    def found(self) -> data.Dataset:
        """The data set, read when it is first needed."""
        whole = data.load(self.config.dataset, data_dir=self.data_dir, seed=self.config.seed)
        train = Split(*(part[: self.config.examples] for part in whole.train))
        return whole._replace(train=jax.device_put(train))

    @cached_property
    def training(self) -> Training:
        """The network and its steps; what they need of the data is in the book after a start."""
        if "data" not in self.book.pieces:
            shape = self.found.train.inputs.shape
            self.book.record("data", About(shape[0], shape[1:], self.found.num_classes)._asdict())
        about = About(**self.book.pieces["data"])
        return Training(self.config, about._replace(shape=tuple(about.shape)))

    def newest(self) -> State:
        """The state of the newest whole checkpoint, or the one before the first step."""
        return newest(self.folder, self.training.start)

    def train(self, minutes: float | None = None) -> State:
        """Train to the end, or until the minutes are over, from wherever the run is.

        Returns:
          The last state; it is in a checkpoint.

        Raises:
          Busy: another process trains it.
        """
        if "dense" in self.book.pieces:
            state = self.newest()
            if int(state.step) == self.training.total:
                return state  # otherwise its checkpoint is lost, and it is trained again
        with alone(self.folder, wait=False):
            return self._train(minutes)

    def _train(self, minutes: float | None) -> State:
        state, training = self.newest(), self.training
        step, began = int(state.step), time.monotonic()
        # If the results were lost and the checkpoints were not, nobody knows what they took.
        before = self.book.pieces.get("time", {}).get("seconds") if step else 0.0
        saved, order, over = began, None, False
        with _progress(step, training.total) as show:
            while step < training.total and not over:
                epoch, place = divmod(step, training.per_epoch)
                if order is None or place == 0:
                    order = training.order(epoch)
                state = jax.block_until_ready(training.update(state, order, self.found.train))
                step += 1
                show(step)
                if place + 1 == training.per_epoch:
                    self._finish_epoch(epoch + 1, state, show)
                now = time.monotonic()
                over = minutes is not None and now - began > 60 * minutes
                if over or step == training.total or now - saved > self.save_seconds:
                    seconds = None if before is None else before + now - began
                    self.book.record("time", {"step": step, "seconds": seconds})
                    jp.checkpoint.save(self.folder, state, step=step, keep=2)
                    saved = now
        if step == training.total:
            self._finish(state)
        return state

    def _finish_epoch(self, epoch: int, state: State, show: Callable[..., None]) -> None:
        found = self._measured(state)
        if not math.isfinite(loss := found["loss"]):
            raise ValueError(f"The loss is {loss} after epoch {epoch}. Lower the learning rate.")
        self.book.record(f"epoch {epoch}", found)
        accuracy = found["validation_accuracy"]
        show(
            int(state.step),
            f"epoch {epoch}/{self.config.epochs}  loss {loss:.4f}  validation {accuracy:.2f} %",
        )

    def _measured(self, state: State) -> dict[str, float]:
        """The epoch's mean loss, and the accuracy after it."""
        loss = float(state.loss) / self.training.per_epoch
        accuracy = self.training.accuracy(state, self.found.validation)
        return {"loss": loss, "validation_accuracy": accuracy}

    def _finish(self, state: State) -> None:
        check_finite(state.params, "The last step was too long; lower the learning rate")
        last = self.book.pieces.get(f"epoch {self.config.epochs}")
        piece = {
            "test_accuracy": self.training.accuracy(state, self.found.test),
            **(last or self._measured(state)),
            "train_seconds": self.book.pieces.get("time", {}).get("seconds"),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        }
        self.book.record("dense", piece)


@contextmanager
def _progress(start: int, total: int) -> Iterator[Callable[..., None]]:
    """A bar on stderr; yields `show(step, text="")`. Without a terminal: the texts, one a line."""
    began, terminal = time.monotonic(), sys.stderr.isatty()
    with bar("training", disable=not terminal) as shown:
        task = shown.add_task("training", total=total, completed=start)

        def show(step: int, text: str = "") -> None:
            shown.update(task, completed=step)
            if text:
                seconds = (time.monotonic() - began) / (step - start) * (total - step)
                print(f"{text}  {seconds / 60:.1f} min left", flush=True)

        yield show


def table(folder: Path) -> str:
    """The finished networks of a folder of results, in Markdown, one a row."""
    names = ("network", "data", "test %", "validation %", "parameters", "epochs", "seed", "minutes")
    rows = []
    for _, found in ledger.results(folder, "dense_networks-"):
        config, piece = found["config"], found["pieces"]["dense"]
        seconds = piece["train_seconds"]
        rows.append(
            (
                config["network"],
                config["dataset"],
                f"{piece['test_accuracy']:.2f}",
                f"{piece['validation_accuracy']:.2f}",
                f"{piece['parameters']:,}",
                str(config["epochs"]),
                str(config["seed"]),
                "unknown" if seconds is None else f"{seconds / 60:.1f}",
                "{device}, {cores} cores, jax {jax}".format(**found["hardware"]),
            )
        )
    told = "One network a row, from the JSON beside this file."
    return f"{markdown((*names, 'trained on'), rows)}\n\n{told}\n"


def main(arguments: Arguments) -> Run:
    """Train or go on, and write what a finished run measured."""
    config = configure(arguments.network, arguments.dataset, arguments.preset, seed=arguments.seed)
    run = Run(config, arguments.data_dir)
    run.train(arguments.minutes)
    if "dense" not in run.book.pieces:
        print(f"Stopped; the checkpoint is in {run.folder}. Start again to go on.")
        return run
    out = arguments.out or (run.book.path.parent if arguments.preset == "smoke" else RESULTS)
    ledger.write_atomically(out / run.book.path.name, run.book.path.read_text())
    ledger.write_atomically(out / "dense_networks.md", table(out))
    accuracy = run.book.pieces["dense"]["test_accuracy"]
    print(f"Test accuracy {accuracy:.2f} %. Checkpoint: {run.folder}\nResults: {out}")
    return run


if __name__ == "__main__":
    import tyro

    try:
        main(tyro.cli(Arguments, description=__doc__))
    except PROBLEMS as problem:
        sys.exit(f"error: {problem}")
