"""Builders of tensorflow_datasets, made to prepare without TensorFlow.

The official image builders hand arrays to TensorFlow's encoder and read through its file system.
A sub-class of the same name and version that yields Pillow images, written as array_record, needs
neither, and its directory is what `tfds.builder(name)` reads. A builder of our own goes the same
way.
"""

import contextlib
import importlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np

from experiments.data.dataset import RawSplits, Split
from experiments.data.progress import bar

FILE_FORMAT = "array_record"
_STEP = 500  # examples between two moves of the progress bar


class DownloadManager(Protocol):
    """The part of `tfds.download.DownloadManager` that a source uses."""

    def download(self, urls: Mapping[str, str], /) -> Mapping[str, Path]:
        """Give the verified file of each url."""
        ...


Source = Callable[[Path, DownloadManager], RawSplits]
"""Gets the raw splits; the path is where the manager looks for files fetched by hand."""


def builder_class(builder: str) -> Any:
    """Import a builder class from its "module:Class" address."""
    module, name = builder.split(":")
    return getattr(importlib.import_module(module), name)


def relative_path(builder: Any) -> Path:
    """Where a builder's prepared files are under the root: name/version."""
    return Path(builder.name) / str(builder.VERSION)


def official_urls(builder: Any, files: tuple[str, ...]) -> tuple[dict[str, str], int]:
    """The official url of each file, and their size together in bytes.

    Raises:
        LookupError: tensorflow_datasets registers no such file.
    """
    table = {info.filename: (url, info.size) for url, info in builder.url_infos.items()}
    unknown = [file for file in files if file not in table]
    if unknown:
        raise LookupError(
            f"tensorflow_datasets registers no {', '.join(unknown)} for {builder.name}, only "
            f"{', '.join(table)}. Its builder has changed: adapt the set's file names."
        )
    return {file: table[file][0] for file in files}, sum(int(table[file][1]) for file in files)


def official_host(builder: Any) -> str:
    """Where the official files are, for messages."""
    parts = urlsplit(next(iter(builder.url_infos)))
    return f"{parts.scheme}://{parts.netloc}"


def write(builder: Any, source: Source, root: Path, class_names: Sequence[str] = ()) -> None:
    """Prepare the builder's set, as `source` gives it, under an empty root directory.

    Args:
        builder: the builder class; its supervised keys name the inputs and the classes.
        source: gives the raw splits.
        root: where to.
        class_names: what the directory calls the classes; nothing if the builder names none.
    """
    import tensorflow_datasets as tfds

    manual = root / "manual"
    manual.mkdir()
    config = tfds.download.DownloadConfig(
        manual_dir=manual,
        try_download_gcs=False,
        # Without it a url that has lost its registered checksum would pass unverified.
        force_checksums_validation=True,
    )
    with quiet(), contextlib.redirect_stdout(io.StringIO()):  # it prints notes of its own
        instance = _without_tensorflow(builder, source, manual, class_names)(data_dir=root)
        instance.download_and_prepare(
            download_dir=root / "downloads", download_config=config, file_format=FILE_FORMAT
        )


def _without_tensorflow(
    builder: Any, source: Source, manual: Path, class_names: Sequence[str]
) -> Any:
    from tensorflow_datasets.core import registered

    def info(self: Any) -> Any:
        made = builder._info(self)
        # It would ask a bucket for sizes, and leave an empty temporary directory at each call.
        made.initialize_from_bucket = lambda: None
        if class_names:
            made.features["label"].names = list(class_names)
        return made

    def split_generators(self: Any, manager: DownloadManager) -> dict[str, Any]:
        splits = source(manual, manager)
        return {name: self._generate_examples(name, split) for name, split in splits.items()}

    def generate_examples(self: Any, name: str, split: Split) -> Iterator[tuple[int, Any]]:
        examples = _examples(f"preparing {builder.name} {name}", split, self.info)
        if "id" not in self.info.features:
            return examples
        # As the official builders name them: by split and place.
        return ((key, example | {"id": f"{name}_{key:05d}"}) for key, example in examples)

    methods = {
        "name": builder.name,
        "_info": info,
        "_split_generators": split_generators,
        "_generate_examples": generate_examples,
    }
    # Unregistered: the official class keeps its name for everyone else in this process.
    with registered.skip_registration():
        return type(builder.__name__, (builder,), methods)


def _examples(description: str, split: Split, info: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    import tensorflow_datasets as tfds

    inputs, targets = info.supervised_keys
    pixels = isinstance(info.features[inputs], tfds.features.Image)
    with bar(description, len(split.targets)) as advance:
        for key, (values, label) in enumerate(zip(split.inputs, split.targets, strict=True)):
            if key % _STEP == 0:
                advance(_STEP)
            yield key, {inputs: _image(values) if pixels else values, targets: int(label)}


def _image(pixels: np.ndarray) -> Any:
    from PIL import Image

    # Pillow has no [H, W, 1]: a grey image is [H, W].
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence tensorflow_datasets' own bars and its advice to use OpenCV."""
    from tensorflow_datasets.core.utils import tqdm_utils

    was_active, logger = tqdm_utils._active, logging.getLogger("absl")
    level = logger.level
    tqdm_utils.display_progress_bar(False)
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        tqdm_utils.display_progress_bar(was_active)
