"""Modules of the SWORD project: compressed Bible texts on a grid of verses ("ztext").

A testament ("ot", "nt") has three files of little-endian records. `bzs`: (offset, size, -) of each
zlib block in `bzz`. `bzv`: (block, offset, length) of each place of the grid, where a place is a
heading (of the module, a book or a chapter) or a verse. The text is OSIS, a markup of XML tags.
"""

import html
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from experiments.data.tokens import tidy

TESTAMENTS = ("ot", "nt")
FILES = tuple(f"{testament}.{kind}" for testament in TESTAMENTS for kind in ("bzs", "bzv", "bzz"))

_CHAPTER = re.compile(r'<chapter\b[^>]*\sosisID="([^"]*)"\s+sID=')
_BOOK = re.compile(r'<div\b[^>]*\ssID="[^"]*"\s+type="(?:book|front)"|"x-usfm-h"|"x-importer"')
_APPARATUS = re.compile(r"<(note|title|speaker)\b(?:[^>]*/>|.*?</\1\s*>)", re.DOTALL)
# Tags that stand inside of words, or wrap them without taking their spaces.
_INLINE = re.compile(r"</?(?:w|divineName|q|seg|name|foreign|hi)\b[^>]*>")
_TAG = re.compile(r"<[^>]*>")
_LEFTOVER = re.compile(r"\\[a-z]+\b|¶")  # USFM marks that the makers' converter left in


class Verse(NamedTuple):
    """A verse of the grid.

    Attributes:
        chapter: such as "Gen.1".
        number: its place in the chapter, from 1.
        text: without markup; empty where the translation has no such verse.
    """

    chapter: str
    number: int
    text: str


def verses(files: Mapping[str, bytes]) -> list[Verse]:
    """The verses of a module, in its order.

    A place that starts more than one chapter is no verse, and is left out with them: in the World
    English Bible that is the Greek Daniel, which repeats Daniel.

    Args:
        files: contents by name, `FILES`.

    Raises:
        ValueError: the files do not fit together.
    """
    found: list[Verse] = []
    for testament in TESTAMENTS:
        chapter, number = "", 0
        for place in _places(files, testament):
            started = _CHAPTER.findall(place)
            if started or _BOOK.search(place):
                chapter, number = started[0] if len(started) == 1 else "", 0
            elif chapter:
                number += 1
                found.append(Verse(chapter, number, plain(place)))
    return found


def plain(osis: str) -> str:
    """The words of a verse: notes, titles and names of speakers cut out, tags taken off.

    Examples:
        >>> plain('<w lemma="x">God</w><note>Or: gods</note><w>made</w> it <title>I</title>.')
        'God made it.'
    """
    text = _TAG.sub(" ", _INLINE.sub("", _APPARATUS.sub(" ", osis)))
    return tidy(_LEFTOVER.sub(" ", html.unescape(text)))


def _places(files: Mapping[str, bytes], testament: str) -> Iterator[str]:
    index, grid, packed = (files[f"{testament}.{kind}"] for kind in ("bzs", "bzv", "bzz"))
    try:
        blocks = [
            zlib.decompress(packed[offset : offset + size])
            for offset, size, _ in struct.iter_unpack("<III", index)
        ]
        for block, offset, length in struct.iter_unpack("<IIH", grid):
            content = blocks[block][offset : offset + length] if length else b""
            if len(content) != length:
                raise IndexError(f"a verse of {length} bytes has only {len(content)}")
            yield content.decode()
    except (struct.error, zlib.error, IndexError, UnicodeDecodeError) as error:
        raise ValueError(
            f"the {testament} files of the SWORD module do not fit together ({error}). "
            "Fetch the package again."
        ) from error
