"""Sets of text, stored as lines of fields in tensorflow_datasets' directories.

A record is a tuple of texts. It is stored as one line, UTF-8, its fields set apart by tabs, with
its place in the part, so that the order of reading survives the shuffling of the storage.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.data.dataset import RawSplits, Split
from experiments.data.packages import Package
from experiments.data.stored import StoredSet, read_stored

Record = tuple[str, ...]
Records = Mapping[str, Sequence[Record]]
"""Records in their order, by part ("train", "validation", "test")."""


def line_set(
    *,
    name: str,
    builder: str,
    counts: Mapping[str, int],
    fingerprints: Mapping[str, str],
    package: Package,
    package_files: tuple[str, ...],
    from_files: Callable[[Mapping[str, bytes]], Records],
    stand_in: str,
) -> StoredSet:
    """Describe a set of records.

    Args:
        name, counts, fingerprints, package, package_files, stand_in: as in `StoredSet`.
        builder: a class of `lines_builders.py`, "module:Class".
        from_files: verifies and reads the package's files, given their contents by name.
    """
    return StoredSet(
        name=name,
        builder=builder,
        counts=counts,
        fingerprints=fingerprints,
        package=package,
        package_files=package_files,
        from_package=lambda raw: to_lines(from_files(raw)),
        stand_in=stand_in,
    )


def to_lines(records: Records) -> RawSplits:
    """Records as raw splits: lines as bytes [N], and their places, int32 [N].

    Raises:
        ValueError: a field holds a tab or a line end.
    """
    return {name: _split(each) for name, each in records.items()}


def _split(records: Sequence[Record]) -> Split:
    for record in records:
        if any(mark in field for field in record for mark in "\t\n\r\0"):
            raise ValueError(f"A field must hold no tab, line end or zero byte, got {record!r}.")
    lines = np.array(["\t".join(record).encode() for record in records], dtype=bytes)
    return Split(lines, np.arange(len(records), dtype=np.int32))


def read_lines(stored: StoredSet, data_dir: Path | None) -> tuple[dict[str, list[Record]], str]:
    """Read records from the first rung that has them; see `stored.read_stored`.

    Returns:
        The records of each part in their order, and the word for the rung that gave them.

    Raises:
        DataUnavailable: no rung could give them, or `data_dir` cannot be written.
    """
    splits, source = read_stored(stored, data_dir)
    return {name: _records(split) for name, split in splits.items()}, source


def _records(split: Split) -> list[Record]:
    lines = split.inputs[np.argsort(split.targets)]
    return [tuple(line.decode().split("\t")) for line in lines.tolist()]
