"""WordPiece as BERT's uncased models use it (Devlin et al. 2019): text to numbers of pieces.

Control characters are dropped, accents taken off, letters lower-cased; words end at white space,
and every punctuation mark and every Chinese character is a word. A word is cut from its beginning
into the longest pieces of the vocabulary, those inside of a word written with `##`; a word that
cannot be cut so, or is longer than 100 characters, is `[UNK]`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

PAD, UNKNOWN, BEGIN, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
_LONGEST = 100
_CHINESE = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F)),
    *((0x2B740, 0x2B81F), (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)


def vocabulary(content: bytes) -> dict[str, int]:
    """Numbers by piece, from a file of one piece a line."""
    return {piece: i for i, piece in enumerate(content.decode().splitlines())}


def words(text: str) -> list[str]:
    """Lower-cased words without accents; every punctuation mark for itself.

    Examples:
      >>> words("Chloë didn't.")
      ['chloe', 'didn', "'", 't', '.']
    """
    return "".join(_spelled(text)).split()


def _spelled(text: str) -> Iterator[str]:
    spaced = "".join(f" {c} " if _chinese(c) else c for c in text if not _dropped(c))
    for character in unicodedata.normalize("NFD", spaced):
        if unicodedata.category(character) != "Mn":
            lower = character.lower()
            yield f" {lower} " if _punctuation(character) else lower


def _dropped(character: str) -> bool:
    kind = unicodedata.category(character)
    return character == "\ufffd" or (kind[0] == "C" and character not in "\t\n\r")


def _punctuation(character: str) -> bool:
    # Of ASCII all marks count, also those that Unicode calls symbols, as "$" and "^".
    if character < "\x80":
        return character.isprintable() and not character.isalnum() and character != " "
    return unicodedata.category(character)[0] == "P"


def _chinese(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _CHINESE)


def pieces(word: str, known: Mapping[str, int]) -> list[str]:
    """The pieces of a word.

    Examples:
      >>> known = dict.fromkeys(["un", "##want", "##able", "##a", "##ed"], 0)
      >>> pieces("unwantable", known), pieces("unwanting", known)
      (['un', '##want', '##able'], ['[UNK]'])
    """
    found: list[str] = []
    start = 0
    while start < len(word) <= _LONGEST:
        ends = range(len(word), start, -1)
        marked = ("##" * (start > 0) + word[start:end] for end in ends)
        piece = next((piece for piece in marked if piece in known), None)
        if piece is None:
            return [UNKNOWN]
        found.append(piece)
        start += len(piece) - 2 * (start > 0)
    return found or [UNKNOWN]


def numbers(text: str, known: Mapping[str, int]) -> list[int]:
    """The numbers of a text's pieces between those of `[CLS]` and `[SEP]`."""
    inside = [piece for word in words(text) for piece in pieces(word, known)]
    return [known[piece] for piece in (BEGIN, *inside, END)]


def padded(rows: Sequence[Sequence[int]], length: int, pad: int) -> np.ndarray:
    """Rows of numbers as int32 [N, length].

    Raises:
      ValueError: one is longer.
    """
    longest = max(map(len, rows))
    if longest > length:
        raise ValueError(f"Rows must have at most {length} pieces, got one of {longest}.")
    table = np.full((len(rows), length), pad, np.int32)
    for own, row in zip(table, rows, strict=True):
        own[: len(row)] = row
    return table
