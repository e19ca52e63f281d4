"""Laws of the pronunciations: words, families, parts, references, and the ladder."""

import pytest
from tiny_set import leftovers, sha256

from experiments import data
from experiments.data import cmudict, packages, stored, text_catalogue
from experiments.data.contents import canonical
from experiments.data.lines import read_lines, to_lines
from experiments.data.partition import PARTS, part_of


def in_two(found):
    """What occurs in more than one of three sets."""
    one, two, three = found
    return (one & two) | (one & three) | (two & three)


# --- words ---


def test_variants_are_pronunciations_of_one_word_in_their_order_and_comments_are_cut():
    text = "read R IY1 D\nread(2) R EH1 D # past\nread(3) R IY1 D\n'bout B AW1 T\n"
    assert cmudict.pronunciations(text) == {"read": ["R IY1 D", "R EH1 D"], "'bout": ["B AW1 T"]}


@pytest.mark.parametrize("word", ["a.m.", "able-bodied", "3d", "'", "naïve", "a_b", "%percent"])
def test_what_is_not_made_of_letters_is_no_word(word):
    assert cmudict.pronunciations(f"{word} X Y\n\n;;; note\n") == {}


@pytest.mark.parametrize(
    "forms",
    [
        ("abate", "abates", "abated", "abating", "abatement", "abatements"),
        ("stop", "stops", "stopped", "stopping", "stopper", "stopper's", "stoppers'"),
        ("carry", "carries", "carried", "carrier", "carrying"),
        ("quick", "quicker", "quickest", "quickly", "quickness"),
        ("can't", "cant", "cant's"),
        ("box", "boxes", "boxing"),
    ],
)
def test_forms_of_a_word_are_one_family(forms):
    groups = cmudict.families([*forms, "zebra"])
    assert len({groups.name(form) for form in forms}) == 1
    assert groups.name("zebra") == "zebra"


def test_words_that_only_look_alike_are_not_joined():
    words = ("as", "asses", "pit", "spit", "table", "tab", "it", "its", "abbot", "abbott", "ing")
    groups = cmudict.families(words)
    assert [groups.name(word) for word in words] == list(words)


# --- parts ---

ENDS = ("dra", "fle", "gon", "hump", "jat", "lek", "nor", "pim", "rus", "tov", "vel")
WORDS = {f"{a}{b}": [f"{a.upper()} {b.upper()}"] for a in ("ba", "ko", "mi") for b in ENDS}
WORDS |= {f"{word}s": [*spoken, f"{spoken[0]} Z"] for word, spoken in list(WORDS.items())}


def test_a_family_is_in_one_part_and_every_word_is_there_once():
    parts = cmudict.split_words(WORDS)
    assert all(parts.values())
    home = {word: name for name in PARTS for word, *_ in parts[name]}
    assert sorted(home) == sorted(WORDS)
    assert sum(map(len, parts.values())) == len(WORDS)
    assert all(home[word] == home[f"{word}s"] == part_of(word) for word in WORDS
               if not word.endswith("s"))  # fmt: skip
    assert parts == cmudict.split_words(dict(reversed(WORDS.items())))
    assert {word: spoken for each in parts.values() for word, *spoken in each} == WORDS


# --- lines ---


@pytest.mark.parametrize("mark", ["\t", "\n", "\r", "\0"])
def test_a_field_that_would_break_a_line_is_refused(mark):
    with pytest.raises(ValueError, match="no tab, line end or zero byte"):
        to_lines({"train": [("a", f"b{mark}c")]})


def test_the_fingerprint_of_lines_knows_their_texts_and_places_but_not_their_storage():
    splits = [to_lines({"x": each})["x"] for each in ([("a",), ("bé",)], [("bé",), ("a",)])]
    order = canonical(splits[0])[1]
    assert canonical(splits[1])[1] != order
    shuffled = type(splits[0])(splits[0].inputs[::-1], splits[0].targets[::-1])
    wider = type(splits[0])(splits[0].inputs.astype("S50"), splits[0].targets)
    assert canonical(shuffled)[1] == canonical(wider)[1] == order


# --- the ladder ---


class TinyDictionary:
    """A dictionary that is published as CMUdict is."""

    def __init__(self):
        lines = [f"{word}{f'({n})' if n > 1 else ''} {spoken}\n" for word, all_ in WORDS.items()
                 for n, spoken in enumerate(all_, start=1)]  # fmt: skip
        self.raw = {"cmudict.dict": "".join(lines).encode()}
        self.parts = cmudict.split_words(WORDS)
        self.stored = self.describe(sha256(self.raw["cmudict.dict"]))

    def describe(self, checksum):
        return cmudict.cmudict_stored_set(
            counts={name: len(each) for name, each in self.parts.items()},
            sha256=checksum,
            fingerprints={name: canonical(each)[1] for name, each in to_lines(self.parts).items()},
            package=packages.PipPackage("tiny", "1.0.0", folder="tiny/data"),
        )


