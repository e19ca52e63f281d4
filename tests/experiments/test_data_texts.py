"""Laws of the sets of text: tokens, vocabularies, padded pairs, parts, names, and the toys."""

import re
import socket

import numpy as np
import pytest

from experiments import data
from experiments.data import text_catalogue, toy_texts
from experiments.data.partition import (
    PARTS,
    Groups,
    chapter_groups,
    folded,
    part_of,
    without_repetitions,
)
from experiments.data.text_catalogue import PAIR_SPECIAL, PairRow
from experiments.data.text_dataset import Sentences, TextPair, TextPairs
from experiments.data.tokens import detokenize, tokenize
from experiments.data.vocabulary import BOS, EOS, PAD, UNK, Vocabulary, choose_vocabulary, padded


def in_two(found):
    """What occurs in more than one of three sets."""
    one, two, three = found
    return (one & two) | (one & three) | (two & three)


# --- tokens ---


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("In the beginning, God.", "in the beginning , god ."),
        ("“I don\u2019t,” he said—twice!", "“ i don\u2019t , ” he said — twice !"),
        ("Ben-hadad's 12 men - (all)", "ben-hadad's 12 men - ( all )"),
        ("¿Quién ES? ¡Él! á Á", "¿ quién es ? ¡ él ! á á"),
        ("fathers\u2019 a_b", "fathers \u2019 a _ b"),
        ("  \n", ""),
    ],
)
def test_text_is_cut_into_words_numbers_and_single_marks(text, tokens):
    assert tokenize(text) == tokens.split()


@pytest.mark.parametrize(
    "text", ["¿quién eres? ¡yo (dijo) soy!", "“come,” she said; “now: here.”", "one—two, ben-hadad"]
)
def test_tokens_are_written_back_as_a_printer_sets_them(text):
    assert detokenize(tokenize(text)) == text


# --- vocabulary ---


def test_the_most_frequent_tokens_are_chosen_and_ties_are_alphabetical():
    sentences = ["bac", "cad", "ce"]
    assert choose_vocabulary(sentences, 5, (UNK, EOS)).tokens == (UNK, EOS, "c", "a", "b")
    backwards = [each[::-1] for each in reversed(sentences)]
    assert choose_vocabulary(backwards, 99, (UNK,)).tokens == (UNK, "c", "a", "b", "d", "e")


def test_known_tokens_come_back_and_others_are_unknown():
    vocabulary = Vocabulary((PAD, BOS, EOS, UNK, "a", "b"))
    ids = vocabulary.encode(["b", "x", "a", EOS])
    assert ids.dtype == np.int32
    assert ids.tolist() == [5, 3, 4, 2]
    assert vocabulary.decode(ids) == ["b", UNK, "a", EOS]
    assert vocabulary.sentence([1, *ids, 4, 0]) == ["b", UNK, "a"]
    assert vocabulary.encode([]).shape == (0,)
    assert len(vocabulary) == 6


@pytest.mark.parametrize("size", [-1, 0, 2])
def test_a_vocabulary_without_room_is_refused(size):
    with pytest.raises(ValueError, match=rf"2 special tokens \(<unk>, <eos>\), got {size}"):
        data.load_words("toy_words", vocabulary_size=size)


def test_rows_are_filled_up_at_their_ends():
    rows = [np.array([5, 6], np.int32), np.array([], np.int32), np.array([7, 8, 9], np.int32)]
    assert padded(rows, 3, 1).tolist() == [[5, 6, 1], [1, 1, 1], [7, 8, 9]]
    assert padded(rows, 4, 1).dtype == np.int32


# --- parts ---


def test_a_key_has_one_part_and_the_parts_have_about_their_shares():
    found = [part_of(f"key {number}") for number in range(4000)]
    assert found == [part_of(f"key {number}") for number in range(4000)]
    shares = [found.count(name) / 4000 for name in PARTS]
    np.testing.assert_allclose(shares, [0.85, 0.05, 0.10], atol=0.02)


def test_a_group_is_named_by_its_smallest_key_whatever_the_order_of_joining():
    joins = [("d", "c"), ("b", "d"), ("x", "y"), ("a", "c")]
    for order in (joins, joins[::-1], [pair[::-1] for pair in joins]):
        groups = Groups()
        for pair in order:
            groups.join(*pair)
        assert [groups.name(key) for key in "abcdxyz"] == list("aaaaxxz")


