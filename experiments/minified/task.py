"""The networks that are made small: data, a model of any width, its loss, what is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from experiments import data
from experiments.data import Split
from experiments.models import MLP, LeNet5
from experiments.training import cross_entropy
from jaxprune.curvature.roots import Root
from jaxprune.types import Apply, Loss, Params

Widths = tuple[int, ...]


class Task(NamedTuple):
    """A data set and the dense network on it.

    Attributes:
      dataset: a name that `experiments.data.load` knows.
      widths: of the hidden layers, in the order of the flow.
      network: "mlp" or "lenet5".
      title: for captions.
    """

    dataset: str
    widths: Widths
    network: str
    title: str


TASKS: Mapping[str, Task] = {
    "digits": Task("digits", (100, 50), "mlp", "64-100-50-10 on digits"),
    "mnist": Task("mnist", (300, 100), "mlp", "LeNet-300-100 on MNIST"),
    "fashion_mnist": Task("fashion_mnist", (300, 100), "mlp", "LeNet-300-100 on Fashion-MNIST"),
    "mails": Task("mails", (512, 256, 128), "mlp", "4096-512-256-128-1 on mails (spam or not)"),
    "lenet5": Task("mnist", (20, 50, 500), "lenet5", "LeNet-5 on MNIST"),
    "cifar10": Task("cifar10", (512, 256, 128), "mlp", "3072-512-256-128-10 on CIFAR-10"),
}


class Problem:
    """A task with its data: what is trained, and on what.

    Args:
      task: which network on which data.
      data_dir: where tensorflow_datasets keeps prepared data.
      examples: of the training part, at most; None for all.

    Attributes:
      train, validation, test: on the device; test examples only measure.
      binary: one logit for two classes, instead of one logit a class.
    """

    def __init__(self, task: Task, data_dir: Path | None = None, examples: int | None = None):
        found = data.load(task.dataset, data_dir=data_dir)
        short = Split(*(part[:examples] for part in found.train))
        self.task = task
        self.train, self.validation, self.test = jax.device_put(
            (short, found.validation, found.test)
        )
        self.binary = found.num_classes == 2
        self.outputs = 1 if self.binary else found.num_classes
        self.loss: Loss = binary_cross_entropy if self.binary else cross_entropy
        curvature = jp.curvature
        self.root: Root = curvature.sigmoid_root if self.binary else curvature.softmax_root
        self.apply = self.apply_at(task.widths)

    def model_at(self, widths: Widths) -> Any:
        """The module with other hidden widths."""
        if self.task.network == "lenet5":
            return LeNet5(self.outputs, widths)
        return MLP(widths, self.outputs)

    @cache  # noqa: B019 - one object a width, so that jit compiles once
    def apply_at(self, widths: Widths) -> Apply:
        """`(params, inputs) -> logits` of the model with other hidden widths."""
        model = self.model_at(widths)
        return lambda params, inputs: jnp.asarray(model.apply({"params": params}, inputs))

    @cache  # noqa: B019
    def init_at(self, widths: Widths) -> Callable[[jax.Array], Params]:
        """`key -> params` of the model with other hidden widths."""
        model = self.model_at(widths)
        return lambda key: model.init(key, self.train.inputs[:1])["params"]

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """What is measured of one network's logits, in per cent; the first one is the quality."""
        if not self.binary:
            return {"accuracy": 100 * float(np.mean(outputs.argmax(-1) == targets))}
        return binary_metrics(outputs[:, 0], targets)


def binary_cross_entropy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Binary cross-entropy of each example, [N], from logits [N, 1] and targets 0 or 1."""
    return optax.sigmoid_binary_cross_entropy(outputs[:, 0], targets)


FALSE_POSITIVES = 0.001
"""The rate of false positives at which recall is told."""


def binary_metrics(logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Accuracy at threshold 0, area under the ROC curve, and recall, all in per cent.

    Recall is the largest at any threshold where at most 0.1 % of the negative examples are taken
    for positive: with fewer than 1,000 of them, where none is.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    false, true, _ = roc_curve(targets, logits, drop_intermediate=False)
    return {
        "accuracy": 100 * float(np.mean((logits > 0) == (targets == 1))),
        "auc": 100 * float(roc_auc_score(targets, logits)),
        "recall": 100 * float(true[false <= FALSE_POSITIVES].max()),
    }