@pytest.fixture
def tiny_dictionary(no_network, monkeypatch):
    for needed in ("tensorflow_datasets", "array_record"):
        pytest.importorskip(needed)
    made = TinyDictionary()
    monkeypatch.setattr(packages.PipPackage, "files", lambda package, names: made.raw)
    return made


def test_words_become_a_prepared_directory_and_come_back_in_their_order(tiny_dictionary, tmp_path):
    first, again = (read_lines(tiny_dictionary.stored, tmp_path) for _ in range(2))
    assert (first[1], again[1]) == ("package", "prepared")
    assert first[0] == again[0] == tiny_dictionary.parts
    assert leftovers(tmp_path) == []


def test_tensorflow_datasets_reads_the_lines(tiny_dictionary, tmp_path):
    import tensorflow_datasets as tfds

    read_lines(tiny_dictionary.stored, tmp_path)
    builder = tfds.builder_from_directory(tmp_path / "cmudict" / "1.0.0")
    found = {int(each["place"]): each["line"].decode() for each in builder.as_data_source("test")}
    assert found == {n: "\t".join(each) for n, each in enumerate(tiny_dictionary.parts["test"])}
    assert "cmudict" not in tfds.list_builders(with_community_datasets=False)


def test_loaded_words_keep_the_first_pronunciation_to_learn_and_all_to_accept(
    tiny_dictionary, tmp_path, monkeypatch
):
    row = text_catalogue._PAIRS["cmudict"]
    read = lambda data_dir: cmudict.read_cmudict(tiny_dictionary.stored, data_dir)
    monkeypatch.setattr(text_catalogue, "_PAIRS", {"cmudict": row._replace(read=read)})
    pairs = data.load_pairs("cmudict", data_dir=tmp_path)
    for part in PARTS:
        split = getattr(pairs, part)
        assert split.references == tuple(tuple(WORDS[word]) for word in split.texts)
        for word, row_, ids in zip(split.texts, split.inputs, split.targets, strict=True):
            if part == "train":
                assert "".join(pairs.input_vocabulary.sentence(row_)) == word
                assert pairs.to_text(pairs.target_vocabulary.sentence(ids)) == WORDS[word][0]


def test_a_dictionary_with_a_wrong_checksum_is_refused_with_both_sums(tiny_dictionary, tmp_path):
    right, wrong = sha256(tiny_dictionary.raw["cmudict.dict"]), sha256(b"else")
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(data.DataUnavailable, match=r"cmudict\.dict has the wrong") as caught,
    ):
        read_lines(tiny_dictionary.describe(wrong), tmp_path)
    assert f"expected {wrong}, got {right}" in str(caught.value)
    assert "`toy_pairs` needs no download" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_directory_of_words_is_named_and_rebuilt(tiny_dictionary, tmp_path):
    read_lines(tiny_dictionary.stored, tmp_path)
    next((tmp_path / "cmudict" / "1.0.0").glob("*test.array_record*")).unlink()
    with pytest.warns(RuntimeWarning, match="will be rebuilt"):
        rebuilt, source = read_lines(tiny_dictionary.stored, tmp_path)
    assert (rebuilt, source) == (tiny_dictionary.parts, "package")


def test_a_root_that_cannot_be_written_names_the_toy(tiny_dictionary, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(data.DataUnavailable, match=r"Pass another `--data-dir`.*`toy_pairs`"):
        read_lines(tiny_dictionary.stored, tmp_path / "file" / "root")


@pytest.mark.slow
def test_the_prepared_dictionary_has_the_documented_numbers_and_no_family_in_two_parts():
    if not (stored.default_root() / "cmudict").exists():
        pytest.skip("not prepared here")
    pairs = data.load_pairs("cmudict")
    splits = (pairs.train, pairs.validation, pairs.test)
    assert [split.inputs.shape for split in splits] == [(n, 29) for n in (106_065, 6_327, 12_534)]
    assert [split.targets.shape for split in splits] == [(n, 30) for n in (106_065, 6_327, 12_534)]
    assert sum(map(len, pairs.test.references)) == 13_458
    assert (len(pairs.input_vocabulary), len(pairs.target_vocabulary)) == (31, 73)
    assert all(3 not in ids for split in splits for ids in split[:2])  # nothing is unknown
    groups = cmudict.families(word for split in splits for word in split.texts)
    found = [{groups.name(word) for word in split.texts} for split in splits]
    assert not in_two(found)
