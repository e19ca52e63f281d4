"""Results on disk: named by the configuration's hash, written atomically, resumed by themselves."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax

from experiments.locking import alone


def digest(config: Any) -> str:
    """Ten hexadecimal digits that name a frozen dataclass configuration.

    Example:
      >>> @dataclasses.dataclass(frozen=True)
      ... class Config:
      ...     seeds: int = 3
      >>> digest(Config()) == digest(Config(3)) != digest(Config(4))
      True
    """
    text = json.dumps(dataclasses.asdict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def write_atomically(path: Path, text: str) -> None:
    """Write a whole file or none of it.

    Raises:
      OSError: it cannot be written; the path is named.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text)
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise OSError(error.errno, f"{error.strerror}; it was not written", str(path)) from error


def results(folder: Path, begin: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Path and content of the results files of a folder that begin so and have a dense network.

    Those that are damaged are named in a warning and left out.
    """
    for path in sorted(folder.glob(f"{begin}*.json")):
        try:
            found = json.loads(path.read_text())
            if "dense" in found["pieces"]:
                yield path, found
        except (ValueError, KeyError, TypeError) as error:
            warnings.warn(f"{path} is left out: it cannot be read ({error}).", stacklevel=2)


def hardware() -> dict[str, Any]:
    """What the numbers were measured on."""
    device = jax.local_devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.local_device_count(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


class Ledger:
    """Finished pieces of work by name; a piece is written once and survives a kill.

    Processes with the same configuration may fill one ledger at the same time.

    Args:
      path: the JSON file.
      config: the configuration whose results it holds.

    Attributes:
      pieces: what is finished.
      failed: the reasons of what is not, by name; it is tried again by the next run.
      made_on: the hardware of the last piece; this one's before there are any.
    """

    def __init__(self, path: Path, config: Any):
        self.path, self.config = path, dataclasses.asdict(config)
        self.made_on = hardware()
        self.pieces: dict[str, Any] = {}
        self.failed: dict[str, str] = {}
        self._merge()

    def _merge(self) -> None:
        """Add what is on disk to what is known, which wins."""
        found = self._read() if self.path.exists() else None
        if found is not None:
            self.made_on = found["hardware"]
            self.pieces = {**found["pieces"], **self.pieces}
            self.failed = {**found.get("failed", {}), **self.failed}

    def _read(self) -> dict[str, Any] | None:
        # Through JSON and back, as what is on disk went: tuples are lists there.
        wanted = json.loads(json.dumps(self.config))
        try:
            found: dict[str, Any] = json.loads(self.path.read_text())
            parts = [found["hardware"], found["pieces"], found.get("failed", {})]
            if not all(isinstance(part, dict) for part in parts):
                raise TypeError("it does not hold pieces by name")
            if found["config"] == wanted:
                return found
            problem = "holds another configuration"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"cannot be read ({type(error).__name__}: {error})"
        aside = self.path.with_suffix(".damaged")
        os.replace(self.path, aside)
        warnings.warn(
            f"{self.path} {problem}; it was moved to {aside.name} and the run starts over.",
            stacklevel=4,
        )
        return None

    def is_finished(self, name: str) -> bool:
        """True if the piece is there with its report: a piece without is measured again."""
        return "report" in self.pieces.get(name, {})

    def record(self, name: str, piece: Any) -> None:
        """Add a finished piece and write everything, with what other processes have added.

        Raises:
          FloatingPointError: a number of the piece is NaN or infinite.
          OSError: it cannot be written.
        """
        _check_finite(name, piece)
        with self._changed():
            self.pieces[name], self.made_on = piece, hardware()

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Work on a piece that may fail: then its reason is recorded, and the others go on.

        Losses, scores and weights that are not finite fail: the library says so by ValueError.
        """
        try:
            yield
        except (FloatingPointError, ValueError) as problem:
            with self._changed():
                self.failed[name] = str(problem)

    def check_failed(self) -> None:
        """Raise if a piece has failed.

        Raises:
          FloatingPointError: names them all, with their reasons.
        """
        if self.failed:
            told = "".join(f"\n  {name}: {reason}" for name, reason in self.failed.items())
            raise FloatingPointError(f"{len(self.failed)} failed, see {self.path}:{told}")

    @contextmanager
    def _changed(self) -> Iterator[None]:
        with alone(self.path.parent, wait=True):
            self._merge()
            yield
            self.failed = {n: why for n, why in self.failed.items() if n not in self.pieces}
            content = {"config": self.config, "hardware": self.made_on, "pieces": self.pieces}
            if self.failed:
                content["failed"] = self.failed
            write_atomically(self.path, json.dumps(content, indent=1) + "\n")


def _check_finite(name: str, piece: Any) -> None:
    if isinstance(piece, float) and not math.isfinite(piece):
        raise FloatingPointError(f"{name} is {piece}.")
    if isinstance(piece, list | tuple):
        piece = dict(enumerate(piece))
    if isinstance(piece, dict):
        for key, value in piece.items():
            _check_finite(f"{name}/{key}", value)
