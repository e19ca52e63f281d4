"""What a user gives on the command line, checked: names against those that exist, numbers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def check_known(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise unless all names are known.

    Raises:
      ValueError: names the first that is not, and suggests the nearest that is.

    Example:
      >>> check_known("method", ["obs"], ["obd", "random"])
      Traceback (most recent call last):
      ...
      ValueError: Unknown method 'obs'. Known: obd, random. Did you mean 'obd'?
    """
    known = tuple(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"Unknown {kind} '{name}'. Known: {', '.join(known)}.{hint}")


def check_sparsities(sparsities: Iterable[float]) -> None:
    """Raise unless all sparsities leave something: they are in [0, 1).

    Raises:
      ValueError: names the first that is not, such as NaN.

    Example:
      >>> check_sparsities((0.5, 1.5))
      Traceback (most recent call last):
      ...
      ValueError: `sparsities` are the shares of weights that go, at least 0 and below 1; got 1.5.
    """
    for sparsity in sparsities:
        if not 0 <= sparsity < 1:
            raise ValueError(
                "`sparsities` are the shares of weights that go, at least 0 and below 1; "
                f"got {sparsity:g}."
            )


def check_seeds(seeds: int | None, what: str, least: int = 1) -> None:
    """Raise unless there are enough seeds, or none was given.

    Args:
      seeds: how many.
      what: they are how many of what.
      least: how many there must be.

    Raises:
      ValueError: fewer.

    Example:
      >>> check_seeds(0, "runs every arm has")
      Traceback (most recent call last):
      ...
      ValueError: `seeds` is how many runs every arm has, >= 1; got 0.
    """
    if seeds is not None and seeds < least:
        raise ValueError(f"`seeds` is how many {what}, >= {least}; got {seeds}.")
