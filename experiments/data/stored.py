"""Sets that live in tensorflow_datasets' directories, read down a ladder of places.

1. "prepared": a directory that tensorflow_datasets (or a lower rung, earlier) prepared.
2. "official": the download that tensorflow_datasets' own builder names, where there is one.
3. "package": the same contents out of a package registry, for machines that reach nothing else.

What rungs 2 and 3 find is verified, prepared with the same builder and put where rung 1 looks.
Nothing here knows what the inputs are: `images.py`, `mails.py` and `text_catalogue.py` make them
fit for a network.
"""

import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.data import builders, official, prepared
from experiments.data.dataset import DataUnavailable, RawSplits
from experiments.data.ladder import Rung, climb
from experiments.data.packages import Package

# The last two are needed by tensorflow_datasets, which does not declare them.
_NEEDS = {
    "tensorflow_datasets": "tensorflow-datasets",
    "array_record": "array_record",
    "importlib_resources": "importlib_resources",
    "PIL": "Pillow",
}


@dataclass(frozen=True, kw_only=True)
class OfficialFiles:
    """The files that tensorflow_datasets' own builder downloads.

    Attributes:
        names: of the files in the builder's table of checksums.
        read: verifies and reads them, given their paths by name.
    """

    names: tuple[str, ...]
    read: Callable[[Mapping[str, Path]], RawSplits]


@dataclass(frozen=True, kw_only=True)
class StoredSet:
    """What the ladder must know of a set.

    Attributes:
        name: the set's name in tensorflow_datasets.
        builder: the builder class, "module:Class": the official one, or one of our own.
        num_classes: number of classes; 0 where the targets are none.
        counts: examples by split.
        fingerprints: `contents.canonical`'s fingerprint by split; every rung must match it.
        official: what the official builder downloads; None where there is no such builder.
        package: the registry package.
        package_files: names or patterns of the files that are taken out of it.
        from_package: verifies and reads the package's files, given their contents by name.
        class_names: the names of the classes that the official builder publishes, if it does.
        stand_in: what a reader may take instead, without any download.
    """

    name: str
    builder: str
    num_classes: int = 0
    counts: Mapping[str, int]
    fingerprints: Mapping[str, str]
    official: OfficialFiles | None = None
    package: Package
    package_files: tuple[str, ...]
    from_package: Callable[[Mapping[str, bytes]], RawSplits]
    class_names: tuple[str, ...] = ()
    stand_in: str = "--dataset digits"


def read_stored(stored: StoredSet, data_dir: Path | None) -> tuple[RawSplits, str]:
    """Read a set from the first rung that has it.

    Args:
        stored: the set.
        data_dir: root of the prepared directories; None for `default_root()`.

    Returns:
        Inputs uint8 [N, ...] (bytes [N] of lines) and targets int32 [N] by split, in the canonical
        order of `contents.canonical`, and the word for the rung that gave them.

    Raises:
        DataUnavailable: no rung could give it, packages that all rungs need are missing, or the
            root cannot be written when the set has to be prepared.
    """
    _require(stored)
    builder = builders.builder_class(stored.builder)
    root = _usable_root(data_dir or default_root(), builder)
    path = root / builders.relative_path(builder)

    def make(source: builders.Source) -> RawSplits:
        return prepared.make(
            builder,
            source,
            root,
            stored.counts,
            stored.fingerprints,
            stored.class_names,
            stand_in=stored.stand_in,
        )

    def from_prepared() -> RawSplits:
        return prepared.read(path, stored.counts, stored.fingerprints)

    def from_package() -> RawSplits:
        def source(scratch: Path, manager: builders.DownloadManager) -> RawSplits:
            return stored.from_package(stored.package.files(stored.package_files))

        return make(source)

    rungs = [Rung("prepared", f"prepared directory {path}", from_prepared)]
    if stored.official is not None:
        rungs.append(_official_rung(builder, stored.official, make))
    rungs.append(Rung("package", str(stored.package), from_package))
    return climb(stored.name, rungs, stand_in=stored.stand_in)


def _official_rung(
    builder: type, files: OfficialFiles, make: Callable[[builders.Source], RawSplits]
) -> Rung[RawSplits]:
    def source(scratch: Path, manager: builders.DownloadManager) -> RawSplits:
        urls, total = builders.official_urls(builder, files.names)
        official.fetch(urls, scratch, total=total)
        return files.read(manager.download(urls))

    place = f"official download from {builders.official_host(builder)}"
    return Rung("official", place, lambda: make(source))


def default_root() -> Path:
    """`$TFDS_DATA_DIR`, else `~/tensorflow_datasets`, as tensorflow_datasets itself has it."""
    # Read at each call: tensorflow_datasets reads the variable once, at import.
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _usable_root(root: Path, builder: type) -> Path:
    # A set that TensorFlow users prepared as tfrecord is sound, only unreadable without
    # TensorFlow. It is left alone, and ours goes beside it.
    info_path = root / builders.relative_path(builder) / "dataset_info.json"
    try:
        info = json.loads(info_path.read_text(encoding="utf-8"))
        formats = {info["fileFormat"], *info.get("alternativeFileFormats", ())}
    except (OSError, ValueError, KeyError, TypeError):
        return root  # absent or damaged: rung 1 says which
    return root if builders.FILE_FORMAT in formats else root / builders.FILE_FORMAT


def _require(stored: StoredSet) -> None:
    missing = [pip for module, pip in _NEEDS.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise DataUnavailable(
            f"{stored.name} is read through packages that are not installed: {', '.join(missing)}. "
            f"Run `pip install {' '.join(missing)}`; `{stored.stand_in}` does not need them."
        )
