"""Laws of the Bible texts: the compressed modules, their markup, their parts, and the ladder."""

import struct
import zlib

import numpy as np
import pytest
from tiny_set import leftovers, sha256

from experiments import data
from experiments.data import packages, stored, sword, verses, web_words
from experiments.data.contents import canonical
from experiments.data.lines import to_lines
from experiments.data.packages import AptPackage, joined
from experiments.data.partition import PARTS, folded, part_of
from experiments.data.sword import Verse
from experiments.data.tokens import tokenize


def in_two(found):
    """What occurs in more than one of three sets."""
    one, two, three = found
    return (one & two) | (one & three) | (two & three)


MODULE = '<milestone type="x-importer" subType="x-osis2mod"/>'


def book(name):
    return f'<div canonical="true" osisID="{name}" sID="gen2" type="book"/> <title>{name}</title>'


def chapter(name):
    return f'<chapter n="1" osisID="{name}" sID="{name}"/> '


def ztext(old, new=()):
    """A module's files whose testaments have these places, two of them in each block."""
    files = {}
    for testament, places in (("ot", old), ("nt", new)):
        index, grid, packed = b"", struct.pack("<IIH", 0, 0, 0), b""
        for block, start in enumerate(range(0, len(places), 2)):
            texts = [place.encode() for place in places[start : start + 2]]
            content = zlib.compress(b"".join(texts))
            index += struct.pack("<III", len(packed), len(content), sum(map(len, texts)))
            packed += content
            offset = 0
            for text in texts:
                grid += struct.pack("<IIH", block, offset, len(text))
                offset += len(text)
        files |= {f"{testament}.bzs": index, f"{testament}.bzv": grid, f"{testament}.bzz": packed}
    return files


# --- modules ---


def test_a_module_that_was_written_is_read_back_without_its_headings():
    old = [MODULE, book("Gen"), chapter("Gen.1"), "One.", "Two.", chapter("Gen.2"), "", "Óne."]
    end = '<chapter eID="gen5" osisID="Gen.2"/> <div eID="gen2" osisID="Gen" type="book"/>'
    new = [MODULE, book("Matt"), chapter("Matt.1"), "Three.", f"Last. {end}", book("Mark")]
    assert sword.verses(ztext(old, new)) == [
        Verse("Gen.1", 1, "One."),
        Verse("Gen.1", 2, "Two."),
        Verse("Gen.2", 1, ""),
        Verse("Gen.2", 2, "Óne."),
        Verse("Matt.1", 1, "Three."),
        Verse("Matt.1", 2, "Last."),
    ]


def test_a_place_of_several_chapters_is_no_verse():
    old = [chapter("A.1"), "one", chapter("B.1") + "two" + chapter("B.2") + "three", "four"]
    assert sword.verses(ztext(old)) == [Verse("A.1", 1, "one")]


@pytest.mark.parametrize(
    ("osis", "text"),
    [
        ('In <w lemma="strong:H1">God</w>, <w>made</w>', "In God, made"),
        ("<w>shoe\u2019s</w> <q who='x'>“<w>Go</w>”</q>", "shoe\u2019s “Go”"),
        (
            'God<note placement="foot"><reference>1:1 </reference>Or gods</note><w>made</w>',
            "God made",
        ),
        (
            "<title type='x'>A psalm</title>Praise <divineName><w>LORD</w></divineName>s",
            "Praise LORDs",
        ),
        ("<speaker>Beloved</speaker>Come<note n='a'/>", "Come"),
        ("para siempre<transChange type='added'>es</transChange>su", "para siempre es su"),
        ("la (<transChange>dijo ella</transChange> ) , <lb/> ¿ no ?", "la (dijo ella), ¿no?"),
        ("¶ the \\nd LORD &amp; he", "the LORD & he"),
        ('<div type="x-milestone" sID="pv1"/><div sID="gen4" type="x-p"/> And', "And"),
        ("<title>One</title> two <title>three</title>", "two"),
    ],
)
def test_markup_notes_and_titles_are_cut_out(osis, text):
    assert sword.plain(osis) == text


def cut_grid(files):
    files["ot.bzv"] = files["ot.bzv"][:-3]


def cut_text(files):
    files["ot.bzz"] = files["ot.bzz"][:-3]


def other_block(files):
    files["ot.bzv"] += struct.pack("<IIH", 99, 0, 5)


def too_long(files):
    files["ot.bzv"] += struct.pack("<IIH", 0, 0, 60_000)


