"""The types that sets of text are given in.

Letters of the shapes: T tokens of running text, N examples, S and L the lengths that inputs and
targets are padded to, V the size of a vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.data.vocabulary import Vocabulary


class Words(NamedTuple):
    """Running text in three parts that share no sentence.

    Attributes:
        name: the name it was loaded by.
        train: int32 [T], the ids of the tokens one after the other, `EOS` after each sentence.
        validation: the text to choose by, in the same way.
        test: the text that is reported, never chosen by.
        vocabulary: V tokens chosen from the training part: id 0 is `UNK`, id 1 `EOS`.
        source: the rung that gave it: "prepared" or "package"; "synthetic" for a toy.
    """

    name: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    vocabulary: Vocabulary
    source: str


class PairSplit(NamedTuple):
    """Examples of one part of `Pairs`, in the same order everywhere.

    Attributes:
        inputs: int32 [N, S]: the tokens, `EOS`, then `PAD`.
        targets: int32 [N, L]: `BOS`, the tokens of the first reference, `EOS`, then `PAD`. A
            decoder reads `targets[:, :-1]` and predicts `targets[:, 1:]`.
        texts: the N inputs as they are written.
        references: the N accepted targets as they are written, one or more each.
    """

    inputs: np.ndarray
    targets: np.ndarray
    texts: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]


class Pairs(NamedTuple):
    """Pairs of sequences in three parts that share no input.

    Attributes:
        name: the name it was loaded by.
        train: the examples to fit.
        validation: the examples to choose by.
        test: the examples that are reported, never chosen by.
        input_vocabulary: tokens chosen from the training part; ids 0 to 3 are `PAD`, `BOS`,
            `EOS` and `UNK`.
        target_vocabulary: the same of the targets.
        to_text: writes target tokens as the references are written. For an output of ids,
            `pairs.to_text(pairs.target_vocabulary.sentence(ids))`.
        source: the rung that gave it: "prepared" or "package"; "synthetic" for a toy.
    """

    name: str
    train: PairSplit
    validation: PairSplit
    test: PairSplit
    input_vocabulary: Vocabulary
    target_vocabulary: Vocabulary
    to_text: Callable[[Sequence[str]], str]
    source: str


class Sentences(NamedTuple):
    """What the module of a running text returns: tokens of its sentences by part."""

    parts: Mapping[str, Sequence[Sequence[str]]]
    source: str


class TextPair(NamedTuple):
    """An input text and the targets that are accepted for it, the best first."""

    text: str
    references: tuple[str, ...]


class TextPairs(NamedTuple):
    """What the module of a set of pairs returns: pairs by part."""

    parts: Mapping[str, Sequence[TextPair]]
    source: str


def spaced(split: PairSplit, count: int) -> PairSplit:
    """At most `count` examples in equal distances: of a sorted part not only its beginning.

    Args:
        split: examples.
        count: the most that are kept.

    Example:
        >>> split = PairSplit(np.arange(5), np.arange(5), tuple("abcde"), (("x",),) * 5)
        >>> spaced(split, 2).texts
        ('a', 'c')
    """
    rows = len(split.inputs)
    kept = np.arange(min(rows, count)) * rows // min(rows, count)
    return _rows(split, kept)


def shorten(split: PairSplit, length: int, *, pad: int = 0) -> PairSplit:
    """Keep the examples whose inputs and targets have at most `length` ids, and cut the padding.

    For training on less padding. Leave the test part whole, or say that it is not.

    Args:
        split: examples.
        length: the most ids, special ones included.
        pad: the id of `PAD`.

    Raises:
        ValueError: no example is that short.
    """
    sides = (split.inputs, split.targets)
    kept = np.flatnonzero(np.all([(side != pad).sum(axis=1) <= length for side in sides], axis=0))
    if not len(kept):
        raise ValueError(f"No example has at most {length} ids. Choose a larger length.")
    few = _rows(split, kept)
    return few._replace(inputs=few.inputs[:, :length], targets=few.targets[:, :length])


def _rows(split: PairSplit, kept: np.ndarray) -> PairSplit:
    return PairSplit(
        split.inputs[kept],
        split.targets[kept],
        tuple(split.texts[row] for row in kept),
        tuple(split.references[row] for row in kept),
    )
