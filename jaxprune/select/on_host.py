"""Rankings of few scores, sorted by NumPy: XLA would compile a program for every set of shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxprune import trees
from jaxprune.select.threshold import Axes

MOST = 1 << 16
"""Entries that a sort takes a few milliseconds for."""


def takes(scores: Sequence[Any], *told: Any) -> bool:
    """True for concrete scores in the host's memory that are few, where nothing told is traced."""
    if trees.is_traced(list(told)) or not all(trees.on_host(leaf) for leaf in scores):
        return False
    return sum(leaf.size for leaf in scores) <= MOST


def gone(leaf: jax.Array, axes: Axes) -> int:
    """The largest number of `-inf`, entries pruned already, in a part."""
    return int(np.max((np.asarray(leaf) == -np.inf).sum(axis=axes), initial=0))


def one_ranking(scores: Sequence[jax.Array], goes: int, limits: Sequence[int]) -> list[jax.Array]:
    """The masks when the lowest of all leaves go, leaf i giving up at most `limits[i]` entries."""
    flat = [_ordered(leaf).ravel() for leaf in scores]
    given = [np.sort(_lowest(x)[: int(most)]) for x, most in zip(flat, limits, strict=True)]
    values = np.concatenate([x[where] for x, where in zip(flat, given, strict=True)])
    goes = min(max(int(goes), 0), len(values))
    cut = np.zeros(len(values), bool)
    cut[_lowest(values)[:goes]] = True
    masks, start = [], 0
    for leaf, x, where in zip(scores, flat, given, strict=True):
        kept = x != -np.inf
        kept[where[cut[start : start + len(where)]]] = False
        start += len(where)
        masks.append(trees.from_host(kept.reshape(leaf.shape), leaf))
    return masks


def by_parts(
    scores: Sequence[jax.Array], goes: Sequence[int], axes: Sequence[Axes]
) -> list[jax.Array]:
    """The masks when the `goes[i]` lowest of every part of leaf i go, a part spans `axes[i]`."""
    masks = []
    for leaf, pruned, ax in zip(scores, goes, axes, strict=True):
        others = tuple(a for a in range(leaf.ndim) if a not in ax)
        order = (*others, *ax)
        x = np.transpose(_ordered(leaf), order)
        parts = x.reshape(math.prod(x.shape[: len(others)]), math.prod(x.shape[len(others) :]))
        kept = parts != -np.inf
        np.put_along_axis(kept, _lowest(parts)[:, : int(pruned)], False, axis=1)
        whole = np.transpose(kept.reshape(x.shape), np.argsort(order))
        masks.append(trees.from_host(whole, leaf))
    return masks


def _lowest(x: np.ndarray) -> np.ndarray:
    """Places in ascending order of what is there, of equals the first one first."""
    return np.argsort(x, axis=-1, kind="stable")


def _ordered(leaf: jax.Array) -> np.ndarray:
    """Scores that compare as XLA compares them on a CPU: to it subnormal numbers are 0."""
    x = np.asarray(leaf)
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, x.dtype.type(0), x)