@pytest.mark.parametrize("damage", [cut_grid, cut_text, other_block, too_long])
def test_files_that_do_not_fit_together_are_refused(damage):
    files = ztext([chapter("A.1"), "one", "two"])
    damage(files)
    with pytest.raises(ValueError, match="ot files of the SWORD module do not fit together"):
        sword.verses(files)


# --- parts ---

CHAPTERS = tuple(f"Gen.{number}" for number in range(1, 41))
LONG = (
    "these sixteen words stand in two chapters which therefore belong together in one of the parts"
)


def english(number):
    return [f"Words of <w>chapter</w> {number}, first.", "And the Lord spake,", f"More {number}"]


def spanish(number):
    return [f"Palabras del capítulo {number}.", "Y el Señor habló,", f"Más {number}"]


def module(texts, shared=()):
    """A module of 40 chapters; those of `shared` tell the same in a fourth verse."""
    places = [MODULE, book("Gen")]
    for number, name in enumerate(CHAPTERS, start=1):
        last = [f"{LONG}, {number}" if name in shared else f"the end of {number}"]
        places += [chapter(name), *texts(number), *last]
    return ztext(places)


def test_the_whole_of_a_chapter_is_in_one_part_and_no_verse_in_two():
    parts = web_words.split_verses(sword.verses(module(english)))
    assert tuple(parts) == PARTS
    for name, records in parts.items():
        assert records
        assert all(part_of(each[0]) == name for each in records)
        assert records == sorted(records, key=lambda each: (CHAPTERS.index(each[0]), int(each[1])))
    found = [{folded(text) for _, _, text in parts[name]} for name in PARTS]
    assert not in_two(found)
    # Four verses a chapter; the formula stays in training, once in each of its chapters.
    spoken = [sum(text == "And the Lord spake," for _, _, text in parts[name]) for name in PARTS]
    assert spoken == [len(parts["train"]) // 4, 0, 0]
    assert sum(map(len, parts.values())) == 4 * 40 - (40 - spoken[0])


def test_chapters_that_share_a_passage_are_in_one_part():
    by_part = {name: [each for each in CHAPTERS if part_of(each) == name] for name in PARTS}
    pair = (by_part["train"][0], by_part["test"][0])
    parts = web_words.split_verses(sword.verses(module(english, shared=pair)))
    home = {each[0]: name for name in PARTS for each in parts[name]}
    assert home[pair[0]] == home[pair[1]] == part_of(min(pair))
    assert all(home[each] == part_of(each) for each in CHAPTERS if each not in pair)


def test_pairs_come_from_one_grid_and_empty_sides_are_left_out():
    one = [Verse("A.1", 1, "one"), Verse("A.1", 2, ""), Verse("A.1", 3, "three")]
    other = [Verse("A.1", 1, "uno"), Verse("A.1", 2, "dos"), Verse("A.1", 3, "...")]
    assert verses.zip_verses(one, other) == [("A.1.1", "one", "uno")]
    with pytest.raises(ValueError, match="one grid of verses, got 3 and 2"):
        verses.zip_verses(one, other[:2])
    with pytest.raises(ValueError, match="differ in their places"):
        verses.zip_verses(one, [*other[:2], Verse("A.2", 1, "tres")])


def test_no_side_of_a_pair_is_in_two_parts():
    pairs = verses.zip_verses(sword.verses(module(english)), sword.verses(module(spanish)))
    parts = verses.split_pairs(pairs)
    for side in (1, 2):
        found = [{folded(pair[side]) for pair in parts[name]} for name in PARTS]
        assert all(found)
        assert not in_two(found)
    assert all(part_of(verse.rpartition(".")[0]) == name for name in PARTS
               for verse, _, _ in parts[name])  # fmt: skip
    assert parts == verses.split_pairs(pairs)


def test_an_unknown_word_is_written_as_one_sign():
    assert verses.to_text(["y", "<unk>", ",", "no"]) == "y \u2047, no"


# --- the ladder ---


def facts(parts):
    return {
        "counts": {name: len(each) for name, each in parts.items()},
        "fingerprints": {name: canonical(each)[1] for name, each in to_lines(parts).items()},
    }


@pytest.fixture
def registry(no_network, monkeypatch):
    """Tiny modules that the apt packages "web", "kjv" and "rv" carry."""
    for needed in ("tensorflow_datasets", "array_record"):
        pytest.importorskip(needed)
    held = {"web": module(english), "kjv": module(english), "rv": module(spanish)}
    monkeypatch.setattr(
        packages.AptPackage, "files", lambda package, names, **options: held[package.name]
    )
    return held


def tiny_web(held, checksum=None):
    parts = web_words.split_verses(sword.verses(held["web"]))
    return web_words.web_stored_set(
        **facts(parts),
        sha256=checksum or sha256(joined(held["web"])),
        package=AptPackage("web", folder="x"),
    )


def test_running_text_comes_back_in_its_order_from_package_and_prepared(registry, tmp_path):
    web = tiny_web(registry)
    first, again = (web_words.read_web(web, tmp_path) for _ in range(2))
    assert (first.source, again.source) == ("package", "prepared")
    assert first.parts == again.parts
    expected = web_words.split_verses(sword.verses(registry["web"]))
    assert first.parts == {
        name: [tokenize(text) for _, _, text in each] for name, each in expected.items()
    }
    assert leftovers(tmp_path) == []


def test_verse_pairs_come_back_with_their_raw_references(registry, tmp_path):
    pairs = verses.zip_verses(sword.verses(registry["kjv"]), sword.verses(registry["rv"]))
    parts = verses.split_pairs(pairs)
    tiny = verses.verse_stored_set(
        **facts(parts),
        sha256={
            "english": sha256(joined(registry["kjv"])),
            "spanish": sha256(joined(registry["rv"])),
        },
        packages={"english": AptPackage("kjv", "x"), "spanish": AptPackage("rv", "x")},
    )
    first, again = (verses.read_verses(tiny, tmp_path) for _ in range(2))
    assert (first.source, again.source) == ("package", "prepared")
    assert first.parts == again.parts
    assert first.parts["test"] == [
        (english_, (spanish_,)) for _, english_, spanish_ in parts["test"]
    ]
    assert any("Palabras del capítulo" in pair.references[0] for pair in first.parts["test"])


def test_a_text_with_a_wrong_checksum_is_refused_with_both_sums(registry, tmp_path):
    right, wrong = sha256(joined(registry["web"])), sha256(b"else")
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(data.DataUnavailable, match="World English Bible has the wrong") as caught,
    ):
        web_words.read_web(tiny_web(registry, wrong), tmp_path)
    assert f"expected {wrong}, got {right}" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("load", "toy"),
    [
        (lambda root: data.load_words("web_words", data_dir=root), "toy_words"),
        (lambda root: data.load_pairs("verses", data_dir=root), "toy_pairs"),
    ],
)
def test_without_a_registry_the_places_and_the_toy_are_named(no_network, tmp_path, load, toy):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(data.DataUnavailable) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert "1. prepared directory" in message
    assert "2. apt package sword-text-" in message
    assert f"`{toy}` needs no download" in message


