"""Unsigned integers of any width, written one after another without gaps, lowest bit first."""

from __future__ import annotations

import numpy as np

_INDEX_TYPES = ("<u1", "<u2", "<u4", "<u8")


def packed_bytes(n: int, width: int) -> int:
    """Bytes of n integers of so many bits: the last byte is filled up.

    Example:
      >>> packed_bytes(3, width=3)
      2
    """
    return -(-n * width // 8)


def pack_bits(values: np.ndarray, width: int) -> bytes:
    """The lowest `width` bits (0 to 32) of each value.

    Example:
      >>> pack_bits(np.array([1, 2, 3]), width=4).hex()
      '2103'
    """
    as_bytes = np.ascontiguousarray(values, "<u4").view(np.uint8).reshape(-1, 4)
    bits = np.unpackbits(as_bytes[:, : -(-width // 8)], axis=1, bitorder="little")[:, :width]
    return np.packbits(bits.ravel(), bitorder="little").tobytes()


def unpack_bits(data: bytes, n: int, width: int) -> np.ndarray:
    """The n values that `pack_bits` wrote, uint32.

    Example:
      >>> unpack_bits(bytes.fromhex("2103"), 3, width=4)
      array([1, 2, 3], dtype=uint32)
    """
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=n * width, bitorder="little")
    as_bytes = np.packbits(bits.reshape(n, width), axis=1, bitorder="little")
    whole = np.zeros((n, 4), np.uint8)
    whole[:, : as_bytes.shape[1]] = as_bytes
    return whole.view("<u4").reshape(n).astype(np.uint32)


def width_of(n: int) -> int:
    """Bits that number n things: 0 for one of them."""
    return max(n - 1, 0).bit_length()


def index_type(largest: int) -> np.dtype:
    """The narrowest unsigned type, of whole bytes, that holds `largest`.

    Example:
      >>> index_type(300)
      dtype('uint16')
    """
    return next(t for t in map(np.dtype, _INDEX_TYPES) if largest <= np.iinfo(t).max)
