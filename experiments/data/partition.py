"""Parts that share nothing: what belongs together falls into one part, chosen by its hash."""

import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from experiments.data.tokens import tokenize

PARTS = ("train", "validation", "test")
TEST_FRACTION = 0.10
VALIDATION_FRACTION = 0.05
RUN = 16  # words that two chapters share in a row before they count as one passage

T = TypeVar("T", bound=Hashable)


def part_of(key: str) -> str:
    """The part of a key: "train" (85 %), "validation" (5 %) or "test" (10 %), by its sha256.

    Examples:
        >>> [part_of(chapter) for chapter in ("Gen.1", "Gen.2", "Gen.3")]
        ['validation', 'train', 'train']
    """
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    if place < TEST_FRACTION:
        return "test"
    return "validation" if place < TEST_FRACTION + VALIDATION_FRACTION else "train"


class Groups:
    """Keys that are joined into groups; a group is named by its smallest key."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}

    def name(self, key: str) -> str:
        """The smallest key of the key's group; a key that was never joined is a group."""
        parent = self._parents.setdefault(key, key)
        while parent != key:
            # Halving the path: every second key on it then points two further.
            above = self._parents[parent]
            self._parents[key] = above
            key, parent = parent, above
        return key

    def join(self, key: str, other: str) -> None:
        """Make one group of the groups of two keys."""
        first, second = sorted((self.name(key), self.name(other)))
        self._parents[second] = first


def chapter_groups(passages: Iterable[tuple[str, str]], run: int = RUN) -> Groups:
    """Join chapters that tell the same in the same words.

    Args:
        passages: (chapter, text), in the order of reading.
        run: chapters that share so many words in a row, in one passage, belong together.
    """
    groups = Groups()
    seen: dict[tuple[str, ...], str] = {}
    for chapter, text in passages:
        words = folded(text)
        for start in range(len(words) - run + 1):
            first = seen.setdefault(words[start : start + run], chapter)
            if first != chapter:
                groups.join(first, chapter)
    return groups


def folded(text: str) -> tuple[str, ...]:
    """The lower-cased words of a text without its punctuation: equal for the same words."""
    return tuple(token for token in tokenize(text) if token[0].isalnum())


def without_repetitions(
    parts: Mapping[str, Sequence[T]], keys: Mapping[T, Sequence[Hashable]]
) -> dict[str, list[T]]:
    """Drop from the test part what training shows too, and from validation what either shows.

    Args:
        parts: examples by part; the training part is kept whole.
        keys: what makes an example a repetition: one of its keys occurs elsewhere.
    """
    kept: dict[str, list[T]] = {"train": list(parts["train"])}
    seen = {key for example in kept["train"] for key in keys[example]}
    for name in ("test", "validation"):
        kept[name] = [each for each in parts[name] if seen.isdisjoint(keys[each])]
        seen |= {key for example in kept[name] for key in keys[example]}
    return {name: kept[name] for name in PARTS}
