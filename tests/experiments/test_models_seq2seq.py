"""The translator: against double precision, padding, and its own teacher-forced logits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from experiments.models import Seq2Seq, Translator
from experiments.models.seq2seq import prunable
from jaxprune.trees import count, prunable_flags, select_leaves

PAD, BEGIN, END, H = 0, 1, 2, 4
MODEL = Translator(Seq2Seq(9, 7, H, layers=3))
SOURCE = np.array([[3, 8, 4, 2], [5, 2, PAD, PAD], [7, 6, 2, PAD]])
TARGET = np.array([[BEGIN, 4, 6, 3], [BEGIN, 5, PAD, PAD], [BEGIN, 3, 3, PAD]])
LABELS = np.array([[4, 6, 3, END], [5, END, PAD, PAD], [3, 3, END, PAD]])
near = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

forced = quick(MODEL.apply)


def fresh(model, seed=0):
    random = np.random.default_rng(seed)
    tree = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), jnp.float32), tree)


def padded(tokens, more):
    return np.pad(tokens, ((0, 0), (0, more)))


@pytest.mark.parametrize(("width", "million"), [(256, 34), (512, 81), (768, 140), (1024, 211)])
def test_at_gnmts_size_it_has_the_published_number_of_parameters(width, million):
    params = jax.eval_shape(Translator(Seq2Seq(36_549, 36_549, width, 4)).init, jax.random.key(0))
    blocks = (2 + 2) + (3 + 2 + 2) + 4 * 3  # [H, 4 H]: both ways, the encoder, the decoder
    biases = 9 * 4 * width + width
    assert count(params) == 3 * 36_549 * width + (4 * blocks + 2) * width**2 + biases
    assert round(count(params) / 1e6) == million


@pytest.mark.parametrize(("sparsity", "million"), [(0.8, 44), (0.85, 33), (0.9, 23)])
def test_sparing_attention_gives_the_published_nonzeros(sparsity, million):
    params = jax.eval_shape(Translator(Seq2Seq(36_549, 36_549, 1024, 4)).init, jax.random.key(0))
    pruned = sparsity * count(select_leaves(params, prunable_flags(params, prunable)))
    assert round((count(params) - pruned) / 1e6) == million


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def advance(p, x, state):
    i, f, g, o = np.split(x @ p["inputs"] + state[1] @ p["recurrent"] + p["bias"], 4)
    cell = sigmoid(f) * state[0] + sigmoid(i) * np.tanh(g)
    return cell, sigmoid(o) * np.tanh(cell)


def through(p, xs):
    state, found = (np.zeros(H), np.zeros(H)), []
    for x in xs:
        state = advance(p, x, state)
        found.append(state[1])
    return state, np.array(found)


def one_in_double(p, source, target, layers=3):
    """One sentence without padding, token by token, every layer at once."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), p)
    x = p["source_embedding"]["embedding"][source]
    _, there = through(p["forwards"], x)
    end, back = through(p["backwards"], x[::-1])
    states, x = [end], np.concatenate([there, back[::-1]], axis=1)
    for i in range(layers - 1):
        end, found = through(p[f"encoder_{i}"], x)
        x = found + x if i >= 1 else found
        states.append(end)
    context, logits = np.zeros(H), []
    for token in target:
        below = p["target_embedding"]["embedding"][token]
        for i in range(layers):
            states[i] = advance(p[f"decoder_{i}"], np.concatenate([below, context]), states[i])
            hidden = states[i][1]
            if i == 0:
                a = p["attention"]
                energies = np.tanh(hidden @ a["query"] + x @ a["memory"]) @ a["energy"]
                shares = np.exp(energies - energies.max())
                context = shares @ x / shares.sum()
            below = hidden + below if i >= 2 else hidden
        logits.append(below @ p["softmax"]["kernel"])
    return np.array(logits)


def test_every_sentence_of_a_batch_is_the_definition_in_double():
    params = fresh(MODEL)
    logits = forced(params, SOURCE, TARGET)
    assert logits.shape == (3, 4, 7)
    for source, target, found in zip(SOURCE, TARGET, logits, strict=True):
        source, target = source[source != PAD], target[target != PAD]
        near(found[: len(target)], one_in_double(params, source, target), atol=1e-4)


def loss(params, source, target, labels):
    logits = MODEL.apply(params, source, target)
    return MODEL.loss(logits, labels), logits


MORE = padded(SOURCE, 3), padded(TARGET, 2), padded(LABELS, 2)