def test_chapters_that_share_a_long_run_of_words_are_joined_and_others_are_not():
    shared = "these are the sons of israel who came to egypt"
    passages = [
        ("A.1", f"now {shared} with him"),
        ("B.1", f"They said: {shared.upper().replace(' ', ', ')}!"),
        ("C.1", shared.rpartition(" ")[0]),
        ("D.1", "and nothing else"),
    ]
    groups = chapter_groups(passages, run=10)
    assert [groups.name(chapter) for chapter, _ in passages] == ["A.1", "A.1", "C.1", "D.1"]


def test_folding_drops_case_and_punctuation_only():
    assert folded("¶ And the LORD\u2019s, men!") == ("and", "the", "lord\u2019s", "men") == folded(
        "and the lord\u2019s men"
    )  # fmt: skip


def test_no_key_is_left_in_two_parts_and_training_is_kept_whole():
    parts = {"train": ["a", "b", "b"], "validation": ["a", "c", "d"], "test": ["c", "b", "e"]}
    kept = without_repetitions(parts, {each: (each,) for each in "abcde"})
    assert kept == {"train": ["a", "b", "b"], "validation": ["d"], "test": ["c", "e"]}
    assert tuple(kept) == PARTS


# --- streams ---


def sentences_of(words, part):
    text = " ".join(words.vocabulary.decode(getattr(words, part)))
    return [each.strip() for each in text.split(EOS)[:-1]]


def test_toy_words_are_streams_of_sentences_that_no_two_parts_share():
    toy = data.load_words("toy_words")
    assert (toy.name, toy.source) == ("toy_words", "synthetic")
    found = [set(sentences_of(toy, part)) for part in PARTS]
    assert all(found)
    assert not in_two(found)
    for part in PARTS:
        stream = getattr(toy, part)
        assert (stream.ndim, stream.dtype) == (1, np.int32)
        assert stream.min() >= 1  # a full vocabulary leaves no token of the toy unknown
        assert stream.max() < len(toy.vocabulary)
    assert sum(len(sentences_of(toy, part)) for part in PARTS) == toy_texts.SENTENCES


def test_toy_verbs_agree_with_their_subjects():
    verbs = "|".join(toy_texts._VERBS)
    for sentence in sentences_of(data.load_words("toy_words"), "train")[:300]:
        subject, verb = re.match(rf"(?:\w+ )+?(\w+) ((?:{verbs})s?) ", sentence).groups()
        assert (subject.endswith("s") or subject == "children") != verb.endswith("s"), sentence


def test_a_small_vocabulary_makes_rare_tokens_unknown_and_keeps_the_common_ones():
    toy, small = data.load_words("toy_words"), data.load_words("toy_words", vocabulary_size=6)
    assert len(small.vocabulary) == 6
    known = toy.train < 6
    np.testing.assert_array_equal(small.train, np.where(known, toy.train, 0))


def test_the_vocabulary_knows_nothing_of_the_validation_and_test_parts(monkeypatch):
    parts = {"train": [["a", "b"]], "validation": [["c"]], "test": [["a", "d", "d"]]}
    read = lambda data_dir: Sentences(parts, "package")
    monkeypatch.setattr(text_catalogue, "_WORDS", {"made": read})
    made = data.load_words("made")
    assert made.vocabulary.tokens == (UNK, EOS, "a", "b")
    assert [getattr(made, part).tolist() for part in PARTS] == [[2, 3, 1], [0, 1], [2, 0, 0, 1]]

    pairs = {part: [TextPair(" ".join(each), (" ".join(each),)) for each in parts[part]]
             for part in PARTS}  # fmt: skip
    row = PairRow(lambda data_dir: TextPairs(pairs, "package"), str.split, str.split, " ".join)
    monkeypatch.setattr(text_catalogue, "_PAIRS", {"made": row})
    made = data.load_pairs("made")
    assert made.input_vocabulary.tokens == made.target_vocabulary.tokens == (*PAIR_SPECIAL, *"ab")
    assert made.test.inputs.tolist() == [[4, 3, 3, 2]]
    assert made.test.targets.tolist() == [[1, 4, 3, 3, 2]]
    assert made.train.inputs.tolist() == [[4, 5, 2, 0]]
    assert made.validation.targets.tolist() == [[1, 3, 2, 0, 0]]


# --- pairs ---


@pytest.fixture(scope="module")
def toy():
    return data.load_pairs("toy_pairs")


def test_toy_pairs_are_all_numbers_once(toy):
    texts = [text for part in PARTS for text in getattr(toy, part).texts]
    assert sorted(map(int, texts)) == list(range(10_000))
    assert (toy.name, toy.source) == ("toy_pairs", "synthetic")


