"""Climb a ladder of places until one gives the data."""

import warnings
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from experiments.data.dataset import DataUnavailable

T = TypeVar("T")


class NotHere(Exception):
    """A rung that has nothing to give: an ordinary reason to try the next one, without alarm."""


class Damaged(Exception):
    """A rung whose data must not be used: a reason to warn, then to try the next one."""


class Rung(NamedTuple, Generic[T]):
    """A place to look.

    Attributes:
        source: one word for `Dataset.source`.
        place: where it looks, for messages.
        read: gives the data, or raises; `NotHere` when there is simply nothing.
    """

    source: str
    place: str
    read: Callable[[], T]


def climb(
    name: str, rungs: Sequence[Rung[T]], *, stand_in: str = "--dataset digits"
) -> tuple[T, str]:
    """Return the first rung's data and its `source`, trying the rungs in order.

    A rung that fails otherwise than by `NotHere` (`Damaged`, a wrong checksum) is named in a
    warning before the next one is tried.

    Args:
        name: of the set, for messages.
        rungs: the places, best first.
        stand_in: what a reader may take instead, without any download.

    Raises:
        DataUnavailable: when every rung failed, listing all places and reasons; one that a rung
            raises itself ends the climb at once.
    """
    reasons = []
    for number, rung in enumerate(rungs, start=1):
        try:
            return rung.read(), rung.source
        except DataUnavailable:
            raise
        # Whatever a place raises (storage libraries share no base class), the next may serve;
        # the reason is not lost: it is warned about here or listed at the end.
        except Exception as error:
            reason = describe(error)
            reasons.append(f"  {number}. {rung.place}: {reason}")
            if not isinstance(error, NotHere):
                warnings.warn(f"{name}: {rung.place}: {reason}", RuntimeWarning, stacklevel=2)
    raise DataUnavailable(
        f"{name} could not be read from any of {len(reasons)} places:\n"
        + "\n".join(reasons)
        + "\nRetry where one of them can be reached, or pass `--data-dir` with a prepared "
        f"directory. `{stand_in}` needs no download."
    )


def describe(error: BaseException) -> str:
    """The error on one line; the types of our own errors say nothing more than their text."""
    text = " ".join(str(error).split())
    return text if isinstance(error, (NotHere, Damaged)) else f"{type(error).__name__}: {text}"
