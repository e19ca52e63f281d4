"""Image sets that live in tensorflow_datasets, as inputs of a network."""

from pathlib import Path

import numpy as np

from experiments.data.dataset import Parts, Split
from experiments.data.stored import StoredSet, read_stored


class ImageSet(StoredSet):
    """A stored set whose inputs are pixels, uint8 [N, H, W, C]."""


def read_images(images: ImageSet, data_dir: Path | None) -> Parts:
    """Read an image set from the first rung that has it; see `stored.read_stored`.

    Args:
        images: the set.
        data_dir: root of the prepared directories; None for `stored.default_root()`.

    Returns:
        Inputs float32 [N, H, W, C] in [0, 1] (divided by 255) and targets int32 [N], in the
        canonical order of `contents.canonical`.

    Raises:
        DataUnavailable: no rung could give it, packages that all rungs need are missing, or the
            root cannot be written when the set has to be prepared.
    """
    splits, source = read_stored(images, data_dir)
    return Parts(_scaled(splits["train"]), _scaled(splits["test"]), images.num_classes, source)


def _scaled(split: Split) -> Split:
    return Split(split.inputs.astype(np.float32) / np.float32(255), split.targets)
