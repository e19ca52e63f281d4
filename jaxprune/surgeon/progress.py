"""How surgeons say how far they are."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""`(what, done, total)`; what is a step of the search, or of a layer-wise surgeon a leaf's name."""


def silent(what: str, done: int, total: int) -> None:
    """Say nothing."""


def listener(progress: Progress | None) -> Progress:
    """What was passed as `progress`, which may be None."""
    return silent if progress is None else progress
