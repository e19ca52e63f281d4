"""One process at a time in a folder; a process that dies lets go of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Busy(RuntimeError):
    """Another process holds the folder."""


@contextmanager
def alone(folder: Path, *, wait: bool) -> Iterator[None]:
    """Hold a folder, which is made if it is not there; nothing is written into it.

    Args:
      folder: what to hold; whoever asks for it by this function sees it held. One that this process
        holds already is held too: waiting for it never ends.
      wait: until it is free; otherwise raise at once.

    Raises:
      Busy: another process holds it, and `wait` is False.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # not on Windows: there two at once are the user's care
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(handle)
        raise Busy(f"Another process trains {folder}. Wait for it, or end it.") from None
    try:
        yield
    finally:
        os.close(handle)
