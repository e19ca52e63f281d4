"""Find a row of a table by name, or say what the tables hold."""

import difflib
from collections.abc import Collection, Mapping
from typing import TypeVar

T = TypeVar("T")


def look_up(table: Mapping[str, T], name: str, elsewhere: Mapping[str, Collection[str]]) -> T:
    """The row of a name.

    Args:
        table: rows by name.
        name: of the row.
        elsewhere: the names that other functions load, by the name of the function.

    Raises:
        ValueError: no such name, with the nearest one or the function that knows it.
    """
    if name in table:
        return table[name]
    nearest = difflib.get_close_matches(str(name).lower(), table, n=1, cutoff=0.4)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    for function, names in elsewhere.items():
        if name in names:
            hint = f" Load it with `{function}`."
    known = ", ".join(repr(each) for each in table)
    raise ValueError(f"Unknown data set {name!r}.{hint} Known: {known}.")