def test_pairs_are_padded_alike_and_begin_and_end_as_documented(toy):
    pad, bos, eos, unk = range(4)
    assert toy.input_vocabulary.tokens[:4] == toy.target_vocabulary.tokens[:4] == PAIR_SPECIAL
    for part in PARTS:
        split = getattr(toy, part)
        count = len(split.texts)
        assert split.inputs.shape == (count, 5)  # four digits and the end
        assert split.targets.shape == (count, 8)  # start, "two thousand one hundred forty two", end
        assert len(split.references) == count
        for ids, vocabulary in (
            (split.inputs, toy.input_vocabulary),
            (split.targets, toy.target_vocabulary),
        ):
            assert ids.dtype == np.int32
            assert ids.max() < len(vocabulary)
            assert unk not in ids
            assert np.all((ids == eos).sum(axis=1) == 1)
            ends = np.argmax(ids == eos, axis=1)
            after = np.arange(ids.shape[1]) > ends[:, None]
            np.testing.assert_array_equal(ids == pad, after)
        assert np.all(split.targets[:, 0] == bos)
        assert bos not in split.inputs
        assert bos not in split.targets[:, 1:]


def test_ids_come_back_as_the_texts_they_were_made_from(toy):
    for row in range(0, 500, 7):
        digits = toy.input_vocabulary.sentence(toy.train.inputs[row])
        spoken = toy.to_text(toy.target_vocabulary.sentence(toy.train.targets[row]))
        assert ("".join(digits), (spoken,)) == (toy.train.texts[row], toy.train.references[row])


def test_pairs_are_the_same_every_time(toy):
    again = data.load_pairs("toy_pairs")
    for part in PARTS:
        for mine, theirs in zip(getattr(toy, part), getattr(again, part), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_shorter_examples_are_kept_whole_with_less_padding(toy):
    short = data.shorten(toy.train, 4)
    # 0, 1, ... and twenty, ..., one hundred: at most two words between start and end.
    assert short.inputs.shape == short.targets.shape[:1] + (4,) == (len(short.texts), 4)
    expected = [text for text, (spoken,) in zip(toy.train.texts, toy.train.references, strict=True)
                if len(text) <= 3 and len(spoken.split()) <= 2]  # fmt: skip
    assert list(short.texts) == expected
    assert [reference for (reference,) in short.references] == [
        toy.to_text(toy.target_vocabulary.sentence(row)) for row in short.targets
    ]
    with pytest.raises(ValueError, match="at most 1 ids"):
        data.shorten(toy.train, 1)


@pytest.mark.parametrize(
    ("number", "spoken"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (80, "eighty"),
        (100, "one hundred"),
        (2142, "two thousand one hundred forty two"),
        (9999, "nine thousand nine hundred ninety nine"),
    ],
)
def test_numbers_are_spelled_out(number, spoken):
    assert toy_texts.spell(number) == spoken


# --- names ---


def test_toys_need_no_network_and_no_data_dir(monkeypatch, tmp_path):
    def refuse(*arguments):
        raise AssertionError("a toy opened a connection")

    monkeypatch.setattr(socket, "socket", refuse)
    data.load_words("toy_words", data_dir=tmp_path / "nowhere")
    data.load_pairs("toy_pairs", data_dir=str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


def test_every_name_is_known_to_one_function_only():
    known = [*data.names(), *data.word_names(), *data.pair_names()]
    assert len(set(known)) == len(known)


@pytest.mark.parametrize(
    ("load", "name", "message"),
    [
        (
            data.load_words,
            "web_word",
            r"'web_word'\. Did you mean 'web_words'\? Known: 'web_words'",
        ),
        (data.load_pairs, "verse", r"'verse'\. Did you mean 'verses'\? Known: 'cmudict', 'verses'"),
        (data.load_pairs, "zzz", r"'zzz'\. Known: 'cmudict'"),
        (data.load_pairs, "web_words", r"'web_words'\. Load it with `load_words`\."),
        (data.load_words, "cmudict", r"'cmudict'\. Load it with `load_pairs`\."),
        (data.load, "verses", r"'verses'\. Load it with `load_pairs`\. Known: 'digits', 'mnist'"),
        (data.load, "toy_words", r"'toy_words'\. Load it with `load_words`\."),
    ],
)
def test_an_unknown_name_is_refused_with_what_knows_it(load, name, message):
    with pytest.raises(ValueError, match=message):
        load(name)
