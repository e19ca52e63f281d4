"""CMUdict: English words and how they are pronounced in North America, letters to phonemes.

Source: the Carnegie Mellon University Pronouncing Dictionary (a licence of the BSD kind), as its
Python package carries it. A phoneme is an ARPAbet symbol, vowels with their stress: "HH AH0 L OW1".

Words of the letters a to z and apostrophes only. A word is one example: its first pronunciation is
the training target, all of them are references, so that word accuracy may accept any.

Parts are by the sha256 of the word's family: a word and what is a word of the dictionary once an
ending ("s", "'s", "ed", "ing", "er", "ly", ...) or its apostrophes are taken off stay together, so
that no inflected form of a training word is tested. Words that only sound the same (bear, bare) may
still be in two parts. 106,065 training, 6,327 validation and 12,534 test words; those of the test
part have 13,458 references.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from experiments.data.contents import verify
from experiments.data.lines import Record, line_set, read_lines
from experiments.data.packages import Package, PipPackage
from experiments.data.partition import PARTS, Groups, part_of
from experiments.data.stored import StoredSet
from experiments.data.text_dataset import TextPair, TextPairs

FILE = "cmudict.dict"

_WORD = re.compile(r"[a-z']*[a-z][a-z']*")
_VARIANT = re.compile(r"\(\d+\)$")
_SHORTEST = 3  # letters of a stem: taking off more would join words at random
_ENDINGS = (
    *("'s", "s'", "'", "s", "es", "ed", "d", "ing", "ings", "er", "ers", "r", "rs", "est", "st"),
    *("ly", "ness", "ment", "ments"),
)


def cmudict_stored_set(
    *,
    counts: Mapping[str, int],
    sha256: str,
    fingerprints: Mapping[str, str],
    package: Package,
) -> StoredSet:
    """Describe CMUdict, or a smaller dictionary that is published like it.

    Args:
        counts, fingerprints: as in `StoredSet`.
        sha256: of the dictionary's file.
        package: the registry package that carries `FILE`.
    """

    def from_files(raw: Mapping[str, bytes]) -> dict[str, list[Record]]:
        verify(raw[FILE], sha256, what=FILE)
        return split_words(pronunciations(raw[FILE].decode()))

    return line_set(
        name="cmudict",
        builder="experiments.data.lines_builders:Cmudict",
        counts=counts,
        fingerprints=fingerprints,
        package=package,
        package_files=(FILE,),
        from_files=from_files,
        stand_in="toy_pairs",
    )


def pronunciations(dictionary: str) -> dict[str, list[str]]:
    """All pronunciations of each word of letters and apostrophes, in the dictionary's order.

    Examples:
        >>> pronunciations("abbe AE1 B IY0\\nabbe(2) AE0 B EY1 # french\\na.m. EY2 EH1 M")
        {'abbe': ['AE1 B IY0', 'AE0 B EY1']}
    """
    found: dict[str, list[str]] = {}
    for line in dictionary.splitlines():
        head, _, phonemes = line.partition("#")[0].strip().partition(" ")
        word = _VARIANT.sub("", head)
        if _WORD.fullmatch(word):
            spoken = " ".join(phonemes.split())
            if spoken not in found.setdefault(word, []):
                found[word].append(spoken)
    return found


def families(words: Iterable[str]) -> Groups:
    """Join each word with those that it is a form of."""
    known = set(words)
    groups = Groups()
    for word in known:
        for stem in _stems(word):
            if len(stem) >= _SHORTEST and stem in known:
                groups.join(word, stem)
    return groups


def _stems(word: str) -> Iterator[str]:
    """What a word may be a form of: "carries" of "carri", "carrie" and "carry"."""
    yield word.replace("'", "")
    for ending in _ENDINGS:
        if not word.endswith(ending):
            continue
        stem = word.removesuffix(ending)
        yield stem
        if ending[0] in "ei":
            yield stem + "e"  # making, make
            if stem[-1:] == stem[-2:-1]:
                yield stem[:-1]  # stopped, stop
        if stem.endswith("i"):
            yield stem[:-1] + "y"  # carried, carry


def split_words(dictionary: Mapping[str, list[str]]) -> dict[str, list[Record]]:
    """Records (word, pronunciation, ...) by part, in alphabetical order."""
    groups = families(dictionary)
    parts: dict[str, list[Record]] = {name: [] for name in PARTS}
    for word in sorted(dictionary):
        parts[part_of(groups.name(word))].append((word, *dictionary[word]))
    return parts


CMUDICT = cmudict_stored_set(
    counts={"train": 106_065, "validation": 6_327, "test": 12_534},
    sha256="81917843c7f44ce2b094ac63873c2c7a4cf802040792c455ba3ca406891c3d22",
    fingerprints={
        "train": "e886fd36b9f97374a7ba4333f0ccbf6e584985f679c17c55fc1604e8e226b265",
        "validation": "00ac39cb3d0ec71050da0526028844ddeeb8abc0c6f455e4ec52eee0bf285540",
        "test": "0b516fc6ce4b0188a82a8a096c45b979ade6d049bb91eb66a4e31b7513ca63fa",
    },
    package=PipPackage("cmudict", "1.1.3", folder="cmudict/data", seconds=60),
)


def read_cmudict(cmudict: StoredSet, data_dir: Path | None) -> TextPairs:
    """Read words from the first rung that has them; see `stored.read_stored`.

    Raises:
        DataUnavailable: no rung could give them, or `data_dir` cannot be written.
    """
    records, source = read_lines(cmudict, data_dir)
    return TextPairs(
        {
            name: [TextPair(word, tuple(spoken)) for word, *spoken in each]
            for name, each in records.items()
        },
        source,
    )


def read(data_dir: Path | None = None) -> TextPairs:
    """Read CMUdict from the first rung that has it; see `read_cmudict`.

    Returns:
        106,065 training, 6,327 validation and 12,534 test words, letters to phonemes.

    Raises:
        DataUnavailable: no rung could give it, or `data_dir` cannot be written.
    """
    return read_cmudict(CMUDICT, data_dir)
