"""What selections refuse, in words of what is selected: entries, blocks or units."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.types import Formed, Params


class Words(NamedTuple):
    """How messages call what is selected, the parts that it lies in, and the way out."""

    things: str
    part: Callable[[str], str]
    parts: str
    whole: str
    leave_out: str


ENTRIES = Words("entries", trees.label, "leaves", "the tree", "exclude it in `prunable`")
BLOCKS = ENTRIES._replace(things="blocks")
UNITS = Words("units", lambda name: f"group {name!r}", "groups", "all groups",
              "protect that group (`protected=`)")  # fmt: skip


def whole(number: Any, least: int, about: str, more: str = "") -> int:
    """A count as a Python integer, from NumPy's too.

    Raises:
      ValueError: not a whole number, or below `least`; it begins with `about`, ends with `more`.

    Example:
      >>> whole(np.int64(3), 1, "`rounds` is")
      3
    """
    try:
        found = None if isinstance(number, bool) else operator.index(number)
    except TypeError:
        found = None
    if found is None or found < least:
        raise ValueError(f"{about} an integer >= {least}; got {number!r}.{more}")
    return found


def check_floor(floor: Any) -> int:
    """A floor as an integer; raise unless it is a whole number of entries, blocks or units."""
    return whole(floor, 0, "`floor` counts entries a leaf keeps, or units a group:")


def numbers(names: list[str], scores: list[Any], words: Words = ENTRIES) -> None:
    """Outside jit, NaN has no place in an order, and is an error."""
    if any(isinstance(leaf, Formed) for leaf in scores):
        return  # they are formed inside jit alone
    for name, leaf in zip(names, scores, strict=True):
        nan = np.isnan(np.asarray(leaf)).sum() if trees.on_host(leaf) else _nan_count(leaf)
        if not trees.is_traced(nan) and nan:
            raise ValueError(
                f"The score of {words.part(name)} is NaN at {int(nan)} of {leaf.size} "
                f"{words.things}. Check the loss and the parameters for NaN, or {words.leave_out}."
            )


@jax.jit
def _nan_count(leaf: jax.Array) -> jax.Array:
    return trees.total(jnp.isnan(leaf))


def one_ranking(goes: int, n: int, limit: int, floor: int, parts: int, words: Words) -> None:
    """Raise where one ranking over all parts would have to take what the floor protects."""
    if goes > limit:
        raise ValueError(
            f"Cannot prune {goes} of {n} {words.things}: floor={floor} protects {n - limit} "
            f"{words.things} in {parts} {words.parts}. Lower the sparsity, or pass a smaller "
            "`floor`."
        )


def by_parts(
    names: list[str],
    goes: list[int],
    parts: list[int],
    sizes: list[int],
    floor: int,
    words: Words,
) -> None:
    """Raise where a leaf would keep less than the floor."""
    for name, k, part, size in zip(names, goes, parts, sizes, strict=True):
        left = (part - k) * (size // part if part else 0)
        if left < min(floor, size):
            raise ValueError(
                f"{words.part(name)} would keep {left} of its {size} {words.things}, fewer than "
                f"floor={floor}. Lower the sparsity, pass floor=0, or {words.leave_out}."
            )


def reached(where: str, gone: Any, goes: int, words: Words, slack: int = 0) -> None:
    """Outside jit, a sparsity below the one already reached is an error.

    `slack` more may be gone than are asked for: what is rounded takes that many more.
    """
    if not trees.is_traced(gone) and gone > goes + slack:
        raise ValueError(
            f"{int(gone)} {words.things} of {where} are pruned already, more than the {goes} asked "
            "for: the sparsity is a fraction of the ORIGINAL parameters. Ask for more, or start "
            "without a mask."
        )


def axis_given(axis: Any, what: str) -> int | dict[str, int]:
    """An axis, or a mapping from leaf names to axes, of Python integers.

    Raises:
      TypeError: something else.
    """
    try:
        if isinstance(axis, Mapping):
            return {name: operator.index(own) for name, own in axis.items()}
        return operator.index(axis)
    except TypeError:
        raise TypeError(
            f"`{what}` is an axis, an integer, or a mapping from leaf names to axes; got {axis!r}."
        ) from None


def axis_of(axis: int | Mapping[str, int], name: str, default: int) -> int:
    """The axis of one leaf."""
    return axis if isinstance(axis, int) else axis.get(name, default)


def axes_named(axis: int | Mapping[str, int], params: Params, what: str) -> None:
    """Raise ValueError where a mapping names a leaf that the tree does not have.

    Holes, which wrappers of optimizers put in place of others' parameters, keep their names.
    """
    if isinstance(axis, int):
        return
    hole = lambda x: x is None or (isinstance(x, tuple) and not x)
    found = jax.tree_util.tree_flatten_with_path(params, is_leaf=hole)[0]
    holes = [jax.tree_util.keystr(p, simple=True, separator="/") for p, x in found if hole(x)]
    names = trees.paths(params)
    trees.check_names([name for name in names if name in axis])
    for name in axis:
        if name not in names and not any(f"{name}/".startswith(f"{hole}/") for hole in holes):
            raise ValueError(
                f"`{what}` names '{name}', and no leaf has that name. There are {names}."
            )
