"""Prepared tensorflow_datasets directories: read one with suspicion, make one atomically."""

import errno
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data import builders
from experiments.data.contents import canonical
from experiments.data.dataset import DataUnavailable, RawSplits, Split
from experiments.data.ladder import Damaged, NotHere, describe
from experiments.data.progress import bar

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_CHUNK = 2000  # examples decoded between two moves of the progress bar


def read(path: Path, counts: Mapping[str, int], fingerprints: Mapping[str, str]) -> RawSplits:
    """Read a prepared directory, and refuse it unless it holds exactly the expected examples.

    Args:
        path: the directory of one version, such as `root/mnist/3.0.1`.
        counts: examples by split.
        fingerprints: `contents.canonical`'s fingerprint by split.

    Returns:
        uint8 inputs [N, ...] (bytes [N] of lines) and int32 targets [N] by split, in canonical
        order.

    Raises:
        NotHere: there is no such directory.
        Damaged: it is half-written or corrupt, or holds other examples.
    """
    if not path.exists():
        raise NotHere("there is none")
    try:
        with builders.quiet():
            return _read(path, counts, fingerprints)
    except Damaged:
        raise
    # The storage libraries raise RuntimeError, ValueError, ParseError, OSError and more.
    except Exception as error:
        raise Damaged(f"it is damaged and will be rebuilt ({describe(error)})") from error


def _read(path: Path, counts: Mapping[str, int], fingerprints: Mapping[str, str]) -> RawSplits:
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(path)
    splits = {}
    for name, count in counts.items():
        source = builder.as_data_source(name)
        if len(source) != count:
            raise Damaged(
                f"its {name} part must have {count} examples, got {len(source)}; it will be rebuilt"
            )
        found = _arrays(source, builder.info.supervised_keys, f"reading {builder.name} {name}")
        splits[name], fingerprint = canonical(found)
        if fingerprint != fingerprints[name]:
            raise Damaged(
                f"its {name} part holds other examples: expected fingerprint "
                f"{fingerprints[name]}, got {fingerprint}; it will be rebuilt"
            )
    return splits


def _arrays(source: Any, names: tuple[str, str], description: str) -> Split:
    inputs_name, targets_name = names
    inputs, targets = [], []
    with bar(description, len(source)) as advance:
        for start in range(0, len(source), _CHUNK):
            # In batches: three times faster than one by one.
            keys = range(start, min(start + _CHUNK, len(source)))
            for example in source.__getitems__(keys):
                inputs.append(example[inputs_name])
                targets.append(example[targets_name])
            advance(len(keys))
    return Split(np.stack(inputs), np.asarray(targets, dtype=np.int32))


def make(
    builder: Any,
    source: builders.Source,
    root: Path,
    counts: Mapping[str, int],
    fingerprints: Mapping[str, str],
    class_names: Sequence[str] = (),
    *,
    stand_in: str = "--dataset digits",
) -> RawSplits:
    """Prepare a set in a temporary directory inside `root`, verify it, and put it in place.

    What `source` gives is read back from the written files, so a directory is only ever put in
    place when `read` accepts it.

    Raises:
        DataUnavailable: `root` cannot be written.
        Damaged: what was written does not read back as expected.
    """
    final = root / builders.relative_path(builder)
    with _scratch(root, builder.name, stand_in) as scratch:
        try:
            builders.write(builder, source, scratch, class_names)
        except OSError as error:  # of the network it may be, then another rung serves
            if error.errno in _OF_THE_DISK:
                raise _unwritable(builder.name, root, error, stand_in) from error
            raise
        written = scratch / builders.relative_path(builder)
        splits = read(written, counts, fingerprints)
        try:
            _put_in_place(written, final, counts, fingerprints)
        except OSError as error:
            raise _unwritable(builder.name, root, error, stand_in) from error
    return splits


@contextmanager
def _scratch(root: Path, name: str, stand_in: str) -> Iterator[Path]:
    # Inside the root: on the same file system, so that the final rename is atomic.
    try:
        root.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"incomplete.{name}.", dir=root))
    except OSError as error:
        raise _unwritable(name, root, error, stand_in) from error
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _unwritable(name: str, root: Path, error: OSError, stand_in: str) -> DataUnavailable:
    return DataUnavailable(
        f"{name} is not usable in {root} and must be prepared there, but that cannot be "
        f"written ({describe(error)}). Pass another `--data-dir`, set TFDS_DATA_DIR, or use "
        f"`{stand_in}`, which needs no download."
    )


def _put_in_place(
    written: Path, final: Path, counts: Mapping[str, int], fingerprints: Mapping[str, str]
) -> None:
    """Rename `written` to `final`; a usable directory that is already there wins.

    Another process may have prepared the same set meanwhile: then its directory stays and ours
    is dropped. A damaged one is moved aside into the scratch directory, which is deleted.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(3):
        try:
            written.replace(final)
            return
        except OSError:
            if not final.exists():
                raise
        with suppress(Damaged, NotHere):
            read(final, counts, fingerprints)
            return
        with suppress(FileNotFoundError):  # another process was faster to move it
            final.replace(written.parent / f"damaged.{attempt}")
    raise OSError(f"{final} is replaced by other processes again and again. Try again later.")
