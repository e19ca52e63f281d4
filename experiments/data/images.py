"""Image sets that live in tensorflow_datasets, read down a ladder of three places.

1. "prepared": a directory that tensorflow_datasets (or a lower rung, earlier) prepared.
2. "official": the download that tensorflow_datasets' own builder names.
3. "package": the same files out of a package registry, for machines that reach nothing else.

What rungs 2 and 3 find is verified, prepared with the same builder and put where rung 1 looks.
"""

import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.data import builders, official, prepared
from experiments.data.dataset import DataUnavailable, Parts, RawSplits, Split
from experiments.data.ladder import Rung, climb
from experiments.data.packages import NpmPackage, npm_files

# The last two are needed by tensorflow_datasets, which does not declare them.
_NEEDS = {
    "tensorflow_datasets": "tensorflow-datasets",
    "array_record": "array_record",
    "importlib_resources": "importlib_resources",
    "PIL": "Pillow",
}


@dataclass(frozen=True)
class ImageSet:
    """What the ladder must know of an image set.

    Attributes:
        name: the set's name in tensorflow_datasets.
        builder: the official builder class, "module:Class".
        num_classes: number of classes.
        counts: examples by split.
        fingerprints: `contents.canonical`'s fingerprint by split; every rung must match it.
        official_files: names of the files in the official builder's table of checksums.
        from_official: verifies and reads the official files, given their paths by name.
        package: the registry package.
        package_files: names of the files that are taken out of it.
        from_package: verifies and reads the package's files, given their contents by name.
        class_names: the names of the classes that the official builder publishes, if it does.
    """

    name: str
    builder: str
    num_classes: int
    counts: Mapping[str, int]
    fingerprints: Mapping[str, str]
    official_files: tuple[str, ...]
    from_official: Callable[[Mapping[str, Path]], RawSplits]
    package: NpmPackage
    package_files: tuple[str, ...]
    from_package: Callable[[Mapping[str, bytes]], RawSplits]
    class_names: tuple[str, ...] = ()


def read_images(images: ImageSet, data_dir: Path | None) -> Parts:
    """Read an image set from the first rung that has it.

    Args:
        images: the set.
        data_dir: root of the prepared directories; None for `default_root()`.

    Returns:
        Inputs float32 [N, H, W, C] in [0, 1] (divided by 255) and targets int32 [N], in the
        canonical order of `contents.canonical`.

    Raises:
        DataUnavailable: no rung could give it, packages that all rungs need are missing, or the
            root cannot be written when the set has to be prepared.
    """
    _require(images.name)
    builder = builders.official_class(images.builder)
    root = _usable_root(data_dir or default_root(), builder)
    path = root / builders.relative_path(builder)

    def make(source: builders.Source) -> RawSplits:
        return prepared.make(
            builder, source, root, images.counts, images.fingerprints, images.class_names
        )

    def from_prepared() -> RawSplits:
        return prepared.read(path, images.counts, images.fingerprints)

    def from_official() -> RawSplits:
        def source(scratch: Path, manager: builders.DownloadManager) -> RawSplits:
            urls, total = builders.official_urls(builder, images.official_files)
            official.fetch(urls, scratch, total=total)
            return images.from_official(manager.download(urls))

        return make(source)

    def from_package() -> RawSplits:
        def source(scratch: Path, manager: builders.DownloadManager) -> RawSplits:
            return images.from_package(npm_files(images.package, images.package_files))

        return make(source)

    rungs = (
        Rung("prepared", f"prepared directory {path}", from_prepared),
        Rung(
            "official", f"official download from {builders.official_host(builder)}", from_official
        ),
        Rung("package", str(images.package), from_package),
    )
    splits, source = climb(images.name, rungs)
    return Parts(_scaled(splits["train"]), _scaled(splits["test"]), images.num_classes, source)


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


def _require(name: str) -> None:
    missing = [pip for module, pip in _NEEDS.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise DataUnavailable(
            f"{name} is read through packages that are not installed: {', '.join(missing)}. "
            f"Run `pip install {' '.join(missing)}`; `--dataset digits` does not need them."
        )


def _scaled(split: Split) -> Split:
    return Split(split.inputs.astype(np.float32) / np.float32(255), split.targets)
