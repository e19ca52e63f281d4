"""The arrays of a safetensors file, without the package of that name.

The file is 8 bytes, the length of its header (an unsigned integer, the lowest byte first); the
header, JSON of every array's `dtype`, `shape` and `data_offsets`; then the arrays' bytes.
"""

from __future__ import annotations

import json

import numpy as np

_DTYPES = {
    **{"BOOL": "?", "U8": "u1", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"},
    **{"F16": "<f2", "F32": "<f4", "F64": "<f8"},
}


def arrays(content: bytes) -> dict[str, np.ndarray]:
    """All arrays by name, views of the file's bytes.

    Raises:
      ValueError: it is no such file, ends too early, or holds a type that NumPy has not.
    """
    size = int.from_bytes(content[:8], "little")
    if not 2 <= size <= len(content) - 8:
        raise ValueError(
            f"Not a whole safetensors file: {len(content)} bytes, of which the header is to take "
            f"{size}. Fetch it again."
        )
    header = json.loads(content[8 : 8 + size])
    header.pop("__metadata__", None)
    return {name: _array(name, entry, content, 8 + size) for name, entry in header.items()}


def _array(name: str, entry: dict, content: bytes, start: int) -> np.ndarray:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"{name}: NumPy has no type {entry['dtype']}; known: {list(_DTYPES)}.")
    dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    count = int(np.prod(shape, dtype=np.int64))
    if end - begin != count * dtype.itemsize or start + end > len(content):
        raise ValueError(
            f"{name}: {end - begin} bytes at {begin} of {len(content) - start} cannot hold "
            f"{entry['dtype']} of shape {shape}. Fetch the file again."
        )
    return np.frombuffer(content, dtype, count, start + begin).reshape(shape)
