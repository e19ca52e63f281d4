"""Laws of the readers that pretrained networks need: weights, word pieces, typed files."""

import json

import numpy as np
import pytest

from experiments.pretrained import onnx_weights, safetensors, typed_files, wordpiece

# --- arrays of an ONNX file ---


def number(value):
    """The bytes of an integer in Protocol Buffers: seven bits a byte, the lowest first."""
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    return bytes([*written, value])


def field(key, content):
    return number(key << 3 | 2) + number(len(content)) + content


def tensor(name, array, kind, *, packed):
    dims = [number(d) for d in array.shape]
    shape = field(1, b"".join(dims)) if packed else b"".join(number(1 << 3) + d for d in dims)
    said = number(2 << 3) + number(kind)
    return field(5, shape + said + field(8, name.encode()) + field(9, array.tobytes()))


@pytest.mark.parametrize("packed", [True, False])
def test_arrays_of_an_onnx_file_are_read_as_they_were_written(packed):
    written = {
        "a": (np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32), 1),
        "b": (np.arange(5), 7),
        "scalar": (np.float32(0.5).reshape(()), 1),
    }
    graph = b"".join(tensor(name, *each, packed=packed) for name, each in written.items())
    # Fields that are no arrays, one of each form, stand between.
    others = field(1, b"a node") + number(9 << 3 | 5) + bytes(4) + number(9 << 3 | 1) + bytes(8)
    found = onnx_weights.arrays(number(1 << 3) + number(8) + field(7, others + graph))
    assert list(found) == list(written)
    for name, (array, _) in written.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_an_onnx_file_that_ends_too_early_or_holds_other_arrays_is_refused():
    whole = field(7, tensor("a", np.ones(9, np.float32), 1, packed=True))
    for cut in range(1, len(whole)):
        with pytest.raises(ValueError, match="too early"):
            onnx_weights.arrays(whole[:cut])
    with pytest.raises(ValueError, match="must hold arrays"):
        onnx_weights.arrays(b"")
    with pytest.raises(ValueError, match=r"a: an array must be .*got type 16"):
        onnx_weights.arrays(field(7, tensor("a", np.ones(9, np.float16), 16, packed=True)))


# --- arrays of a safetensors file ---


def safe(arrays):
    header, content = {"__metadata__": {"format": "pt"}}, b""
    for name, (array, kind) in arrays.items():
        place = [len(content), len(content) + array.nbytes]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": place}
        content += array.tobytes()
    written = json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + content


def test_arrays_of_a_safetensors_file_are_read_as_they_were_written():
    written = {
        "a": (np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32), "F32"),
        "none": (np.zeros((0, 2), np.float16), "F16"),
        "scalar": (np.int64(-7).reshape(()), "I64"),
    }
    found = safetensors.arrays(safe(written))
    assert list(found) == list(written)
    for name, (array, _) in written.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_a_safetensors_file_that_ends_too_early_or_holds_other_types_is_refused():
    whole = safe({"a": (np.ones(3, np.float32), "F32")})
    for cut in range(len(whole)):
        with pytest.raises(ValueError, match="Fetch"):
            safetensors.arrays(whole[:cut])
    with pytest.raises(ValueError, match="a: NumPy has no type BF16"):
        safetensors.arrays(safe({"a": (np.ones(3, np.int16), "BF16")}))
    with pytest.raises(ValueError, match=r"a: 12 bytes .*cannot hold F64 of shape \(3,\)"):
        safetensors.arrays(safe({"a": (np.ones(3, np.float32), "F64")}))


# --- word pieces ---


def test_words_are_cut_at_white_space_and_around_every_mark():
    assert wordpiece.words("\tHe said:\u201cNo\u201d\u2014 $3^x\n") == [
        *("he", "said", ":", "\u201c", "no", "\u201d", "\u2014", "$", "3", "^", "x")
    ]
    # Accents and control characters go; a Chinese character is a word.
    assert wordpiece.words("N\u00c4i\u0308ve\u200b\x00 \u4e2d\u6587a") == [
        *("naive", "\u4e2d", "\u6587", "a")
    ]


def test_pieces_spell_their_word_and_the_first_is_the_longest_that_the_vocabulary_has():
    known = {piece: i for i, piece in enumerate(("a", "b", "ab", "##a", "##b", "##ba"))}
    draw = np.random.default_rng(0)
    for _ in range(50):
        word = "".join(draw.choice(["a", "b"], draw.integers(1, 9)))
        first, *rest = wordpiece.pieces(word, known)
        assert first + "".join(piece.removeprefix("##") for piece in rest) == word
        assert (first == "ab") == word.startswith("ab")
    for unknown in ("abc", "a" * 101):
        assert wordpiece.pieces(unknown, known) == ["[UNK]"]
    assert len(wordpiece.pieces("a" * 100, known)) == 100


def test_rows_that_are_too_long_are_refused():
    assert wordpiece.padded([[1], [2, 3]], 2, 9).tolist() == [[1, 9], [2, 3]]
    with pytest.raises(ValueError, match="at most 1 pieces, got one of 2"):
        wordpiece.padded([[1], [2, 3]], 1, 9)


# --- typed files ---


def test_chosen_files_are_long_enough_different_and_few_of_a_type_of_react_native():
    draw = np.random.default_rng(0)
    raw = {f"react-native/{i}.java": draw.bytes(300) for i in range(50)}
    raw |= {f"examples/java/{i}": draw.bytes(300) for i in range(30)}
    raw |= {f"examples/agda/{i}": draw.bytes(300 - 50 * i) for i in range(3)}
    raw |= {"examples/java/0.output": draw.bytes(300), "examples/b/0": raw["examples/agda/0"]}
    chosen = typed_files.choose(raw)
    assert len([name for name in chosen if name.startswith("react-native/")]) == typed_files.MOST
    assert {name for name in chosen if name.startswith("examples/java")} == {
        f"examples/java/{i}" for i in range(30)
    }
    # 300 bytes twice, once under another name; then 250 and 200.
    assert len([name for name in chosen if not name.endswith(".java")]) == 31
    parts = typed_files.split(chosen)
    assert sorted(file.name for part in parts for file in part) == sorted(chosen)
    assert min(map(len, parts)) > 0
