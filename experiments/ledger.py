"""Results on disk: named by the configuration's hash, written atomically, resumed by themselves."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import warnings
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
    """Write a whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    os.replace(partial, path)


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
      made_on: the hardware of the last piece; this one's before there are any.
    """

    def __init__(self, path: Path, config: Any):
        self.path, self.config = path, dataclasses.asdict(config)
        self.made_on = hardware()
        self.pieces: dict[str, Any] = {}
        if path.exists():
            self.pieces = self._read()

    def _read(self) -> dict[str, Any]:
        # Through JSON and back, as what is on disk went: tuples are lists there.
        wanted = json.loads(json.dumps(self.config))
        try:
            found = json.loads(self.path.read_text())
            if found["config"] == wanted:
                self.made_on = found["hardware"]
                return dict(found["pieces"])
            problem = "holds another configuration"
        except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
            problem = f"cannot be read ({type(error).__name__}: {error})"
        aside = self.path.with_suffix(".damaged")
        os.replace(self.path, aside)
        warnings.warn(
            f"{self.path} {problem}; it was moved to {aside.name} and the run starts over.",
            stacklevel=3,
        )
        return {}

    def is_finished(self, name: str) -> bool:
        """True if the piece is there with its report: a piece without is measured again."""
        return "report" in self.pieces.get(name, {})

    def record(self, name: str, piece: Any) -> None:
        """Add a finished piece and write everything, with what other processes have added."""
        with alone(self.path.parent, wait=True):
            if self.path.exists():
                self.pieces = {**self._read(), **self.pieces}
            self.pieces[name], self.made_on = piece, hardware()
            content = {"config": self.config, "hardware": self.made_on, "pieces": self.pieces}
            write_atomically(self.path, json.dumps(content, indent=1) + "\n")
