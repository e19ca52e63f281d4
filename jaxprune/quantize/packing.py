"""Bytes of quantized parameters: counted, and really written.

The leaves follow one another in flattening order, without anything between them. Names, shapes and
dtypes are the model's and are not written. Of a leaf, little-endian, every part in whole bytes:

1. The header, 16 bytes: form u8, kind u8, bits of an entry u8, bits of a gap u8, entries of the
   tables u32, entries written u64.
2. The tables: scales in float32 (float64 for float64 leaves), then zero points (u8 up to 8 bits,
   u16 above); or the values of the codebook, in the leaf's dtype.
3. The index, as the form says: see `forms.py`.
4. The entries, codes or floats, each of as many bits as the header says, lowest bit first.

What is stored are the entries that are not 0: a weight that is kept and rounds to 0 costs no more
than a pruned one. Of a codebook only the values in use are written, and codes are as wide as it
takes to number those; where a zero has to be written among them (`dense`, fillers of `relative`),
it is one code more.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune import trees
from jaxprune.quantize import forms
from jaxprune.quantize.bits import pack_bits, packed_bytes, unpack_bits
from jaxprune.quantize.records import (
    ZERO,
    Record,
    codes_are_right,
    count_is_right,
    is_plain,
    leaf_of,
    record_of,
    table_bytes,
    width_is_right,
)
from jaxprune.quantize.stored import Quantized, check_quantized
from jaxprune.types import Params

HEADER = struct.Struct("<BBBBIQ")


class LeafBytes(NamedTuple):
    """Bytes of one leaf, part by part.

    Attributes:
      form: how its zeros are written: dense, bitmask, csr or relative.
      codes: its entries, codes or floats, with the fillers of `relative`.
      tables: scales and zero points, or the codebook.
      overhead: the index: what says where the entries are.
      header: what says how to read all that, always 16.
    """

    form: str
    codes: int
    tables: int
    overhead: int
    header: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.codes + self.tables + self.overhead + self.header


class StoredBytes(NamedTuple):
    """Bytes of a whole tree.

    Attributes:
      leaves: by name.
      total: over all leaves, `len(pack(quantized, form))`.
    """

    leaves: dict[str, LeafBytes]
    total: int


def stored_bytes(quantized: Quantized, form: str = "smallest") -> StoredBytes:
    """How many bytes `pack` would write, without writing them.

    Args:
      quantized: what a quantizer returned; not inside jit.
      form: one of `FORMS` for all leaves, or "smallest": the best for each.

    Returns:
      A `StoredBytes`.

    Raises:
      ValueError: no such form, or two leaves of one name. TypeError: nothing quantized.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import quantize
      >>> small = quantize.uniform(4)({"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)})
      >>> stored_bytes(small).leaves["kernel"]
      LeafBytes(form='dense', codes=32, tables=4, overhead=0, header=16)
      >>> stored_bytes(small).total, len(pack(small))
      (100, 100)
    """
    counted = []
    for record in _records(quantized):
        how = _plan(record, form)
        codes = packed_bytes(how.written, how.width)
        counted.append(LeafBytes(how.form, codes, len(record.tables), how.overhead, HEADER.size))
    names = trees.paths(quantized.params)
    trees.check_names(names)
    return StoredBytes(dict(zip(names, counted, strict=True)), sum(leaf.total for leaf in counted))


def pack(quantized: Quantized, form: str = "smallest") -> bytes:
    """Everything that is stored of quantized parameters; `unpack` gives them back bit for bit.

    Args:
      quantized: what a quantizer returned; not inside jit.
      form: one of `FORMS` for all leaves, or "smallest": the best for each.

    Returns:
      The bytes, laid out as the module's docstring says.

    Raises:
      ValueError: no such form. TypeError: `quantized` is not what a quantizer returned.
    """
    return b"".join(_written(record, form) for record in _records(quantized))


def unpack(data: bytes, like: Params) -> Params:
    """The parameters that were packed: `quantized.params`, bit for bit.

    A Python number comes back as the array that JAX makes of it, an array of 64 bits as NumPy's
    where JAX has no such type.

    Args:
      data: what `pack` returned.
      like: the model's parameters, for their structure, shapes and dtypes; values are not read.

    Returns:
      A tree like `like`.

    Raises:
      ValueError: the bytes do not fit such parameters, as far as they tell (they do not hold
        dtypes); names the leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune import quantize
      >>> params = {"kernel": jnp.array([[0.6, -1.5, 0.0]])}
      >>> unpack(pack(quantize.uniform(3)(params)), like=params)["kernel"]
      Array([[ 0.5, -1.5,  0. ]], dtype=float32)
    """
    view, leaves = memoryview(data), []
    for name, leaf in trees.named_leaves(like):
        value, used = _read(view, name, leaf)
        leaves.append(value)
        view = view[used:]
    if len(view):
        raise ValueError(f"{len(view)} bytes are left after the last leaf. {_REMEDY}")
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _records(quantized: Quantized) -> Iterator[Record]:
    check_quantized(quantized)
    for name, leaf in zip(trees.paths(quantized.params), quantized.stored, strict=True):
        try:
            yield record_of(leaf)
        except OverflowError:
            raise ValueError(
                f"Cannot pack {trees.label(name)}: it is a Python number that JAX's type for it "
                "does not hold. Make it an array."
            ) from None


_REMEDY = "Were they packed from other parameters? Pass `like` of the packed model."


def _plan(record: Record, form: str) -> forms.Plan:
    if form == "smallest":
        return forms.smallest(record.shape, record.places, *record.width)
    return forms.plan(form, record.shape, record.places, *record.width)


def _written(record: Record, form: str) -> bytes:
    how = _plan(record, form)
    positions, index = forms.write_index(how, record.shape, record.places)
    # Only where a position of a zero is written is a code for it needed.
    zeroed = bool(record.shift) and len(positions) > len(record.places)
    entries = record.entries[positions]
    if entries.ndim == 2:
        codes = entries.tobytes()
    else:
        codes = pack_bits(entries - (0 if zeroed else record.shift), how.width)
    kind = record.kind | (ZERO if zeroed else 0)
    number = forms.FORMS.index(how.form)
    head = HEADER.pack(number, kind, how.width, how.gap, record.table_count, how.written)
    return head + record.tables + index + codes


def _read(view: memoryview, name: str, like: Any) -> tuple[Any, int]:
    """One leaf, and how many bytes it took."""
    shape = np.shape(like)
    if len(view) < HEADER.size:
        raise ValueError(f"The bytes end before {trees.label(name)}. {_REMEDY}")
    number, kind, width, gap, count, written = HEADER.unpack_from(view)
    wrong = ValueError(f"The bytes at {trees.label(name)} are not those of one of shape {shape} "
                       f"and dtype {trees.dtype_of(like)}. {_REMEDY}")  # fmt: skip
    if number >= len(forms.FORMS) or not width_is_right(kind, width, like):
        raise wrong
    form = forms.FORMS[number]
    n = math.prod(shape)
    if written > n or (form == "dense" and written != n) or not count_is_right(kind, count, shape):
        raise wrong
    tables = table_bytes(kind, count, width, like)
    index = forms.index_bytes(form, gap, written, shape)
    ends = list(accumulate([HEADER.size, tables, index, packed_bytes(written, width)]))
    if ends[-1] > len(view):
        raise wrong
    parts = [bytes(view[start:end]) for start, end in pairwise(ends)]
    positions = forms.read_index(form, gap, written, shape, parts[1])
    if len(positions) != written or (written and not 0 <= positions.min() <= positions.max() < n):
        raise wrong
    plain = is_plain(kind)
    as_bytes = lambda: np.frombuffer(parts[2], np.uint8).reshape(written, width // 8)
    entries = as_bytes() if plain else unpack_bits(parts[2], written, width)
    if not (plain or codes_are_right(kind, count, shape, entries)):
        raise wrong
    return leaf_of(kind, width, parts[0], count, positions, entries, like), ends[-1]
