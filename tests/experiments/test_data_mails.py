"""Laws of the mails: their words, the hashed counts, the parts, and the ladder, on tiny mails."""

import base64
import math

import numpy as np
import pytest
from tiny_set import assert_same, leftovers, sha256

from experiments import data
from experiments.data import mails, packages, stored
from experiments.data.contents import canonical
from experiments.data.mail_set import BUCKETS, mail_splits
from experiments.data.mail_text import MAX_LETTERS, SUBJECT, words
from experiments.data.packages import joined
from experiments.data.word_counts import MAX_COUNT, bucket, count_words, weigh


def mail(body, subject="Hello", **headers):
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\n".join([f"Subject: {subject}", *lines, "", body]).encode()


def body_words(*arguments, **headers):
    return [word for word in words(mail(*arguments, **headers)) if not word.startswith(SUBJECT)]


# --- words ---


def test_the_words_are_those_of_subject_and_body():
    found = words(mail("Don't pay $19.95, it is 100% FREE!", "Re: Your  LOAN"))
    assert found == [SUBJECT + word for word in (b"re", b"your", b"loan")] + [
        *(b"don't", b"pay", b"$", b"00", b"00", b"it", b"is", b"000", b"%", b"free", b"!")
    ]


def test_no_header_but_the_subject_and_no_line_of_the_mailbox_shows():
    plain = mail("some text")
    headed = b"From x@y.z  Thu Aug 22 12:36:23 2002\nReceived: from a\n\tby b; 22 Aug 2002\n" + (
        mail("some text", From="a@b.c", Date="Thu, 22 Aug", List_Id="<exmh>", To="x", X_Spam="yes")
    )
    assert words(headed) == words(plain)


def test_a_folded_subject_is_one_and_the_first_of_two_counts():
    assert words(b"Subject: one\n two\nsubject: three\n\n") == [b"subject:one", b"subject:two"]


def test_line_ends_do_not_matter():
    message = mail("one\ntwo\n\nthree", X="y")
    assert words(message.replace(b"\n", b"\r\n")) == words(message)


@pytest.mark.parametrize(
    "trace",
    [
        "[ILUG] Hello",
        "Hello =?iso-8859-1?Q?caf=E9?=",
        "zzzz Hello",
        "Hello Sep",
    ],
)
def test_traces_of_the_collection_are_cut_out_of_the_subject(trace):
    assert words(mail("", trace)) == [b"subject:hello"]


@pytest.mark.parametrize(
    "trace",
    [
        "\n\n_______________________________________________\nSome mailing list\nx@y.org",
        "\n-------------------------------------------------------\n"
        "This sf.net email is sponsored by: somebody\nhttps://a.b",
        "\n-- \nIrish Linux Users' Group: x@y\nmore",
        "\nhttp://x.org/mailman/listinfo/fork\n",
        "\nTo unsubscribe from this group, send an email to:\nx@y.z",
    ],
)
def test_what_a_list_puts_under_a_text_is_cut_off(trace):
    assert body_words("some text" + trace) == [b"some", b"text"]


def test_addresses_and_numbers_keep_no_content_and_dates_no_name():
    text = "On Mon, 2 Sep 2002 joe.x+y@a-b.co.uk saw https://x.y/z?a=1 and www.q.com"
    assert b" ".join(body_words(text)) == b"on 0 0000 mailaddress saw urladdress and urladdress"


def test_a_feed_s_own_first_lines_are_cut_off():
    assert body_words("URL: http://x.y/\nDate: Not supplied\n\nNews of it") == [
        *(b"news", b"of", b"it")
    ]


def test_markup_is_left_out_and_comments_do_not_cut_words():
    html = "<style>p {x}</style><p align='a'>Sub<!-- x -->scribe&nbsp;<a href='http://x'>here</a>"
    assert body_words(html, Content_Type="text/html") == [b"subscribe", b"here"]


def test_quoted_printable_and_base64_texts_are_decoded():
    quoted = body_words("one=20tw=\no", Content_Transfer_Encoding="quoted-printable")
    code = base64.b64encode(b"one two!").decode()  # with padding
    coded = body_words(f"{code[:4]}\n{code[4:]}\n", Content_Transfer_Encoding="BASE64")
    assert (quoted, coded) == ([b"one", b"two"], [b"one", b"two", b"!"])


def test_damaged_base64_is_read_as_far_as_it_goes():
    code = base64.b64encode(b"one two three").decode()[:-6] + "\n-- footer"
    assert body_words(code, Content_Transfer_Encoding="base64") == [*(b"one", b"two", b"th")]


