"""Laws of CIFAR-10's two published forms, on a tiny set: both give the same prepared arrays."""

import io
import json
import tarfile

import numpy as np
import pytest
from tiny_set import assert_same, leftovers, sha256

from experiments import data
from experiments.data import cifar10, images, official, packages, stored
from experiments.data.contents import canonical
from experiments.data.dataset import Split

COUNTS = {"train": 10, "test": 3}
ARCHIVE = cifar10.ARCHIVE


class TinyCifar:
    """A set of 13 random pictures that is published as CIFAR-10 is."""

    def __init__(self):
        random = np.random.default_rng(0)
        self.splits = {
            name: Split(
                random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8),
                random.integers(0, 10, count),
            )
            for name, count in COUNTS.items()
        }
        self.raw, self.bins = {}, {}
        for name, batches in cifar10.BATCHES.items():
            self.raw[cifar10.LABELS[name]] = json.dumps(self.splits[name].targets.tolist()).encode()
            parts = zip(*(np.split(part, len(batches)) for part in self.splits[name]), strict=True)
            for batch, (pixels, labels) in zip(batches, parts, strict=True):
                self.raw[f"{batch}.png"] = png(pixels.reshape(len(pixels), 1024, 3))
                planes = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
                records = np.concatenate([labels[:, None].astype(np.uint8), planes], axis=1)
                self.bins[batch] = records.tobytes()
        self.images = cifar10.cifar10_image_set(
            counts=COUNTS,
            sha256={name: sha256(split.inputs.tobytes()) for name, split in self.splits.items()},
            fingerprints={name: canonical(split)[1] for name, split in self.splits.items()},
            package=packages.NpmPackage("tiny", "1.0.0", folder="package"),
        )

    def read(self, root):
        return images.read_images(self.images, root)

    def archive(self, **changed):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as tar:
            for batch, content in (self.bins | changed).items():
                if content is not None:
                    member = tarfile.TarInfo(f"{cifar10.FOLDER}/{batch}.bin")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        return out.getvalue()


def png(pixels):
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="png")
    return out.getvalue()


@pytest.fixture
def tiny_cifar(no_network, monkeypatch):
    """A tiny set whose registry answers and whose official host does not."""
    for module in ("tensorflow_datasets", "array_record", "PIL"):
        pytest.importorskip(module)
    made = TinyCifar()
    monkeypatch.setattr(packages.NpmPackage, "files", lambda package, names: made.raw)
    return made


def serve_officially(monkeypatch, content):
    from tensorflow_datasets.core.download import checksums
    from tensorflow_datasets.core.utils import Size
    from tensorflow_datasets.image_classification import cifar

    info = checksums.UrlInfo(size=Size(len(content)), checksum=sha256(content), filename=ARCHIVE)
    monkeypatch.setattr(cifar.Cifar10, "url_infos", {f"https://official.invalid/{ARCHIVE}": info})
    monkeypatch.setattr(
        official, "fetch", lambda urls, into, *, total: (into / ARCHIVE).write_bytes(content)
    )


def test_pictures_become_a_prepared_directory_and_come_back_bit_exactly(tiny_cifar, tmp_path):
    parts, again = tiny_cifar.read(tmp_path), tiny_cifar.read(tmp_path)
    assert (parts.source, again.source) == ("package", "prepared")
    assert_same(parts, again)
    for name, part in (("train", parts.train), ("test", parts.test)):
        expected, _ = canonical(tiny_cifar.splits[name])
        assert (part.inputs.dtype, part.targets.dtype) == (np.float32, np.int32)
        np.testing.assert_array_equal(part.inputs, expected.inputs.astype(np.float32) / 255)
        np.testing.assert_array_equal(part.targets, expected.targets)
    assert leftovers(tmp_path) == []


def test_the_official_archive_comes_first_and_gives_what_the_package_gives(
    tiny_cifar, tmp_path, monkeypatch
):
    from_package = tiny_cifar.read(tmp_path / "package")
    serve_officially(monkeypatch, tiny_cifar.archive())
    from_archive = tiny_cifar.read(tmp_path / "official")
    assert (from_package.source, from_archive.source) == ("package", "official")
    assert_same(from_package, from_archive)


def test_tensorflow_datasets_reads_it_with_the_official_names_and_ids(tiny_cifar, tmp_path):
    import tensorflow_datasets as tfds

    tiny_cifar.read(tmp_path)
    source = tfds.data_source("cifar10", data_dir=tmp_path, split="train", download=False)
    found = {each["id"].decode(): (each["image"], each["label"]) for each in source}
    assert sorted(found) == [f"train_{n:05d}" for n in range(10)]
    for n, (pixels, label) in enumerate(zip(*tiny_cifar.splits["train"], strict=True)):
        np.testing.assert_array_equal(found[f"train_{n:05d}"][0], pixels)
        assert found[f"train_{n:05d}"][1] == label
    names = tfds.builder("cifar10", data_dir=tmp_path).info.features["label"].names
    assert tuple(names) == cifar10.CLASSES


def test_pixels_with_a_wrong_checksum_are_refused_with_both_sums(tiny_cifar, tmp_path):
    right = sha256(tiny_cifar.splits["test"].inputs.tobytes())
    tiny_cifar.raw["test_batch.png"] = png(np.zeros((3, 1024, 3), np.uint8))
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(data.DataUnavailable, match="test part has the wrong sha256") as caught,
    ):
        tiny_cifar.read(tmp_path)
    assert right in str(caught.value)
    assert sha256(bytes(3 * 3072)) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_swapped_classes_of_right_pixels_are_refused_too(tiny_cifar, tmp_path):
    labels = json.loads(tiny_cifar.raw["train_lables.json"])
    tiny_cifar.raw["train_lables.json"] = json.dumps(labels[::-1]).encode()
    with pytest.warns(RuntimeWarning), pytest.raises(data.DataUnavailable, match="other examples"):
        tiny_cifar.read(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("test_lables.json", b"[1, 2]", r"class for each of 3 images, got shape \(2,\)"),
        ("test_batch.png", (3, 32, 3), "1024 pixels a row, got 32"),
    ],
)
def test_a_package_of_another_form_is_refused(tiny_cifar, file, content, message):
    tiny_cifar.raw[file] = png(np.zeros(content, np.uint8)) if "png" in file else content
    with pytest.raises(ValueError, match=message):
        cifar10.read_pictures(tiny_cifar.raw)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no file cifar-10-batches-bin/data_batch_3.bin"), (b"x" * 3072, "records of 3073")],
)
def test_an_archive_of_another_form_is_refused(tiny_cifar, tmp_path, content, message):
    path = tmp_path / ARCHIVE
    path.write_bytes(tiny_cifar.archive(data_batch_3=content))
    with pytest.raises(ValueError, match=message):
        cifar10.read_archive(path)


@pytest.mark.slow
def test_the_prepared_set_has_the_documented_shapes_and_channel_means():
    if not (stored.default_root() / "cifar10").exists():
        pytest.skip("not prepared here")
    found = data.load("cifar10")
    parts = (found.train, found.validation, found.test)
    assert [part.inputs.shape for part in parts] == [
        (n, 32, 32, 3) for n in (45_000, 5_000, 10_000)
    ]
    assert all(np.bincount(found.train.targets) == 4_500)
    means = found.train.inputs.mean(axis=(0, 1, 2), dtype=np.float64)
    np.testing.assert_allclose(means, (0.4914, 0.4822, 0.4465), atol=1e-3)
