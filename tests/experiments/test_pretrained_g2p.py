"""g2p-en: laws on random weights of small widths, under the published names and layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from experiments.data import DataUnavailable
from experiments.pretrained import g2p_en

apply = jax.jit(g2p_en.apply)


def drawn(embedding=6, hidden=8, seed=0):
    draw = np.random.default_rng(seed)
    shapes = {
        "enc_emb": (29, embedding),
        "dec_emb": (74, embedding),
        "fc_w": (74, hidden),
        "fc_b": 74,
    }
    for layer in ("enc", "dec"):
        shapes[f"{layer}_w_ih"], shapes[f"{layer}_w_hh"] = (
            (3 * hidden, embedding),
            (3 * hidden, hidden),
        )
        shapes[f"{layer}_b_ih"] = shapes[f"{layer}_b_hh"] = 3 * hidden
    return {name: jnp.asarray(draw.normal(size=s), jnp.float32) for name, s in shapes.items()}


WORDS = ("a", "it's", "cats", "abbeys")
SPOKEN = ("AH0", "IH1 T S", "K AE1 T S", "AE1 B IY0 Z")


def inputs_of(texts=WORDS, lines=SPOKEN, letters=8, sounds=7):
    ahead, following = g2p_en.spoken(lines, sounds)
    return g2p_en.Words(jnp.asarray(g2p_en.spelled(texts, letters)), jnp.asarray(ahead)), following


def cell(p, layer, x, h):
    """One step of one word in float64, gate by gate, after the published formula."""
    p = {name: np.asarray(value, np.float64) for name, value in p.items()}
    n = len(h)
    given, own = (
        p[f"{layer}_w_ih"] @ x + p[f"{layer}_b_ih"],
        p[f"{layer}_w_hh"] @ h + p[f"{layer}_b_hh"],
    )
    sigmoid = lambda t: 1 / (1 + np.exp(-t))
    r, z = sigmoid(given[:n] + own[:n]), sigmoid(given[n : 2 * n] + own[n : 2 * n])
    return (1 - z) * np.tanh(given[2 * n :] + r * own[2 * n :]) + z * h


def slowly(p, text, read):
    """Logits of one word, letter by letter and phoneme by phoneme."""
    h = np.zeros(p["enc_w_hh"].shape[1])
    for letter in [*text, "</s>"]:
        at = g2p_en.GRAPHEMES.index(letter) if letter in g2p_en.GRAPHEMES else 1
        h = cell(p, "enc", np.asarray(p["enc_emb"][at]), h)
    found = []
    for phoneme in read:
        h = cell(p, "dec", np.asarray(p["dec_emb"][phoneme]), h)
        found.append(np.asarray(p["fc_w"]) @ h + np.asarray(p["fc_b"]))
    return np.array(found)


def test_logits_are_those_of_the_published_formula_word_by_word():
    params, (inputs, _) = drawn(), inputs_of()
    logits = np.asarray(apply(params, inputs))
    for text, read, ours in zip(WORDS, np.asarray(inputs.phonemes), logits, strict=True):
        real = read[read != g2p_en.PAD]
        np.testing.assert_allclose(ours[: len(real)], slowly(params, text, real), atol=1e-5)
        assert not ours[len(real) :].any()


def test_padding_and_other_words_change_nothing():
    params, (inputs, following) = drawn(), inputs_of()
    logits = apply(params, inputs)
    longer, later = inputs_of(letters=13, sounds=11)
    more = apply(params, longer)
    np.testing.assert_allclose(more[:, :7], logits, atol=1e-5)
    np.testing.assert_allclose(
        g2p_en.loss(more, jnp.asarray(later)),
        g2p_en.loss(logits, jnp.asarray(following)),
        rtol=1e-5,
    )
    alone = apply(params, jax.tree.map(lambda x: x[2:3], inputs))
    np.testing.assert_allclose(alone[0], logits[2], atol=1e-5)


def test_decoding_says_what_the_network_finds_likeliest_after_what_it_said():
    params, (inputs, _) = drawn(seed=3), inputs_of()
    said = np.asarray(g2p_en.greedy(params, inputs.graphemes, 5))
    for text, row in zip(WORDS, said, strict=True):
        spoken, read = [], [g2p_en.BEGIN]
        while len(spoken) < 5:
            best = int(slowly(params, text, read)[-1].argmax())
            if best == g2p_en.END:
                break
            spoken, read = [*spoken, best], [*read, best]
        assert row.tolist() == spoken + [g2p_en.PAD] * (5 - len(spoken))


def test_the_distance_to_the_dense_outputs_is_their_divergence_over_all_places():
    dense, other = (np.asarray(apply(drawn(seed=s), inputs_of()[0])) for s in (0, 1))
    share = lambda t: np.exp(t) / np.exp(t).sum(-1, keepdims=True)
    p, q = share(dense.astype(np.float64)), share(other.astype(np.float64))
    wanted = (p * np.log(p / q)).sum(-1).mean(-1)
    np.testing.assert_allclose(g2p_en.distill(other, dense), wanted, rtol=1e-5)
    np.testing.assert_allclose(g2p_en.distill(dense, dense), 0, atol=1e-6)


def test_units_of_states_and_embeddings_go_and_the_shrunk_network_speaks_like_the_masked_one():
    params, (inputs, _) = drawn(), inputs_of()
    coupling = jp.couple(g2p_en.apply, params, inputs)
    assert {n: g.units for n, g in coupling.groups.items()} == {
        "dec_emb": 6, "enc_emb": 6, "enc_w_hh": 8,
    }  # fmt: skip
    select = jp.select.lowest_units(coupling, scope="group")
    by = jp.saliency.unit_magnitude(coupling, prunable=g2p_en.prunable)
    pruned = jp.one_shot(by, select)(params, sparsity=0.5)
    small = jp.shrink(pruned.params, pruned.mask, coupling)
    assert small["dec_w_hh"].shape == (12, 4)
    assert small["enc_emb"].shape == (29, 3)
    whole, left = (apply(p, inputs) for p in (pruned.params, small))
    np.testing.assert_allclose(left, whole, atol=1e-5)
    ours, theirs = (g2p_en.greedy(p, inputs.graphemes) for p in (small, pruned.params))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_the_published_weights_speak_as_published():
    try:
        weights = g2p_en.weights()
        net = g2p_en.load(16, 20_000, 0, None)
    except DataUnavailable as problem:
        pytest.skip(f"no package: {problem}")
    assert jp.trees.count(weights) == 834_890
    rows = g2p_en.spelled(["activationist"], 14)
    said = [g2p_en.PHONEMES[i] for i in np.asarray(g2p_en.greedy(weights, rows))[0] if i]
    assert " ".join(said) == "AE2 K T IH0 V EY1 SH AH0 N IH0 S T"  # the package's own example
    found = net.quality(weights)
    assert found["words"] == pytest.approx(68.58, abs=0.05)
    assert 100 - found["phonemes"] == pytest.approx(9.96, abs=0.02)


@pytest.mark.slow
def test_draws_differ_with_the_seed_and_test_words_do_not():
    try:
        one, two = (g2p_en.load(64, 50, seed, None) for seed in (0, 1))
    except DataUnavailable as problem:
        pytest.skip(f"no package: {problem}")
    assert np.any(one.inputs.graphemes != two.inputs.graphemes)
    assert one.quality.texts == two.quality.texts
    assert float(one.loss(one.apply(one.params, one.inputs), one.targets).mean()) < 0.3
