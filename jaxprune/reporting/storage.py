"""Bytes of one masked leaf, in three formats."""

from __future__ import annotations

import math
from typing import NamedTuple

from jaxprune.quantize.forms import index_bytes


class LeafBytes(NamedTuple):
    """Bytes of one leaf.

    Attributes:
      dense: every entry.
      bitmask: kept entries and one bit for each entry.
      csr: kept entries, their columns, and where each row starts.
    """

    dense: int
    bitmask: int
    csr: int


def leaf_bytes(shape: tuple[int, ...], kept: int, itemsize: int) -> LeafBytes:
    """Bytes of a leaf of `shape` with `kept` entries of `itemsize` bytes, in each format.

    Example:
      >>> leaf_bytes((64, 32), kept=205, itemsize=4)
      LeafBytes(dense=8192, bitmask=1076, csr=1090)
    """
    n = math.prod(shape)
    if not 0 <= kept <= n:
        raise ValueError(
            f"A leaf of shape {shape} has {n} entries and cannot keep {kept}. Count its own mask."
        )
    return LeafBytes(
        dense_bytes(shape, itemsize),
        bitmask_bytes(shape, kept, itemsize),
        csr_bytes(shape, kept, itemsize),
    )


def dense_bytes(shape: tuple[int, ...], itemsize: int) -> int:
    """`n * itemsize`, n = number of entries.

    Example:
      >>> dense_bytes((3, 4), itemsize=4)
      48
    """
    return math.prod(shape) * itemsize


def bitmask_bytes(shape: tuple[int, ...], kept: int, itemsize: int) -> int:
    """`kept * itemsize + ceil(n / 8)`: the kept entries in order, and a bit for each entry.

    Example:
      >>> bitmask_bytes((3, 4), kept=5, itemsize=4)
      22
    """
    return kept * itemsize + index_bytes("bitmask", 0, kept, shape)


def csr_bytes(shape: tuple[int, ...], kept: int, itemsize: int) -> int:
    """`kept * (itemsize + index) + (rows + 1) * pointer`: compressed sparse rows.

    The matrix is the leaf reshaped to `(prod(shape[:-1]), shape[-1])`; a scalar is `(1, 1)`.
    `index` is the width of the narrowest unsigned type that holds the last column, `pointer` of
    the one that holds `kept`.

    Example:
      >>> csr_bytes((3, 4), kept=5, itemsize=4)  # 5 * (4 + 1) + 4 * 1
      29
    """
    return kept * itemsize + index_bytes("csr", 0, kept, shape)


def fraction(part: int, whole: int) -> float:
    """What part of a whole; 0 of nothing.

    Example:
      >>> fraction(1, 4), fraction(0, 0)
      (0.25, 0.0)
    """
    return part / whole if whole else 0.0
