"""Synthetic texts for trying programs out without any download. They are no results.

`words` writes sentences by a small grammar in which verbs agree with their subjects; `pairs` spells
numbers out. Both are made in an instant and are the same on every machine.
"""

from pathlib import Path

import numpy as np

from experiments.data.partition import PARTS, part_of
from experiments.data.text_dataset import Sentences, TextPair, TextPairs

SENTENCES = 3000
_NOUNS = ("cat", "dog", "bird", "horse", "farmer", "child", "teacher", "baker")
_VERBS = ("see", "hear", "follow", "know", "like", "help")
_ADJECTIVES = ("small", "old", "young", "quiet", "quick", "kind")

_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def words(data_dir: Path | None = None) -> Sentences:
    """Sentences of a small grammar, each in one part only; it needs no `data_dir`."""
    del data_dir
    # The legacy generator: its stream is frozen, while that of `default_rng` may change with numpy.
    random = np.random.RandomState(0)
    parts: dict[str, list[list[str]]] = {name: [] for name in PARTS}
    for _ in range(SENTENCES):
        sentence = _sentence(random)
        parts[part_of(" ".join(sentence))].append(sentence)
    return Sentences(parts, "synthetic")


def _sentence(random: np.random.RandomState) -> list[str]:
    many = bool(random.randint(2))
    verb = _VERBS[random.randint(len(_VERBS))]
    subject, thing = _phrase(random, many), _phrase(random, bool(random.randint(2)))
    return [*subject, verb if many else f"{verb}s", *thing, "."]


def _phrase(random: np.random.RandomState, many: bool) -> list[str]:
    noun = _NOUNS[random.randint(len(_NOUNS))]
    noun = ("children" if noun == "child" else f"{noun}s") if many else noun
    adjectives = [_ADJECTIVES[random.randint(len(_ADJECTIVES))]] * random.randint(2)
    return ["the" if random.randint(2) else "some" if many else "a", *adjectives, noun]


def pairs(data_dir: Path | None = None) -> TextPairs:
    """The numbers 0 to 9,999 in digits, and in words; it needs no `data_dir`."""
    del data_dir
    parts: dict[str, list[TextPair]] = {name: [] for name in PARTS}
    for number in range(10_000):
        parts[part_of(str(number))].append(TextPair(str(number), (spell(number),)))
    return TextPairs(parts, "synthetic")


def spell(number: int) -> str:
    """A number from 0 to 9,999 in words.

    Examples:
        >>> spell(0), spell(47), spell(9015)
        ('zero', 'forty seven', 'nine thousand fifteen')
    """
    if number < 20:
        return _ONES[number]
    for unit, name in ((1000, "thousand"), (100, "hundred")):
        if number >= unit:
            many, rest = divmod(number, unit)
            return f"{spell(many)} {name}" + (f" {spell(rest)}" if rest else "")
    tens, ones = divmod(number, 10)
    return _TENS[tens - 2] + (f" {_ONES[ones]}" if ones else "")