def test_the_texts_of_all_parts_count_and_attachments_do_not():
    body = "\n".join(
        [
            "for old readers",
            "--=_b+1",
            "Content-Type: multipart/alternative; boundary=inner",
            "",
            *("--inner", "", "plain", "--inner", "Content-Type: text/html", "", "<b>rich</b>"),
            "--inner--",
            "--=_b+1",
            "Content-Type: image/gif",
            *("", "R0lGODlh"),
            *("--=_b+1", "Content-Type: message/rfc822", "", "From: x@y.z", "", "forwarded"),
            *("--=_b+1--", "epilogue"),
        ]
    )
    found = body_words(body, Content_Type='multipart/mixed;\n boundary="=_b+1"')
    assert found == [b"plain", b"rich", b"forwarded"]


def test_a_multipart_mail_without_its_boundary_is_read_as_text():
    assert body_words("some text", Content_Type='multipart/mixed; boundary="x"') == [
        *(b"some", b"text")
    ]


def test_endless_nesting_ends():
    body = "\n".join("--b\nContent-Type: multipart/mixed; boundary=b\n" for _ in range(50))
    nested = b"Content-Type: message/rfc822\n\n" * 5000
    assert body_words(body, Content_Type="multipart/mixed; boundary=b") == []
    assert words(nested) == []


@pytest.mark.parametrize("content", [b"", b"\n", b"\n\n", b"Subject:", b"no header\n\n", b"\xff"])
def test_what_is_hardly_a_mail_has_no_words(content):
    assert words(content) == []


def test_bytes_of_any_character_set_are_letters_and_long_runs_are_no_words():
    content = mail("") + b"caf\xe9 " + b"x" * MAX_LETTERS + b" " + b"y" * (MAX_LETTERS + 1)
    assert words(content)[1:] == [b"caf\xe9", b"x" * MAX_LETTERS]


# --- counts ---


def test_a_word_counts_at_the_crc32_of_its_bytes():
    # By hand: the CRC-32 of "123456789" is 0xCBF43926, that of "a" 0xE8B7BE43.
    assert (bucket(b"123456789", 4096), bucket(b"a", 4096)) == (0x926, 0xE43)
    counts = count_words([b"a", b"123456789", b"a"], 4096)
    assert counts.dtype == np.uint8
    assert {place: counts[place] for place in np.flatnonzero(counts)} == {0x926: 1, 0xE43: 2}


def test_words_of_one_bucket_add_up_to_the_largest_count_and_no_further():
    assert count_words([b"a", b"b", b"c"], 1).tolist() == [3]
    assert count_words([b"a"] * 300 + [b"b"] * 300, 1).tolist() == [MAX_COUNT]


def test_the_weights_are_logarithms_scaled_to_length_one():
    # log 2, log 4 = 2 log 2 and 0: divided by the length sqrt(5) log 2.
    weights = weigh(np.array([[1, 3, 0], [0, 0, 0], [0, 255, 0]], dtype=np.uint8))
    expected = np.array([[1 / math.sqrt(5), 2 / math.sqrt(5), 0], [0, 0, 0], [0, 1, 0]])
    assert weights.dtype == np.float32
    np.testing.assert_array_equal(weights, expected.astype(np.float32))


# --- parts ---


def some_mails(count=40):
    return [(mail(f"{'spam' if n % 4 == 0 else 'ham'} {'x ' * n}y"), int(n % 4 == 0))
            for n in range(1, count + 1)]  # fmt: skip


def rows(split):
    return [each.tobytes() for each in split.inputs]


def test_repeated_texts_are_one_example_whatever_differs_around_them():
    texts = [
        mail("Call 555 now, or a@b.c"),
        mail("call <b>777</b> NOW,\r\nor d@e.f", From="other@x.y", Date="now"),
        mail("Call 1234 now, or a@b.c"),
    ]
    splits = mail_splits([(text, 0) for text in texts])
    # The third differs: its number is longer.
    assert sum(len(split.targets) for split in splits.values()) == 2


def test_texts_of_both_classes_and_empty_mails_are_no_example():
    mails_ = [(mail("both"), 0), (mail("both"), 1), (b"\n\n", 0), (mail("one"), 1)]
    splits = mail_splits(mails_)
    assert [len(splits[name].targets) for name in ("train", "test")] == [1, 0]
    assert splits["train"].inputs.shape == (1, BUCKETS)


def test_the_test_part_is_a_fifth_of_each_class_and_shares_no_text_with_the_rest():
    splits = mail_splits(some_mails() + some_mails())
    assert np.bincount(splits["train"].targets).tolist() == [24, 8]
    assert np.bincount(splits["test"].targets).tolist() == [6, 2]
    assert len(set(rows(splits["train"]) + rows(splits["test"]))) == 40


