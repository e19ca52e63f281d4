"""World English Bible: running text for language modelling, word by word.

Source: the World English Bible with the deuterocanon, eBible.org, a modern English translation in
the public domain, as the SWORD module (version 426.0) that Debian packages. Call results on it "WEB
perplexity": it is no other benchmark's text.

Tokens are those of `tokens.tokenize`: lower-cased words with their inner hyphens and apostrophes,
numbers, and each punctuation mark for itself. Notes, titles and names of speakers are cut out.

Parts are whole chapters, in the order of reading, by the sha256 of the chapter's name; chapters
that share 16 words in a row (parallel histories) stay together. Verses of the validation and test
chapters whose words occur as a whole verse of another part ("Yahweh spoke to Moses, saying,") are
left out there, so that no verse is in two parts. Measured, with 10,000 tokens in the vocabulary and
`EOS` after each verse:

| part       | verses |  tokens |  `UNK` |
|------------|-------:|--------:|-------:|
| train      | 32,272 | 947,459 | 0.48 % |
| validation |  1,959 |  56,063 | 0.86 % |
| test       |  3,196 |  97,492 | 1.06 % |
"""

from collections.abc import Mapping
from pathlib import Path

from experiments.data import sword
from experiments.data.contents import verify
from experiments.data.lines import Record, line_set, read_lines
from experiments.data.packages import AptPackage, Package, joined
from experiments.data.partition import PARTS, chapter_groups, folded, part_of, without_repetitions
from experiments.data.stored import StoredSet
from experiments.data.text_dataset import Sentences
from experiments.data.tokens import tokenize


def web_stored_set(
    *,
    counts: Mapping[str, int],
    sha256: str,
    fingerprints: Mapping[str, str],
    package: Package,
) -> StoredSet:
    """Describe the World English Bible, or a smaller text that is published like it.

    Args:
        counts, fingerprints: as in `StoredSet`.
        sha256: of the module's files, one after the other in the order of their names.
        package: the registry package that carries `sword.FILES`.
    """

    def from_files(raw: Mapping[str, bytes]) -> dict[str, list[Record]]:
        verify(joined(raw), sha256, what="the whole of the World English Bible")
        return split_verses(sword.verses(raw))

    return line_set(
        name="web_words",
        builder="experiments.data.lines_builders:WebWords",
        counts=counts,
        fingerprints=fingerprints,
        package=package,
        package_files=sword.FILES,
        from_files=from_files,
        stand_in="toy_words",
    )


def split_verses(verses: list[sword.Verse]) -> dict[str, list[Record]]:
    """Verses that have words as records (chapter, number, text), by part."""
    whole = [verse for verse in verses if folded(verse.text)]
    groups = chapter_groups((verse.chapter, verse.text) for verse in whole)
    parts: dict[str, list[sword.Verse]] = {name: [] for name in PARTS}
    for verse in whole:
        parts[part_of(groups.name(verse.chapter))].append(verse)
    kept = without_repetitions(parts, {verse: (folded(verse.text),) for verse in whole})
    return {
        name: [(verse.chapter, str(verse.number), verse.text) for verse in each]
        for name, each in kept.items()
    }


WEB_WORDS = web_stored_set(
    counts={"train": 32_272, "validation": 1_959, "test": 3_196},
    sha256="db0520683a349423ed947838077a510575fd5664c006e1b68b703e0db4824a08",
    fingerprints={
        "train": "63338fd8c8288018aa93f249bff9a8e8eda6f3e0b0ee9c7128ff2bcdd4622cc5",
        "validation": "ca91ffbaa6315feef25f95c2af20d6f9c30f35fe96801039cd7623bbd96af6c7",
        "test": "1718289cc88e3302ff7f9ffe09525b7c714ec57b67efebe0f06a044e4117a6e3",
    },
    package=AptPackage(
        "sword-text-web", folder="usr/share/sword/modules/texts/ztext/engWEB2015eb", seconds=60
    ),
)


def read_web(web: StoredSet, data_dir: Path | None) -> Sentences:
    """Read verses from the first rung that has them, as tokens; see `stored.read_stored`.

    Raises:
        DataUnavailable: no rung could give them, or `data_dir` cannot be written.
    """
    records, source = read_lines(web, data_dir)
    return Sentences(
        {name: [tokenize(text) for _, _, text in each] for name, each in records.items()}, source
    )


def read(data_dir: Path | None = None) -> Sentences:
    """Read the World English Bible from the first rung that has it; see `read_web`.

    Returns:
        The tokens of 32,272 training, 1,959 validation and 3,196 test verses.

    Raises:
        DataUnavailable: no rung could give it, or `data_dir` cannot be written.
    """
    return read_web(WEB_WORDS, data_dir)
