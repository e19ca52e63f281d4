"""The tables of the sets of text, and the two ways in: `load_words` and `load_pairs`."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data import cmudict, toy_texts, verses, web_words
from experiments.data.lookup import look_up
from experiments.data.text_dataset import Pairs, PairSplit, Sentences, TextPair, TextPairs, Words
from experiments.data.tokens import tokenize
from experiments.data.vocabulary import (
    BOS,
    EOS,
    PAD,
    UNK,
    Vocabulary,
    choose_vocabulary,
    padded,
)

WORD_SPECIAL = (UNK, EOS)
PAIR_SPECIAL = (PAD, BOS, EOS, UNK)
VOCABULARY_SIZE = 10_000


class PairRow(NamedTuple):
    """How pairs are read, cut into tokens on both sides, and written again."""

    read: Callable[[Path | None], TextPairs]
    input_tokens: Callable[[str], Sequence[str]]
    target_tokens: Callable[[str], Sequence[str]]
    to_text: Callable[[Sequence[str]], str]


_WORDS: Mapping[str, Callable[[Path | None], Sentences]] = {
    "web_words": web_words.read,
    "toy_words": toy_texts.words,
}
_PAIRS: Mapping[str, PairRow] = {
    "cmudict": PairRow(cmudict.read, tuple, str.split, " ".join),
    "verses": PairRow(verses.read, tokenize, tokenize, verses.to_text),
    "toy_pairs": PairRow(toy_texts.pairs, tuple, str.split, " ".join),
}


def word_names() -> tuple[str, ...]:
    """The names that `load_words` knows.

    Examples:
        >>> word_names()
        ('web_words', 'toy_words')
    """
    return tuple(_WORDS)


def pair_names() -> tuple[str, ...]:
    """The names that `load_pairs` knows.

    Examples:
        >>> pair_names()
        ('cmudict', 'verses', 'toy_pairs')
    """
    return tuple(_PAIRS)


def load_words(
    name: str,
    *,
    vocabulary_size: int = VOCABULARY_SIZE,
    data_dir: str | os.PathLike[str] | None = None,
) -> Words:
    """Load running text for language modelling as streams of word ids.

    The vocabulary holds the most frequent tokens of the training part; others become `UNK`. An
    `EOS` ends each sentence, of web_words each verse. The same arguments give the same arrays,
    whichever rung of the ladder served them.

    Args:
        name: one of `word_names()`: "web_words", or "toy_words", a synthetic text for trying
            programs out.
        vocabulary_size: at most so many tokens, `UNK` and `EOS` included.
        data_dir: the tensorflow_datasets root to read and prepare in; by default
            `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`. A toy does not use it.

    Raises:
        ValueError: an unknown name, or too small a vocabulary.
        DataUnavailable: no rung could give the set, or `data_dir` cannot be written.

    Examples:
        >>> toy = load_words("toy_words")
        >>> " ".join(toy.vocabulary.decode(toy.train[:8]))
        'the quiet cat helps some quiet dogs .'
    """
    read = look_up(_WORDS, name, {"load_pairs": _PAIRS})
    parts, source = read(_path(data_dir))
    vocabulary = choose_vocabulary(parts["train"], vocabulary_size, WORD_SPECIAL)

    def stream(part: str) -> np.ndarray:
        return vocabulary.encode(token for each in parts[part] for token in (*each, EOS))

    return Words(name, stream("train"), stream("validation"), stream("test"), vocabulary, source)


def load_pairs(
    name: str,
    *,
    vocabulary_size: int = VOCABULARY_SIZE,
    data_dir: str | os.PathLike[str] | None = None,
) -> Pairs:
    """Load pairs of sequences as padded arrays of ids, with the texts they were made from.

    All parts are padded to the same lengths, those of the longest example. The vocabularies hold
    the most frequent tokens of the training part, chosen on each side; others become `UNK`.

    Args:
        name: one of `pair_names()`: "cmudict" (letters to phonemes), "verses" (English to
            Spanish words), or "toy_pairs" (digits to words), synthetic, for trying programs out.
        vocabulary_size: at most so many tokens on a side, the four special ones included.
        data_dir: as in `load_words`.

    Raises:
        ValueError: an unknown name, or too small a vocabulary.
        DataUnavailable: no rung could give the set, or `data_dir` cannot be written.

    Examples:
        >>> toy = load_pairs("toy_pairs")
        >>> toy.test.texts[0], toy.test.references[0]
        ('9', ('nine',))
        >>> toy.to_text(toy.target_vocabulary.sentence(toy.test.targets[0]))
        'nine'
    """
    row = look_up(_PAIRS, name, {"load_words": _WORDS})
    parts, source = row.read(_path(data_dir))
    inputs = {part: [row.input_tokens(each.text) for each in parts[part]] for part in parts}
    targets = {
        part: [row.target_tokens(each.references[0]) for each in parts[part]] for part in parts
    }
    vocabularies = [
        choose_vocabulary(side["train"], vocabulary_size, PAIR_SPECIAL)
        for side in (inputs, targets)
    ]
    lengths = [
        max(len(each) for part in side.values() for each in part) for side in (inputs, targets)
    ]

    def split(part: str) -> PairSplit:
        return _pair_split(parts[part], inputs[part], targets[part], vocabularies, lengths)

    return Pairs(
        name=name,
        train=split("train"),
        validation=split("validation"),
        test=split("test"),
        input_vocabulary=vocabularies[0],
        target_vocabulary=vocabularies[1],
        to_text=row.to_text,
        source=source,
    )


def _pair_split(
    pairs: Sequence[TextPair],
    inputs: Sequence[Sequence[str]],
    targets: Sequence[Sequence[str]],
    vocabularies: Sequence[Vocabulary],
    lengths: Sequence[int],
) -> PairSplit:
    input_ids = [vocabularies[0].encode((*tokens, EOS)) for tokens in inputs]
    target_ids = [vocabularies[1].encode((BOS, *tokens, EOS)) for tokens in targets]
    pad = PAIR_SPECIAL.index(PAD)
    return PairSplit(
        padded(input_ids, lengths[0] + 1, pad),
        padded(target_ids, lengths[1] + 2, pad),
        tuple(pair.text for pair in pairs),
        tuple(pair.references for pair in pairs),
    )


def _path(data_dir: str | os.PathLike[str] | None) -> Path | None:
    return None if data_dir is None else Path(data_dir).expanduser()
