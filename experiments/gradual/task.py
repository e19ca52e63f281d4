"""What a comparison of large-sparse and small-dense networks needs of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax

from jaxprune.types import Params, Predicate, PyTree

Batch = PyTree
Rest = PyTree


@dataclass(frozen=True)
class Config:
    """Everything the results depend on; its hash names them.

    Attributes:
      task: "cnn", "lm" or "seq2seq".
      dataset: a data set that the task can read.
      large: width of the network that is pruned.
      small: widths of the dense networks it is held against.
      sparsities: final ones of the large network's pruned layers.
      seeds: runs of every arm.
      steps: optimizer steps of every arm, dense or sparse.
      batch: examples a step.
      rates: peak rates of Adam; every width takes the one at which its dense network is best on
        validation examples, with the first seed.
      begin, end: shares of the steps between which the sparsity rises; both multiples of `every`,
        or the last update comes that much later.
      every: steps between mask updates.
      others: other ways to `other_sparsities`, of `ways.WAYS`.
      other_sparsities: the sparsities of those.
      examples: of the training part, at most.
      length: tokens of a window or of a sequence, where there are any.
      dropout: rate, where the network has it.
    """

    task: str
    preset: str
    dataset: str
    large: float
    small: tuple[float, ...]
    sparsities: tuple[float, ...]
    seeds: int
    steps: int
    batch: int
    rates: tuple[float, ...]
    begin: float = 0.1
    end: float = 0.7
    every: int = 100
    others: tuple[str, ...] = ()
    other_sparsities: tuple[float, ...] = ()
    examples: int | None = None
    length: int = 0
    dropout: float = 0.0


class Network(NamedTuple):
    """A network of some width on a task's data.

    Attributes:
      init: `key -> (params, rest)`; the rest is what training carries and no gradient moves, such
        as running statistics or recurrent states.
      loss: `(params, rest, batch, key) -> (mean loss, new rest)`, traceable.
      measure: `(params, rest, part) -> {metric: value}`, part "validation" or "test"; the metric
        of the task's quality comes first.
      fixed: `rest -> what of it is stored with a trained network`, such as running statistics.
    """

    init: Callable[[jax.Array], tuple[Params, Rest]]
    loss: Callable[[Params, Rest, Batch, jax.Array], tuple[jax.Array, Rest]]
    measure: Callable[[Params, Rest, str], dict[str, float]]
    fixed: Callable[[Rest], PyTree] = lambda rest: ()


class Task(NamedTuple):
    """A kind of network with its data.

    Attributes:
      title: for captions.
      about: what a reader has to know of the data and of what differs between seeds.
      quality: the name of what is compared.
      lower: True if less of it is better.
      prunable: which leaves are pruned.
      network: `width -> Network`, the same object for the same width.
      batches: `seed -> (step -> batch)`; a batch follows from seed and step alone, its leaves are
        arrays with a leading axis of examples.
    """

    title: str
    about: str
    quality: str
    lower: bool
    prunable: Predicate
    network: Callable[[float], Network]
    batches: Callable[[int], Callable[[int], Batch]]


PUBLISHED: Mapping[str, tuple[str, tuple[str, ...], tuple[tuple[str, ...], ...]]] = {
    "cnn": (
        "MobileNetV1 on ImageNet, top-1 in %",
        ("network", "nonzeros", "top-1 %"),
        (
            ("dense, width 0.25", "0.46 M", "50.6"),
            ("dense, width 0.5", "1.32 M", "63.7"),
            ("dense, width 0.75", "2.57 M", "68.4"),
            ("dense, width 1", "4.21 M", "70.6"),
            ("width 1, 50 % pruned", "2.13 M", "69.5"),
            ("width 1, 75 % pruned", "1.09 M", "67.7"),
            ("width 1, 90 % pruned", "0.46 M", "61.8"),
            ("width 1, 95 % pruned", "0.25 M", "53.6"),
        ),
    ),
    "lm": (
        "LSTM on Penn Treebank, perplexity (read off a figure, ± 0.7)",
        ("network", "perplexity"),
        (
            ("dense, small", "115"),
            ("dense, medium", "83.4"),
            ("dense, large", "78.4"),
            ("large, 80 % pruned", "77.5"),
            ("large, 85 % pruned", "78.3"),
            ("large, 90 % pruned", "80"),
            ("large, 95 % pruned", "88"),
            ("large, 97.5 % pruned", "103"),
        ),
    ),
    "seq2seq": (
        "GNMT, English to German / German to English, BLEU",
        ("network", "nonzeros", "BLEU"),
        (
            ("dense, 256 units", "34 M", "23.52 / 26.52"),
            ("dense, 512 units", "81 M", "26.05 / 28.88"),
            ("dense, 768 units", "140 M", "26.63 / 29.41"),
            ("dense, 1024 units", "211 M", "26.77 / 29.47"),
            ("1024 units, 80 % pruned", "44 M", "26.86 / 29.50"),
            ("1024 units, 85 % pruned", "33 M", "26.52 / 29.24"),
            ("1024 units, 90 % pruned", "23 M", "26.19 / 28.81"),
        ),
    ),
}
"""Zhu and Gupta 2017: the results that ours are printed beside."""
