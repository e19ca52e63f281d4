"""Names that a user gives, checked against those that exist."""

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
