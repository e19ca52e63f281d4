"""The ways to write down which entries of a leaf are not 0: nothing, bits, CSR, relative indices.

Letters: n entries, k of them not 0, `w` bits an entry, which may be a code or a float. A form says
which entries are written (positions in row-major order) and what index goes with them; the entries
themselves are written alike in all of them, `ceil(written * w / 8)` bytes.

| form | written | bytes of the index |
|---|---|---|
| `dense` | all n | 0 |
| `bitmask` | k | `ceil(n / 8)` |
| `csr` | k | `k * column + (rows + 1) * pointer` |
| `relative` | k + fillers | `ceil(written * gap / 8)` |

`csr`: column and pointer are the narrowest whole-byte types that hold the last column and k. The
matrix is the leaf reshaped to `(prod(shape[:-1]), shape[-1])`; a scalar is `(1, 1)`.

`relative`: with each entry goes how many zeros were skipped before it, in `gap` bits; every
`2**gap` zeros in a row take a filler, an entry that is 0 itself. The format of Han, Mao, Dally
2016, Deep Compression, figure 2, with the gap width that makes the leaf smallest.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from jaxprune.quantize.bits import index_type, pack_bits, packed_bytes, unpack_bits

FORMS = ("dense", "bitmask", "csr", "relative")
"""How the places of a leaf's entries that are not 0 may be written."""
_WIDEST_GAP = 16

Shape = tuple[int, ...]


class Plan(NamedTuple):
    """How one leaf is to be written.

    Attributes:
      form: one of FORMS.
      gap: bits of a relative index; 0 in other forms.
      written: entries written.
      width: bits of one of them.
      overhead: bytes of the index.
    """

    form: str
    gap: int
    written: int
    width: int
    overhead: int

    @property
    def bytes(self) -> int:
        """Bytes of the index and the entries."""
        return self.overhead + packed_bytes(self.written, self.width)


def plan(form: str, shape: Shape, places: np.ndarray, width: int, width_with_zero: int) -> Plan:
    """How a leaf is written in a form, from counts alone.

    Args:
      form: one of FORMS.
      shape: the leaf's.
      places: positions of the entries that are not 0, ascending.
      width: bits of an entry, as long as none that is 0 is written.
      width_with_zero: bits of an entry where 0 has to have a code too.

    Example:
      >>> plan("bitmask", (3, 4), np.array([0, 5, 7, 8, 11]), 32, 32)
      Plan(form='bitmask', gap=0, written=5, width=32, overhead=2)
    """
    n, k = math.prod(shape), len(places)
    if form == "dense":
        return Plan(form, 0, n, width if k == n else width_with_zero, 0)
    if form in ("bitmask", "csr"):
        return Plan(form, 0, k, width, index_bytes(form, 0, k, shape))
    if form == "relative":
        skipped = _skipped(places)
        plans = []
        for gap in range(1, _WIDEST_GAP + 1):
            fillers = int(np.sum(skipped >> gap))
            bits = width_with_zero if fillers else width
            index = packed_bytes(k + fillers, gap)
            plans.append(Plan(form, gap, k + fillers, bits, index))
            if not fillers:
                break  # wider gaps save nothing more
        return min(plans, key=lambda p: p.bytes)
    raise ValueError(f"Unknown form {form!r}; there are {FORMS}, or 'smallest' for the best.")


def smallest(shape: Shape, places: np.ndarray, width: int, width_with_zero: int) -> Plan:
    """The plan of fewest bytes; of equals the first of FORMS."""
    return min(
        (plan(form, shape, places, width, width_with_zero) for form in FORMS), key=lambda p: p.bytes
    )


def write_index(how: Plan, shape: Shape, places: np.ndarray) -> tuple[np.ndarray, bytes]:
    """The positions whose entries are written, in order, and the index."""
    n = math.prod(shape)
    if how.form == "dense":
        return np.arange(n), b""
    if how.form == "bitmask":
        there = np.zeros(n, np.uint8)
        there[places] = 1
        return places, pack_bits(there, 1)
    if how.form == "csr":
        rows, column, pointer = _csr_types(shape, len(places))
        columns = max(shape[-1], 1) if shape else 1
        ends = np.searchsorted(places, np.arange(rows + 1) * columns)
        return places, (places % columns).astype(column).tobytes() + ends.astype(pointer).tobytes()
    positions = _with_fillers(places, how.gap)
    return positions, pack_bits(_skipped(positions), how.gap)


def index_bytes(form: str, gap: int, written: int, shape: Shape) -> int:
    """Bytes of the index that `write_index` made, from what a header holds."""
    if form == "relative":
        return packed_bytes(written, gap)
    if form == "bitmask":
        return packed_bytes(math.prod(shape), 1)
    if form == "csr":
        rows, column, pointer = _csr_types(shape, written)
        return written * column.itemsize + (rows + 1) * pointer.itemsize
    return 0


def read_index(form: str, gap: int, written: int, shape: Shape, data: bytes) -> np.ndarray:
    """The positions that an index says are written, ascending."""
    n = math.prod(shape)
    if form == "dense":
        return np.arange(n)
    if form == "bitmask":
        return np.flatnonzero(unpack_bits(data, n, 1))
    if form == "csr":
        rows, column, pointer = _csr_types(shape, written)
        columns = np.frombuffer(data, column, written).astype(np.int64)
        ends = np.frombuffer(data, pointer, rows + 1, written * column.itemsize).astype(np.int64)
        return columns + np.repeat(np.arange(rows), np.diff(ends)) * (shape[-1] if shape else 1)
    return np.cumsum(unpack_bits(data, written, gap).astype(np.int64) + 1) - 1


def _csr_types(shape: Shape, k: int) -> tuple[int, np.dtype, np.dtype]:
    """Rows, and the types of a column and of a row pointer."""
    columns = shape[-1] if shape else 1
    return math.prod(shape[:-1]), index_type(max(columns - 1, 0)), index_type(k)


def _skipped(places: np.ndarray) -> np.ndarray:
    """Zeros between each place and the one before it."""
    return np.diff(places, prepend=-1) - 1


def _with_fillers(places: np.ndarray, gap: int) -> np.ndarray:
    """The places, and between them every `2**gap`-th one of a long run of zeros."""
    fillers = _skipped(places) >> gap
    ends = np.cumsum(fillers + 1)
    back = np.repeat(ends, fillers + 1) - 1 - np.arange(ends[-1] if len(ends) else 0)
    before = np.repeat(np.concatenate([[-1], places[:-1]]), fillers + 1) if len(places) else places
    nth = np.repeat(fillers, fillers + 1) - back + 1
    return np.where(back == 0, np.repeat(places, fillers + 1), before + (nth << gap))
