"""The pretrained networks by name; a network's module is imported when it is asked for."""

from __future__ import annotations

import importlib
from pathlib import Path

from experiments.naming import check_known
from experiments.pretrained.model import Pretrained

NETWORKS = ("toy", "g2p-en", "magika", "minilm")
"""The first needs no download and stands in for the others."""


def load(name: str, calibration: int, test: int, seed: int, data_dir: Path | None) -> Pretrained:
    """A network with its examples.

    Args:
      name: one of `NETWORKS`.
      calibration: examples that pruning and fine-tuning may use.
      test: examples that it is measured on.
      seed: draws the calibration examples; the test examples are the same for all.
      data_dir: where data and weights are kept.

    Raises:
      ValueError: an unknown name. DataUnavailable: weights or data cannot be had.
    """
    check_known("model", [name], NETWORKS)
    module = importlib.import_module(f"experiments.pretrained.{name.replace('-', '_')}")
    found: Pretrained = module.load(calibration, test, seed, data_dir)
    return found
