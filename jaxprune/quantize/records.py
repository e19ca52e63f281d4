"""One stored leaf on the host: its entries as they are written, its tables, and back."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.quantize.bits import width_of
from jaxprune.quantize.stored import (
    Codebook,
    Grid,
    Plain,
    Stored,
    centre,
    code_dtype,
    in_jax,
    value_of,
)

RAW, FLOAT16, BFLOAT16, SYMMETRIC, AFFINE, SHARED = range(6)
CHANNELS, ZERO = 64, 128  # flags of a kind: tables per channel; 0 has the first code

_HALVES = {jnp.dtype(jnp.float16): FLOAT16, jnp.dtype(jnp.bfloat16): BFLOAT16}
_HALF_OF = {kind: dtype for dtype, kind in _HALVES.items()}


class Record(NamedTuple):
    """A leaf ready to be written.

    Attributes:
      kind: one of the kinds, and flags.
      shape: the leaf's.
      entries: `[n]` codes, or `[n, itemsize]` bytes; what stands for 0 where nothing is stored.
      places: positions of the entries that are not 0, ascending.
      width: bits of an entry, and of one where 0 has to have a code.
      shift: 1 where that code is an additional one, the first.
      tables: scales and zero points, or the codebook.
      table_count: scales, or values of a codebook over all channels.
    """

    kind: int
    shape: tuple[int, ...]
    entries: np.ndarray
    places: np.ndarray
    width: tuple[int, int]
    shift: int
    tables: bytes
    table_count: int


def record_of(stored: Stored) -> Record:
    """What is to be written of a leaf."""
    if isinstance(stored, Grid):
        return _grid_record(stored)
    return _shared_record(stored) if isinstance(stored, Codebook) else _plain_record(stored)


def _grid_record(stored: Grid) -> Record:
    codes, scale = np.asarray(stored.codes), np.asarray(stored.scale)
    kind, tables, zero = SYMMETRIC, scale.tobytes(), np.asarray(centre(stored.bits))
    if stored.zero_point is not None:
        zero = np.asarray(stored.zero_point)
        kind, tables = AFFINE, tables + zero.tobytes()
    kind |= CHANNELS if scale.ndim else 0
    width = (stored.bits, stored.bits)
    places = np.flatnonzero(codes != zero)
    return Record(kind, codes.shape, codes.ravel(), places, width, 0, tables, scale.size)


def _shared_record(stored: Codebook) -> Record:
    codes, values = np.asarray(stored.codes), np.asarray(stored.values)
    found = values[np.arange(len(values)), codes] if values.ndim == 2 else values[codes]
    there = (found != 0).ravel()
    if stored.kept is not None:
        there &= np.asarray(stored.kept).ravel()
    places = np.flatnonzero(there)
    entries = np.zeros(codes.size, np.uint32)
    used = np.flatnonzero(np.bincount(codes.ravel()[places], minlength=1))
    entries[places] = np.searchsorted(used, codes.ravel()[places]) + 1
    kind = SHARED | (CHANNELS if values.ndim == 2 else 0)
    width = (width_of(len(used)), width_of(len(used) + 1))
    table = np.ascontiguousarray(values[..., used])  # values that no stored entry has are not
    return Record(kind, codes.shape, entries, places, width, 1, table.tobytes(), table.size)


def _plain_record(stored: Plain) -> Record:
    values = _host(stored.values, stored.dtype)
    shape, itemsize = np.shape(stored.values), values.dtype.itemsize
    words = math.prod(values.shape[len(shape) :])  # a PRNG key is several
    as_bytes = values.reshape(-1).view(np.uint8).reshape(math.prod(shape), words * itemsize)
    shorter = values.dtype != stored.dtype and trees.is_float(stored.values)
    kind = _HALVES[values.dtype] if shorter else RAW
    width = (8 * as_bytes.shape[1],) * 2
    return Record(kind, shape, as_bytes, np.flatnonzero(as_bytes.any(1)), width, 0, b"", 0)


def _host(values: Any, dtype: Any) -> np.ndarray:
    if jax.dtypes.issubdtype(trees.dtype_of(values), jax.dtypes.prng_key):
        values = jax.random.key_data(values)
    return np.ascontiguousarray(values, None if hasattr(values, "dtype") else dtype)


def table_bytes(kind: int, count: int, width: int, like: Any) -> int:
    """Bytes of the tables of a leaf, from what its header holds."""
    base = kind & ~(CHANNELS | ZERO)
    if base == SHARED:
        return count * trees.dtype_of(like).itemsize
    zero = code_dtype(width).itemsize if base == AFFINE else 0
    scaled = base in (SYMMETRIC, AFFINE)
    return count * (jnp.dtype(trees.score_dtype(like)).itemsize + zero) if scaled else 0


def width_is_right(kind: int, width: int, like: Any) -> bool:
    """Could entries of so many bits be those of a leaf of this dtype?"""
    base = kind & ~(CHANNELS | ZERO)
    if base == RAW:
        return width == 8 * _blank(like).shape[1]
    if not trees.is_float(like):
        return False
    if base in _HALF_OF:
        return width == 16 and trees.dtype_of(like).itemsize > 2
    return width <= 17 if base == SHARED else base in (SYMMETRIC, AFFINE) and 1 <= width <= 16


def count_is_right(kind: int, count: int, shape: tuple[int, ...]) -> bool:
    """Could tables of so many entries be those of a leaf of this shape?"""
    if is_plain(kind):
        return count == 0
    channels = 1
    if kind & CHANNELS:
        if len(shape) < 2:
            return False
        channels = shape[-1]
    if kind & ~(CHANNELS | ZERO) == SHARED:
        return count % channels == 0 if channels else count == 0
    return count == channels


def codes_are_right(kind: int, count: int, shape: tuple[int, ...], codes: np.ndarray) -> bool:
    """Could these be the codes of such tables? Of a codebook the last value is in use."""
    if kind & ~(CHANNELS | ZERO) != SHARED:
        return True
    if not len(codes):
        return count == 0
    values = count // (shape[-1] if kind & CHANNELS else 1)
    return int(codes.max()) + 1 == values + bool(kind & ZERO)


def is_plain(kind: int) -> bool:
    """Are the entries floats (or whatever the leaf holds), and not codes?"""
    return kind & ~(CHANNELS | ZERO) in (RAW, FLOAT16, BFLOAT16)


def leaf_of(
    kind: int, width: int, tables: bytes, count: int, positions: np.ndarray, entries: Any, like: Any
) -> Any:
    """The leaf whose entries at `positions` were written; the others are 0."""
    base, zeroed = kind & ~(CHANNELS | ZERO), bool(kind & ZERO)
    shape, dtype = np.shape(like), trees.dtype_of(like)
    if base in (SYMMETRIC, AFFINE):
        read = _read_grid(base, kind, width, tables, count, positions, entries, like)
        if in_jax(dtype):
            return value_of(read)
        with jax.enable_x64(True):
            return np.asarray(value_of(read))
    if base == SHARED:
        return _read_shared(kind, zeroed, tables, positions, entries, shape, dtype)
    blank = _blank(like) if base == RAW else np.zeros((math.prod(shape), 2), np.uint8)
    blank[positions] = entries
    return _from_bytes(blank, like, _HALF_OF.get(base))


def _read_grid(base: int, kind: int, width: int, tables: bytes, count: int, positions: np.ndarray,
               entries: np.ndarray, like: Any) -> Grid:  # fmt: skip
    shape = (count,) if kind & CHANNELS else ()
    scale = np.frombuffer(tables, trees.score_dtype(like), count)
    zero = None
    if base == AFFINE:
        zero = np.frombuffer(tables, code_dtype(width), count, scale.nbytes).reshape(shape)
    start = np.asarray(centre(width) if zero is None else zero)
    codes = np.array(np.broadcast_to(start, np.shape(like))).ravel()
    codes[positions] = entries
    codes = codes.astype(code_dtype(width)).reshape(np.shape(like))
    return Grid(codes, scale.reshape(shape), zero, width, trees.dtype_of(like))


def _read_shared(kind: int, zeroed: bool, tables: bytes, positions: np.ndarray,
                 entries: np.ndarray, shape: tuple[int, ...], dtype: Any) -> Any:  # fmt: skip
    table = np.frombuffer(tables, dtype)
    table = table.reshape(shape[-1] if kind & CHANNELS and shape[-1] else 1, -1)
    if zeroed:
        table = np.concatenate([np.zeros((len(table), 1), dtype), table], 1)
    leaf = np.zeros(math.prod(shape), dtype)
    leaf[positions] = table[positions % len(table), entries]
    return _as_array(leaf.reshape(shape))


def _blank(like: Any) -> np.ndarray:
    """Bytes of a leaf of this shape and dtype, all 0, `[n, itemsize]`."""
    dtype, n = trees.dtype_of(like), math.prod(np.shape(like))
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        words = math.prod(jax.eval_shape(jax.random.key_data, like).shape[np.ndim(like) :])
        return np.zeros((n, 4 * words), np.uint8)
    return np.zeros((n, np.dtype(dtype).itemsize), np.uint8)


def _from_bytes(as_bytes: np.ndarray, like: Any, half: Any) -> Any:
    dtype, shape = trees.dtype_of(like), np.shape(like)
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        words = as_bytes.view(np.uint32).reshape(*shape, -1)
        return jax.random.wrap_key_data(jnp.asarray(words), impl=key_impl(like))
    found = as_bytes.reshape(-1).view(half or dtype).reshape(shape)
    return _as_array(found.astype(dtype))


def _as_array(found: np.ndarray) -> Any:
    """A JAX array, or NumPy's where JAX has no such type."""
    return jnp.asarray(found) if in_jax(found.dtype) else found


def key_impl(leaf: Any) -> Any:
    """The kind of a PRNG key; inside a trace, where an abstract key will do."""
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), leaf)
    return found[0]
