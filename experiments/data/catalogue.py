"""The table of data sets with classes, and `load`, the way in (`text_catalogue.py`: of texts)."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data import cifar10, digits, fashion_mnist, mails, mnist, text_catalogue
from experiments.data.dataset import Dataset, Parts, Split
from experiments.data.lookup import look_up
from experiments.data.splits import hold_out


class Row(NamedTuple):
    """How a set is read, and the part of its training examples that validates by default."""

    read: Callable[[Path | None], Parts]
    validation_fraction: float


_TABLE: Mapping[str, Row] = {
    "digits": Row(digits.read, validation_fraction=1 / 8),
    "mnist": Row(mnist.read, validation_fraction=1 / 12),
    "fashion_mnist": Row(fashion_mnist.read, validation_fraction=1 / 12),
    "cifar10": Row(cifar10.read, validation_fraction=1 / 10),
    "mails": Row(mails.read, validation_fraction=1 / 8),
}


def names() -> tuple[str, ...]:
    """The names that `load` knows.

    Examples:
        >>> names()
        ('digits', 'mnist', 'fashion_mnist', 'cifar10', 'mails')
    """
    return tuple(_TABLE)


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    validation_fraction: float | None = None,
    seed: int = 0,
) -> Dataset:
    """Load a data set as float32 arrays, with a stratified validation part.

    Inputs are in [0, 1]. Those of images have shape [N, H, W, C] (N examples, H rows, W columns,
    C channels): digits 8 x 8 x 1, divided by 16; mnist and fashion_mnist 28 x 28 x 1 and cifar10
    32 x 32 x 3, divided by 255. Those of mails have shape [N, 4096]: log(1 + count) of hashed
    words, each row of Euclidean length 1. Targets are int32 [N]; of mails, 1 is spam. The same
    arguments give the same arrays, bit for bit, whichever rung of the ladder served them.

    Args:
        name: one of `names()`.
        data_dir: the tensorflow_datasets root to read and prepare in; by default
            `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`. digits does not use it.
        validation_fraction: the part of the published training examples, in (0, 1), that becomes
            the validation part; by default 1/8 for digits (1,257 train, 180 validation,
            360 test), 1/12 for mnist and fashion_mnist (55,000, 5,000, 10,000), 1/10 for cifar10
            (45,000, 5,000, 10,000) and 1/8 for mails (4,076, 582, 1,165).
        seed: chooses which training examples validate. It never touches the test part.

    Raises:
        ValueError: an unknown name, or a fraction that is outside (0, 1) or leaves a part empty.
        DataUnavailable: no rung could give the set, or `data_dir` cannot be written.

    Examples:
        >>> digits = load("digits")
        >>> digits.train.inputs.shape, digits.validation.targets.shape, digits.test.targets.shape
        ((1257, 8, 8, 1), (180,), (360,))
    """
    texts = {"load_words": text_catalogue.word_names(), "load_pairs": text_catalogue.pair_names()}
    row = look_up(_TABLE, name, texts)
    fraction = row.validation_fraction if validation_fraction is None else validation_fraction
    if not 0.0 < fraction < 1.0:
        raise ValueError(
            f"validation_fraction must lie strictly between 0 and 1, got {fraction!r}. "
            f"Leave it out for {name}'s own {row.validation_fraction:.3g}."
        )
    parts = row.read(None if data_dir is None else Path(data_dir).expanduser())
    count = round(fraction * len(parts.train.targets))
    kept, held = hold_out(parts.train.targets, count, seed=seed)
    return Dataset(
        name=name,
        train=_take(parts.train, kept),
        validation=_take(parts.train, held),
        test=parts.test,
        num_classes=parts.num_classes,
        source=parts.source,
    )


def _take(split: Split, rows: np.ndarray) -> Split:
    return Split(split.inputs[rows], split.targets[rows])
