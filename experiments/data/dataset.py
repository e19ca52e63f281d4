"""The types that every data set is given in.

Letters of the shapes: N examples, H rows, W columns, C channels. What follows N is the shape of
one example: [H, W, C] for images, [B] for counts in B buckets.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """Examples and their classes, in the same order.

    Attributes:
        inputs: [N, ...]; float32 in [0, 1] in a `Dataset`, uint8 in [0, 255] while raw. Of a raw
            set of text (`lines.py`), lines as bytes [N].
        targets: [N]; int32 class numbers in [0, num_classes); of a raw set of text, places.
    """

    inputs: np.ndarray
    targets: np.ndarray


RawSplits = Mapping[str, Split]
"""The splits a source publishes, by name ("train", "test"), with raw inputs."""


class Parts(NamedTuple):
    """What a set's own module returns: its published parts, before a validation part is taken."""

    train: Split
    test: Split
    num_classes: int
    source: str


class Dataset(NamedTuple):
    """A data set in three disjoint parts.

    Attributes:
        name: the name it was loaded by.
        train: the examples to fit.
        validation: the examples to choose by, taken out of the published training part.
        test: the published test part; it is reported, never chosen by.
        num_classes: number of classes.
        source: the rung that gave it: "embedded", "prepared", "official" or "package".
    """

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    source: str


class DataUnavailable(RuntimeError):
    """A data set that no rung could give; the message lists every place and its reason."""
