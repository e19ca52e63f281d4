"""Tokens as numbers: a vocabulary that is chosen from the training part, and padded arrays."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

PAD = "<pad>"
BOS = "<bos>"
EOS = "<eos>"
UNK = "<unk>"


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a text, by number.

    Attributes:
        tokens: the token of each id in [0, V); one of them is `UNK`.
    """

    tokens: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each token."""
        return {token: place for place, token in enumerate(self.tokens)}

    def encode(self, tokens: Iterable[str]) -> np.ndarray:
        """The ids of tokens, int32 [T]; a token that is not in the vocabulary becomes `UNK`."""
        unknown = self.ids[UNK]
        return np.array([self.ids.get(token, unknown) for token in tokens], dtype=np.int32)

    def decode(self, ids: Iterable[int]) -> list[str]:
        """The tokens of ids, special ones too."""
        return [self.tokens[int(place)] for place in ids]

    def sentence(self, ids: Iterable[int]) -> list[str]:
        """The tokens of one padded row or one output: those before the first `EOS`.

        `PAD` and `BOS` are left out.

        Examples:
            >>> letters = Vocabulary((PAD, BOS, EOS, UNK, "a", "b"))
            >>> letters.sentence([1, 4, 3, 5, 2, 4, 0])
            ['a', '<unk>', 'b']
        """
        found = []
        for token in self.decode(ids):
            if token == EOS:
                break
            if token not in (PAD, BOS):
                found.append(token)
        return found


def choose_vocabulary(
    sentences: Iterable[Iterable[str]], size: int, special: tuple[str, ...]
) -> Vocabulary:
    """The special tokens, then the most frequent tokens of the sentences.

    Args:
        sentences: of the training part, and of no other.
        size: at most so many tokens, the special ones included.
        special: the tokens that come first; `UNK` is among them.

    Returns:
        Tokens by falling frequency; equally frequent ones in alphabetical order.

    Raises:
        ValueError: `size` leaves no room for a token beside the special ones.

    Examples:
        >>> choose_vocabulary(["abc", "cb", "c"], 4, (UNK, EOS)).tokens
        ('<unk>', '<eos>', 'c', 'b')
    """
    room = size - len(special)
    if room < 1:
        raise ValueError(
            f"vocabulary_size must be more than the {len(special)} special tokens "
            f"({', '.join(special)}), got {size}."
        )
    counts = Counter(token for sentence in sentences for token in sentence)
    common = sorted(counts, key=lambda token: (-counts[token], token))[:room]
    return Vocabulary((*special, *common))


def padded(rows: Sequence[np.ndarray], length: int, pad: int) -> np.ndarray:
    """Rows of ids, each filled up with `pad` at its end: int32 [N, length]."""
    whole = np.full((len(rows), length), pad, dtype=np.int32)
    for place, row in zip(whole, rows, strict=True):
        place[: len(row)] = row
    return whole
