"""The arrays of an ONNX file, without the onnx package.

ONNX is Protocol Buffers: a message is a row of fields, each a key (number times 8 plus how it is
written) and a value. Of the format's `onnx.proto` only what holds arrays is read: field 7 of a
model is its graph, field 5 of a graph an array, whose fields 1, 2, 8 and 9 are its shape, its type,
its name and its bytes. Arrays written otherwise than as bytes are refused.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_GRAPH, _ARRAY = 7, 5
_DIMS, _TYPE, _NAME, _BYTES = 1, 2, 8, 9
_VARINT, _EIGHT, _LENGTH, _FOUR = 0, 1, 2, 5
_DTYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8", 10: "<f2", 11: "<f8"}


def arrays(model: bytes) -> dict[str, np.ndarray]:
    """The initializers of a model's graph by name, in the file's order.

    Raises:
      ValueError: the file ends too early, is of another format, or has an array of a type or
        a form that is not read.
    """
    found = {}
    for number, graph in _fields(model):
        if number != _GRAPH or not isinstance(graph, bytes):
            continue
        for inner, written in _fields(graph):
            if inner == _ARRAY and isinstance(written, bytes):
                name, array = _array(written)
                found[name] = array
    if not found:
        raise ValueError(f"An ONNX model must hold arrays, got none in {len(model)} bytes.")
    return found


def _array(message: bytes) -> tuple[str, np.ndarray]:
    dims: list[int] = []
    kind, name, content = 0, "", None
    for number, value in _fields(message):
        if number == _DIMS:
            # Written one by one, or all of them in a row of bytes.
            dims += [value] if isinstance(value, int) else _integers(value)
        elif number == _TYPE and isinstance(value, int):
            kind = value
        elif number == _NAME and isinstance(value, bytes):
            name = value.decode()
        elif number == _BYTES and isinstance(value, bytes):
            content = value
    if content is None or kind not in _DTYPES:
        raise ValueError(
            f"{name}: an array must be written as bytes of a type in {sorted(_DTYPES)}, got type "
            f"{kind} {'without' if content is None else 'with'} bytes. Read it with the onnx "
            "package."
        )
    return name, np.frombuffer(content, _DTYPES[kind]).reshape(dims)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    place = 0
    while place < len(message):
        key, place = _integer(message, place)
        number, form = key >> 3, key & 7
        if form == _VARINT:
            value, place = _integer(message, place)
            yield number, value
            continue
        if form == _LENGTH:
            size, place = _integer(message, place)
        elif form in (_EIGHT, _FOUR):
            size = 8 if form == _EIGHT else 4
        else:
            raise ValueError(f"Not an ONNX file: a field at byte {place} is of form {form}.")
        if place + size > len(message):
            raise ValueError(f"The ONNX file ends too early: {size} bytes are missing at {place}.")
        yield number, message[place : place + size]
        place += size


def _integer(message: bytes, place: int) -> tuple[int, int]:
    value, shift = 0, 0
    while place < len(message):
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
    raise ValueError(f"The ONNX file ends too early, inside a number at byte {place}.")


def _integers(row: bytes) -> list[int]:
    values, place = [], 0
    while place < len(row):
        value, place = _integer(row, place)
        values.append(value)
    return values
