"""Which entries compete with each other: `Selection.parts`, numbers over a tree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxprune import trees
from jaxprune.types import Params, Predicate, PyTree


def number_parts(
    params: Params,
    prunable: Predicate,
    part_of: Callable[[str, Any], np.ndarray],
    *,
    together: bool = False,
) -> PyTree:
    """The parts of a tree from those of each leaf, `part_of(name, leaf)`, counted from 0.

    Args:
      params: the tree.
      prunable: which leaves take part; others are -1.
      part_of: integers shaped like the leaf.
      together: leaves share their parts; otherwise the numbers go on from leaf to leaf.

    Example:
      >>> zeros = lambda name, leaf: np.zeros(np.shape(leaf), np.int32)
      >>> number_parts([np.ones((1, 2)), np.ones((1, 1))], lambda n, x: True, zeros)
      [array([[0, 0]], dtype=int32), array([[1]], dtype=int32)]
    """
    flags = trees.prunable_flags(params, prunable)
    found, start = [], 0
    for flag, (name, leaf) in zip(flags, trees.named_leaves(params), strict=True):
        if flag:
            numbers = part_of(name, leaf)
            found.append(numbers + np.int32(start))
            start += 0 if together or not numbers.size else int(numbers.max()) + 1
    return trees.replace_leaves(params, flags, found, lambda x: np.full(np.shape(x), -1, np.int32))


def along(leaf: Any, axis: int) -> np.ndarray:
    """Each entry's index along an axis."""
    shape = np.shape(leaf)
    where = np.arange(shape[axis] if shape else 1, dtype=np.int32)
    if not shape:
        return where.reshape(())
    ones = [1] * len(shape)
    ones[axis] = -1
    return np.broadcast_to(where.reshape(ones), shape)