def test_the_parts_depend_on_the_contents_only():
    given = some_mails()
    one, two = mail_splits(given), mail_splits(reversed(given + given[:7]))
    for name in one:
        np.testing.assert_array_equal(one[name].inputs, two[name].inputs)
        np.testing.assert_array_equal(one[name].targets, two[name].targets)


def test_new_mails_of_one_class_leave_the_other_class_alone():
    more = [(mail(f"ham {'z' * n}"), 0) for n in range(1, 9)]
    before, after = mail_splits(some_mails()), mail_splits(some_mails() + more)
    spam = [{row for row, label in zip(rows(split["test"]), split["test"].targets, strict=True)
             if label == 1} for split in (before, after)]  # fmt: skip
    assert spam[0] == spam[1]


# --- the ladder ---


class TinyMails:
    """A set of 40 mails that is published as the mails are."""

    def __init__(self):
        groups = {0: "easy-ham-1", 1: "spam-2"}
        given = some_mails()
        self.raw = {f"{groups[label]}/{n}.txt": text for n, (text, label) in enumerate(given)}
        self.splits = mail_splits(given)
        self.stored = self.describe(sha256(joined(self.raw)))

    def describe(self, checksum):
        return mails.mail_stored_set(
            counts={"train": 32, "test": 8},
            sha256=checksum,
            fingerprints={name: canonical(split)[1] for name, split in self.splits.items()},
            package=packages.NpmPackage("tiny", "1.0.0", folder="package"),
        )

    def read(self, root):
        return mails.read_mails(self.stored, root)


@pytest.fixture
def tiny_mails(no_network, monkeypatch):
    for module in ("tensorflow_datasets", "array_record"):
        pytest.importorskip(module)
    made = TinyMails()
    monkeypatch.setattr(packages.NpmPackage, "files", lambda package, names: made.raw)
    return made


def test_mails_become_a_prepared_directory_and_come_back_bit_exactly(tiny_mails, tmp_path):
    parts, again = tiny_mails.read(tmp_path), tiny_mails.read(tmp_path)
    assert (parts.source, again.source) == ("package", "prepared")
    assert_same(parts, again)
    for name, part in (("train", parts.train), ("test", parts.test)):
        expected, _ = canonical(tiny_mails.splits[name])
        assert (part.inputs.dtype, part.targets.dtype) == (np.float32, np.int32)
        np.testing.assert_array_equal(part.inputs, weigh(expected.inputs))
        np.testing.assert_array_equal(part.targets, expected.targets)
    assert leftovers(tmp_path) == []


def test_tensorflow_datasets_reads_the_counts_and_the_class_names(tiny_mails, tmp_path):
    import tensorflow_datasets as tfds

    tiny_mails.read(tmp_path)
    builder = tfds.builder_from_directory(tmp_path / "mails" / "1.0.0")
    assert builder.info.features["label"].names == ["ham", "spam"]
    found = {
        each["counts"].tobytes(): int(each["label"]) for each in builder.as_data_source("test")
    }
    assert found == dict(
        zip(rows(tiny_mails.splits["test"]), tiny_mails.splits["test"].targets, strict=True)
    )
    assert "mails" not in tfds.list_builders(with_community_datasets=False)


def test_mails_with_a_wrong_checksum_are_refused_with_both_sums(tiny_mails, tmp_path):
    right, wrong = sha256(joined(tiny_mails.raw)), sha256(b"else")
    tiny_mails.stored = tiny_mails.describe(wrong)
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(data.DataUnavailable, match="has the wrong sha256") as caught,
    ):
        tiny_mails.read(tmp_path)
    assert f"expected {wrong}, got {right}" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_directory_of_mails_is_named_and_rebuilt(tiny_mails, tmp_path):
    whole = tiny_mails.read(tmp_path)
    next((tmp_path / "mails" / "1.0.0").glob("*test.array_record*")).unlink()
    with pytest.warns(RuntimeWarning, match="will be rebuilt"):
        rebuilt = tiny_mails.read(tmp_path)
    assert rebuilt.source == "package"
    assert_same(whole, rebuilt)


@pytest.mark.slow
def test_the_prepared_mails_have_the_documented_shapes_and_no_text_on_two_sides():
    if not (stored.default_root() / "mails").exists():
        pytest.skip("not prepared here")
    found = data.load("mails")
    parts = (found.train, found.validation, found.test)
    assert [part.inputs.shape for part in parts] == [(n, 4096) for n in (4_076, 582, 1_165)]
    assert np.bincount(found.test.targets).tolist() == [819, 346]
    lengths = np.linalg.norm(found.train.inputs.astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)
    whole = [row.tobytes() for part in parts for row in part.inputs]
    assert len(set(whole)) == len(whole)
