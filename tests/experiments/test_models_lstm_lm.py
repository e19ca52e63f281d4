"""The LSTM layer and the language model: against double precision, Flax, and themselves."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jaxprune as jp
from experiments.models import LSTMLM, LanguageModel, lstm
from experiments.models.lstm_lm import prunable, zaremba
from jaxprune.trees import count, paths

V, H, B, T = 11, 5, 3, 6
TINY = LanguageModel(LSTMLM(V, H, scale=0.7))
TOKENS = np.random.default_rng(0).integers(0, V, (B, T))
near = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def drawn(tree, seed=0):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), jnp.float32), tree)


def fresh(model):
    return drawn(jax.eval_shape(model.init, jax.random.key(0)))


def layer_in_double(weights, inputs, carry):
    """[T, B, D] through one layer, by the definition."""
    w, x, bias = (np.asarray(leaf, np.float64) for leaf in weights)
    cell, hidden = (np.asarray(leaf, np.float64) for leaf in carry)
    sigmoid = lambda z: 1 / (1 + np.exp(-z))
    found = []
    for now in np.asarray(inputs, np.float64):
        i, f, g, o = np.split(now @ w + hidden @ x + bias, 4, axis=-1)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cell)
        found.append(hidden)
    return (cell, hidden), np.stack(found)


def layer(size=4, seed=1):
    return drawn(
        lstm.Weights(jnp.zeros((size, 4 * H)), jnp.zeros((H, 4 * H)), jnp.zeros(4 * H)), seed
    )


@pytest.mark.parametrize(
    ("size", "parameters"), [("small", 4_651_600), ("medium", 19_775_200), ("large", 66_022_000)]
)
def test_the_published_models_have_their_number_of_parameters(size, parameters):
    model = zaremba(size)
    h = model.module.width
    assert parameters == 2 * 10_000 * h + 10_000 + 2 * (2 * h + 1) * 4 * h
    assert count(jax.eval_shape(model.init, jax.random.key(0))) == parameters


def test_a_tied_softmax_has_no_kernel_and_split_gates_no_other_count():
    number = lambda **more: count(
        jax.eval_shape(LanguageModel(LSTMLM(V, H, **more)).init, jax.random.key(0))
    )
    assert number() - number(tied=True) == V * H
    assert number(fused=False) == number()


def test_a_layer_is_the_definition_in_double_and_flaxs_cell():
    weights, inputs = layer(), drawn(jnp.zeros((T, B, 4)), 2)
    start = lstm.Carry(*drawn((jnp.zeros((B, H)), jnp.zeros((B, H))), 3))
    end, found = quick(lstm.scan)(weights, inputs, start)
    (cell, hidden), expected = layer_in_double(weights, inputs, start)
    near(found, expected)
    near(end.cell, cell)
    near(end.hidden, hidden)

    into, again, bias = (np.split(leaf, 4, axis=-1) for leaf in weights)
    params = {f"i{g}": {"kernel": into[i]} for i, g in enumerate("ifgo")}
    params |= {f"h{g}": {"kernel": again[i], "bias": bias[i]} for i, g in enumerate("ifgo")}
    run = nn.RNN(nn.OptimizedLSTMCell(H), time_major=True)
    flax = lambda x: run.apply({"params": {"cell": params}}, x, initial_carry=tuple(start))
    near(found, quick(flax)(inputs))


def test_the_forget_gates_bias_starts_where_it_is_told():
    for fused in (True, False):
        module = lstm.LSTM(2, fused, forget_bias=1.5)
        weights = module.init_with_output(jax.random.key(0), 3)[0]
        assert weights.bias.tolist() == [0, 0, 1.5, 1.5, 0, 0, 0, 0]
        assert float(jnp.max(jnp.abs(weights.inputs))) <= 0.1


def test_reversed_within_lengths_is_every_sequence_turned_by_itself():
    weights, inputs = layer(), drawn(jnp.zeros((T, B, 4)), 2)
    lengths = np.array([6, 2, 4])
    real = np.arange(T)[:, None] < lengths
    rest = lstm.resting(B, H)
    both = quick(lambda x: [lstm.scan(weights, x, rest, real, reverse=r) for r in (False, True)])
    (end, there), (start, back) = both(inputs)
    for b, n in enumerate(lengths):
        alone = lstm.resting(1, H)
        last, forwards = layer_in_double(weights, inputs[:n, b : b + 1], alone)
        first, backwards = layer_in_double(weights, inputs[:n, b : b + 1][::-1], alone)
        near(there[:n, b], forwards[:, 0])
        near(back[:n, b], backwards[::-1][:, 0])
        near(end.cell[b], last[0][0])
        near(start.cell[b], first[0][0])


@pytest.mark.parametrize("tied", [False, True])
def test_the_language_model_is_the_definition_in_double(tied):
    model = LanguageModel(LSTMLM(V, H, tied=tied))
    params = fresh(model)
    table = np.asarray(params["embedding"]["embedding"])
    x, zeros = table[TOKENS.T], np.zeros((B, H))
    ends = []
    for i in range(2):
        end, x = layer_in_double(lstm.Weights(**params[f"lstm_{i}"]), x, (zeros, zeros))
        ends.append(end)
    kernel = table.T if tied else params["softmax"]["kernel"]
    bias = params["bias"] if tied else params["softmax"]["bias"]
    logits, carry = quick(model.apply)(params, TOKENS)
    near(logits, np.swapaxes(x, 0, 1) @ np.asarray(kernel) + np.asarray(bias), atol=1e-4)
    jax.tree.map(near, [tuple(c) for c in carry], ends)


def test_split_gates_compute_what_the_fused_kernel_does():
    split = LanguageModel(LSTMLM(V, H, fused=False))
    params, apart = fresh(TINY), dict(fresh(TINY))
    for name in ("lstm_0", "lstm_1"):
        parts = {key: jnp.split(leaf, 4, axis=-1) for key, leaf in params[name].items()}
        apart[name] = {
            f"{gate}_gate": {key: parts[key][i] for key in parts}
            for i, gate in enumerate(lstm.GATES)
        }
    near(quick(split.apply)(apart, TOKENS)[0], quick(TINY.apply)(params, TOKENS)[0])


def test_windows_that_carry_their_state_are_one_long_window():
    params, run = fresh(TINY), quick(TINY.apply)
    whole, end = run(params, TOKENS, TINY.start(B))
    first, carry = run(params, TOKENS[:, :3], TINY.start(B))
    second, last = run(params, TOKENS[:, 3:], carry)
    near(jnp.concatenate([first, second], axis=1), whole)
    jax.tree.map(near, last, end)


def test_dropout_takes_what_goes_into_layers_and_never_the_state():
    """At rate 1 layers and softmax read nothing, and yet the states go on as the weights say."""
    model = LanguageModel(LSTMLM(V, H, dropout=1.0))
    params, start = fresh(model), drawn(TINY.start(B), 4)
    logits, carry = quick(model.apply)(params, TOKENS, start, jax.random.key(0))
    near(logits, np.broadcast_to(params["softmax"]["bias"], (B, T, V)))
    for i in range(2):
        weights = lstm.Weights(**params[f"lstm_{i}"])
        end, _ = layer_in_double(weights, np.zeros((T, B, H)), start[i])
        jax.tree.map(near, tuple(carry[i]), end)


def test_dropout_follows_its_key_and_is_off_without_one():
    model = LanguageModel(LSTMLM(V, H, dropout=0.5))
    params, run = fresh(model), quick(model.apply)
    one, same, other = (run(params, TOKENS, None, jax.random.key(k))[0] for k in (1, 1, 2))
    assert jnp.array_equal(one, same)
    assert not jnp.allclose(one, other)
    near(quick(model.apply)(params, TOKENS)[0], quick(TINY.apply)(params, TOKENS)[0])


def test_every_matrix_is_pruned_to_exactly_its_share():
    params = fresh(TINY)
    prune = jp.one_shot(jp.saliency.magnitude(), jp.select.lowest(prunable=prunable))
    pruned = prune(params, sparsity=0.75)
    entries = 2 * V * H + 2 * 2 * H * 4 * H
    assert pruned.info["prunable"] == entries
    assert pruned.info["kept"] == entries - round(0.75 * entries)
    spared = [
        n for n, m in zip(paths(params), jax.tree.leaves(pruned.mask), strict=True) if m.all()
    ]
    assert set(spared) <= {"lstm_0/bias", "lstm_1/bias", "softmax/bias"}


@pytest.mark.parametrize(("more", "groups"), [({}, 3), ({"fused": False}, 3), ({"tied": True}, 2)])
def test_couple_finds_the_hidden_units(more, groups):
    """The embedding's features and either layer's; tied, the last layer's are the embedding's."""
    model = LanguageModel(LSTMLM(V, H, **more))
    params = jax.eval_shape(model.init, jax.random.key(0))
    coupling = jp.couple(lambda p, tokens: model.apply(p, tokens)[0], params, TOKENS)
    assert [group.units for group in coupling.groups.values()] == [H] * groups
    assert coupling.units == groups * H


def test_a_few_steps_learn_a_short_text():
    params = jax.tree.map(lambda leaf: 0.3 * leaf, fresh(TINY))
    adam = optax.adam(0.05)

    def loss(params):
        logits, _ = TINY.apply(params, TOKENS[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, TOKENS[:, 1:]).mean()

    @quick
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = adam.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state, losses = adam.init(params), []
    for _ in range(40):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[-1] < 0.4 * losses[0]


@pytest.mark.every(5)
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("what", ["weights", "units"])
def test_it_is_pruned_while_it_trains(fused, what):
    """Weights of fused and of split gates, of each the same share; or hidden units."""
    model = LanguageModel(LSTMLM(V, H, fused=fused))
    params = fresh(model)
    apply = lambda p, tokens: model.apply(p, tokens)[0]
    coupling = jp.couple(apply, params, TOKENS)
    select = {
        "weights": jp.select.lowest("layer", prunable=prunable),
        "units": jp.select.lowest_units(coupling),
    }[what]
    rise = jp.schedule.cubic(0.5, 3)
    tx = optax.chain(
        optax.adam(0.01), jp.prune_gradually(jp.saliency.magnitude(), select, rise, every=1)
    )

    @quick
    def step(params, state):
        logits = lambda p: apply(p, TOKENS[:, :-1])
        loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(
            logits(p), TOKENS[:, 1:]
        ).mean()
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(5):
        params, state = step(params, state)
    mask = jp.mask_of(state)
    if what == "weights":
        flags = jp.trees.prunable_flags(params, prunable)
        for (name, leaf), flag in zip(jp.trees.named_leaves(mask), flags, strict=True):
            assert int((~leaf).sum()) == (round(0.5 * leaf.size) if flag else 0), name
        assert sum(flags) >= 6
        return
    kept = coupling.kept(mask)
    assert sum(int(k.sum()) for k in kept.values()) == coupling.units - round(0.5 * coupling.units)
    small = jp.shrink(params, mask, coupling)
    assert jp.trees.count(small) < jp.trees.count(params)
    np.testing.assert_allclose(
        jp.shrunk_apply(coupling, kept)(small, TOKENS), apply(params, TOKENS), rtol=1e-4, atol=1e-5
    )
