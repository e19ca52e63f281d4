"""Digits: 1,797 handwritten digits of 8 x 8 pixels, inside the scikit-learn package.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (the
test part of it, which is what scikit-learn carries).
"""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.dataset import Parts, Split
from experiments.data.splits import hold_out

NUM_CLASSES = 10
TEST_EXAMPLES = 360
_LEVELS = 16  # a pixel counts the inked points of a 4 x 4 block: 0 to 16
_TEST_SEED = 0  # the set publishes no split; this one is fixed so that no seed moves the test part


def read(data_dir: Path | None = None) -> Parts:
    """Read digits; it needs neither `data_dir` nor a network.

    Returns:
        1,437 training and 360 test examples, stratified by class; inputs float32
        [N, 8, 8, 1] in [0, 1], targets int32 [N].

    Raises:
        ModuleNotFoundError: if scikit-learn is not installed.
    """
    del data_dir
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"digits is read from scikit-learn, which is not installed ({error}). "
            "Run `pip install scikit-learn`."
        ) from error
    bunch: Any = load_digits()
    inputs = (bunch.images[..., None] / _LEVELS).astype(np.float32)
    targets = bunch.target.astype(np.int32)
    train, test = hold_out(targets, TEST_EXAMPLES, seed=_TEST_SEED)
    return Parts(
        train=Split(inputs[train], targets[train]),
        test=Split(inputs[test], targets[test]),
        num_classes=NUM_CLASSES,
        source="embedded",
    )