def test_more_padding_changes_no_logit_no_loss_and_no_derivative_of_it():
    params, along = fresh(MODEL, 1), fresh(MODEL, 2)

    @quick
    def run(*tokens):
        return jax.jvp(lambda params: loss(params, *tokens), (params,), (along,))

    (value, logits), (rise, _) = run(SOURCE, TARGET, LABELS)
    (same, longer), (rise_too, _) = run(*MORE)
    near(same, value)
    near(rise_too, rise, rtol=1e-3)
    near(longer[:, :4][TARGET != PAD], logits[TARGET != PAD], atol=1e-4)
    each = -jax.nn.log_softmax(logits)[LABELS != PAD, LABELS[LABELS != PAD]]
    near(value, each.mean())


@pytest.mark.slow
def test_more_padding_changes_no_gradient():
    params = fresh(MODEL, 1)
    run = quick(jax.grad(loss, has_aux=True))
    gradients = [run(params, *tokens)[0] for tokens in ((SOURCE, TARGET, LABELS), MORE)]
    jax.tree.map(partial(near, atol=1e-4), *gradients)


def test_greedy_is_the_likeliest_next_token_of_the_forced_model_until_the_end():
    params, long = fresh(MODEL, 48), 7  # some sentences end, at different places
    sources = np.random.default_rng(1).integers(3, 9, (12, 5))
    sources[:6, 3:] = PAD
    found = np.asarray(MODEL.greedy(params, sources, long))
    fed = np.concatenate([np.full((12, 1), BEGIN), found[:, :-1]], axis=1)
    likeliest = np.argmax(forced(params, sources, fed), axis=-1)
    ended = np.cumsum(found == END, axis=1) - (found == END) > 0  # True behind the end
    assert np.array_equal(found, np.where(ended, PAD, likeliest))
    ends = np.any(found == END, axis=1)
    assert ends.any()
    assert not ends.all()


def test_greedy_stops_when_all_have_ended():
    params = fresh(MODEL)
    params["softmax"]["kernel"] = jnp.zeros((H, 7))  # of equal logits the likeliest is token 0
    model = Translator(Seq2Seq(9, 7, H, layers=3, end=0, pad=6))
    found = model.greedy(params, SOURCE, 1_000_000)  # minutes, if every token were decoded
    assert found.shape == (3, 1_000_000)
    assert np.array_equal(found[:, :3], [[0, 6, 6]] * 3)


def test_dropout_follows_its_key_and_is_off_without_one():
    model = Translator(Seq2Seq(9, 7, H, layers=3, dropout=0.5))
    params, run = fresh(model), quick(model.apply)
    one, same, other = (run(params, SOURCE, TARGET, jax.random.key(k)) for k in (1, 1, 2))
    assert jnp.array_equal(one, same)
    assert not jnp.allclose(one, other)
    near(run(params, SOURCE, TARGET), forced(params, SOURCE, TARGET))


def test_one_layer_is_refused():
    with pytest.raises(ValueError, match="2 layers"):
        jax.eval_shape(Translator(Seq2Seq(9, 7, H, layers=1)).init, jax.random.key(0))


def test_every_matrix_but_the_attentions_is_pruned_to_exactly_its_share():
    whole = fresh(MODEL)
    flags = prunable_flags(whole, prunable)
    blocks = (2 + 2) + (3 + 2) + 3 * 3  # [H, 4 H]: both ways, the encoder, the decoder
    assert count(select_leaves(whole, flags)) == (9 + 7 + 7) * H + 4 * H * H * blocks

    params = {name: whole[name] for name in ("attention", "decoder_0")}  # a compilation a leaf
    prune = jp.one_shot(jp.saliency.magnitude(), jp.select.lowest(prunable=prunable))
    pruned = prune(params, sparsity=0.75)
    assert pruned.info["kept"] == 0.25 * 3 * 4 * H * H
    assert all(bool(kept.all()) for kept in jax.tree.leaves(pruned.mask["attention"]))


def test_couple_finds_features_hidden_units_and_the_attentions():
    """Memory and decoder share states, so hidden units of all LSTMs are one group of H."""
    params = jax.eval_shape(MODEL.init, jax.random.key(0))
    coupling = jp.couple(MODEL.apply, params, SOURCE, TARGET)
    assert all(group.units == H for group in coupling.groups.values())
    leaves = {m.leaf for group in coupling.groups.values() for m in group.members}
    assert {"source_embedding/embedding", "decoder_0/recurrent", "attention/query"} <= leaves
