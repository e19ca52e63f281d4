"""Verses in English and Spanish: sentence pairs for translation.

Sources: the King James Version and the Reina-Valera of 1909, eBible.org, both in the public
domain, as the SWORD modules (versions 14.3 and 2.60) that Debian packages. Both stand on one grid
of verses, so pairs come from their places; pairs with an empty side are left out.

Parts are whole chapters by the sha256 of the chapter's name; chapters that share 16 words in a row
in either language (parallel histories) stay together. Pairs of the validation and test chapters
whose English or Spanish words occur as a whole verse of another part are left out there.

Tokens are those of `tokens.tokenize`, lower-cased on both sides. References keep the raw text:
`sacrebleu.corpus_bleu(hypotheses, [references], lowercase=True)` on outputs that `Pairs.to_text`
wrote; it writes every reference back from its tokens without a fault. An unknown word is written as
one sign, which matches nothing, so a limited vocabulary bounds the BLEU. Measured, with 10,000
tokens in each vocabulary:

| part       |  pairs | English `UNK` | Spanish `UNK` |
|------------|-------:|--------------:|--------------:|
| train      | 26,750 |        0.26 % |        2.86 % |
| validation |  1,840 |        0.87 % |        4.08 % |
| test       |  2,471 |        0.99 % |        4.30 % |
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from experiments.data import sword
from experiments.data.contents import verify
from experiments.data.lines import Record, line_set, read_lines
from experiments.data.packages import AptPackage, Package, PackageGroup, joined
from experiments.data.partition import PARTS, chapter_groups, folded, part_of, without_repetitions
from experiments.data.stored import StoredSet
from experiments.data.text_dataset import TextPair, TextPairs
from experiments.data.tokens import detokenize
from experiments.data.vocabulary import UNK

LANGUAGES = ("english", "spanish")
UNKNOWN = "\u2047"  # a double question mark: `UNK` itself would count as three tokens of a BLEU


def verse_stored_set(
    *,
    counts: Mapping[str, int],
    sha256: Mapping[str, str],
    fingerprints: Mapping[str, str],
    packages: Mapping[str, Package],
) -> StoredSet:
    """Describe the verse pairs, or a smaller set that is published like them.

    Args:
        counts, fingerprints: as in `StoredSet`.
        sha256: by language, of the module's files, one after the other in the order of their names.
        packages: by language, the registry package that carries `sword.FILES`.
    """

    def from_files(raw: Mapping[str, bytes]) -> dict[str, list[Record]]:
        texts = []
        for language in LANGUAGES:
            files = {name: raw[f"{language}/{name}"] for name in sword.FILES}
            verify(joined(files), sha256[language], what=f"the whole of the {language} verses")
            texts.append(sword.verses(files))
        return split_pairs(zip_verses(*texts))

    return line_set(
        name="verses",
        builder="experiments.data.lines_builders:Verses",
        counts=counts,
        fingerprints=fingerprints,
        package=PackageGroup(tuple((language, packages[language]) for language in LANGUAGES)),
        package_files=tuple(f"{language}/{name}" for language in LANGUAGES for name in sword.FILES),
        from_files=from_files,
        stand_in="toy_pairs",
    )


def zip_verses(english: list[sword.Verse], spanish: list[sword.Verse]) -> list[Record]:
    """Records (verse, English, Spanish) of the places that have words on both sides.

    Raises:
        ValueError: the two do not stand on the same grid.
    """
    grids = [[verse[:2] for verse in verses] for verses in (english, spanish)]
    if grids[0] != grids[1]:
        raise ValueError(
            f"The two translations must stand on one grid of verses, got {len(grids[0])} and "
            f"{len(grids[1])} verses that differ in their places. Take modules of one grid."
        )
    return [
        (f"{one.chapter}.{one.number}", one.text, other.text)
        for one, other in zip(english, spanish, strict=True)
        if folded(one.text) and folded(other.text)
    ]


def split_pairs(pairs: list[Record]) -> dict[str, list[Record]]:
    """Records (verse, English, Spanish) by part."""
    chapters = [verse.rpartition(".")[0] for verse, _, _ in pairs]
    groups = chapter_groups(
        (chapter, text)
        for side in (1, 2)
        for chapter, text in zip(chapters, (pair[side] for pair in pairs), strict=True)
    )
    parts: dict[str, list[Record]] = {name: [] for name in PARTS}
    for chapter, pair in zip(chapters, pairs, strict=True):
        parts[part_of(groups.name(chapter))].append(pair)
    keys = {pair: [(side, folded(pair[side])) for side in (1, 2)] for pair in pairs}
    return without_repetitions(parts, keys)


def to_text(tokens: Iterable[str]) -> str:
    """Write tokens as `tokens.detokenize` does, and `UNK` as `UNKNOWN`."""
    return detokenize(UNKNOWN if token == UNK else token for token in tokens)


_FOLDER = "usr/share/sword/modules/texts/ztext"

VERSES = verse_stored_set(
    counts={"train": 26_750, "validation": 1_840, "test": 2_471},
    sha256={
        "english": "ac800b680f13b69003cd0180c270d2bd106c0a7990ae6816de8de4e2aaec14d0",
        "spanish": "928582030f7a0f24b0758cb223011c0c9c478972221a508c08435b50f2127e21",
    },
    fingerprints={
        "train": "9110223461b33044c61f542383d61f07a3cfc899c3ae1b0b8b17978e8c80326b",
        "validation": "25db449d934c18a3267a37217e8b4367409a87cadddb71d8a5eee8712c031af6",
        "test": "18e88244221cea161c1f67dd050374f1e394bbda8cda64c957b269728b2aac39",
    },
    packages={
        "english": AptPackage("sword-text-kjv", folder=f"{_FOLDER}/engKJV2006eb", seconds=60),
        "spanish": AptPackage("sword-text-sparv", folder=f"{_FOLDER}/spaRV1909eb", seconds=60),
    },
)


def read_verses(verses: StoredSet, data_dir: Path | None) -> TextPairs:
    """Read verse pairs from the first rung that has them; see `stored.read_stored`.

    Raises:
        DataUnavailable: no rung could give them, or `data_dir` cannot be written.
    """
    records, source = read_lines(verses, data_dir)
    return TextPairs(
        {
            name: [TextPair(english, (spanish,)) for _, english, spanish in each]
            for name, each in records.items()
        },
        source,
    )


def read(data_dir: Path | None = None) -> TextPairs:
    """Read the verse pairs from the first rung that has them; see `read_verses`.

    Returns:
        26,750 training, 1,840 validation and 2,471 test pairs, English to Spanish.

    Raises:
        DataUnavailable: no rung could give them, or `data_dir` cannot be written.
    """
    return read_verses(VERSES, data_dir)