# --- the real texts ---


def prepared_here(name):
    if not (stored.default_root() / name).exists():
        pytest.skip("not prepared here")


@pytest.mark.slow
def test_the_prepared_words_have_the_documented_numbers_and_no_verse_in_two_parts():
    prepared_here("web_words")
    words = data.load_words("web_words", vocabulary_size=1_000_000)
    streams = (words.train, words.validation, words.test)
    assert [len(stream) for stream in streams] == [947_459, 56_063, 97_492]
    assert [int((stream == 1).sum()) for stream in streams] == [32_272, 1_959, 3_196]
    small = data.load_words("web_words")
    assert len(small.vocabulary) == 10_000
    unknown = [100 * (stream == 0).mean() for stream in (small.train, small.validation, small.test)]
    np.testing.assert_allclose(unknown, [0.48, 0.86, 1.06], atol=0.005)
    read = web_words.read().parts
    found = [{folded(" ".join(verse)) for verse in read[name]} for name in PARTS]
    assert not in_two(found)


@pytest.mark.slow
def test_the_prepared_verses_have_the_documented_numbers_and_no_side_in_two_parts():
    prepared_here("verses")
    pairs = data.load_pairs("verses")
    splits = (pairs.train, pairs.validation, pairs.test)
    assert [split.inputs.shape for split in splits] == [(n, 103) for n in (26_750, 1_840, 2_471)]
    assert [split.targets.shape for split in splits] == [(n, 139) for n in (26_750, 1_840, 2_471)]
    assert len(pairs.input_vocabulary) == len(pairs.target_vocabulary) == 10_000
    for side, expected in (("inputs", [0.26, 0.87, 0.99]), ("targets", [2.86, 4.08, 4.30])):
        ids = [getattr(split, side) for split in splits]
        unknown = [100 * (each == 3).sum() / (each >= 3).sum() for each in ids]
        np.testing.assert_allclose(unknown, expected, atol=0.0051)
    references = [[each for (each,) in split.references] for split in splits]
    for texts in ([split.texts for split in splits], references):
        found = [{folded(text) for text in each} for each in texts]
        assert not in_two(found)
    for each in references:
        assert [pairs.to_text(tokenize(text)) for text in each] == [text.lower() for text in each]
