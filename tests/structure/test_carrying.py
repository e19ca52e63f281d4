"""Optimizer states, averages and masks travel with the shrunk variables."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune import trees

OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adamw": lambda: optax.adamw(1e-2, weight_decay=1e-2),
    "lion": lambda: optax.lion(1e-2),
    "rmsprop": lambda: optax.rmsprop(1e-2, momentum=0.9),
    "amsgrad": lambda: optax.amsgrad(1e-2),
    "adagrad": lambda: optax.adagrad(1e-2),
    "multi_steps": lambda: optax.MultiSteps(optax.adam(1e-2), 2),
    "inject": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
    "multi_transform": lambda: optax.multi_transform(
        {"w": optax.adam(1e-2), "b": optax.sgd(0.1, momentum=0.9)},
        lambda p: jax.tree.map(lambda x: "w" if x.ndim > 1 else "b", p),
    ),
    "masked": lambda: optax.chain(
        optax.masked(
            optax.add_decayed_weights(1e-2), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
        ),
        optax.adam(1e-2),
    ),
    "ema": lambda: optax.chain(optax.ema(0.9), optax.scale(-0.1)),
}


RARE = ("amsgrad", "rmsprop", "adagrad", "lion", "ema")
SOME = [pytest.param(n, marks=pytest.mark.slow if n in RARE else ()) for n in OPTIMIZERS]


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(12)(x)))
        return nn.Dense(3)(nn.tanh(nn.Dense(10)(x)))


@pytest.fixture(scope="module")
def problem():
    model = Net()
    x = jax.random.normal(jax.random.key(0), (16, 5))
    y = jax.random.normal(jax.random.key(1), (16, 3))
    variables = model.init(jax.random.key(2), x)
    coupling = jp.couple(model.apply, variables, x)
    kept = {name: np.arange(g.units) % 3 != 0 for name, g in coupling.groups.items()}
    return model, x, y, variables, coupling, kept


def trained(apply, tx, params, statistics, state, x, y, steps):
    def loss(params):
        return jnp.mean((apply({"params": params, "batch_stats": statistics}, x) - y) ** 2)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


@pytest.mark.every(3)
@pytest.mark.parametrize("name", SOME)
def test_training_goes_on_as_the_masked_run_does(name, problem):
    model, x, y, variables, coupling, kept = problem
    mask = coupling.mask(kept, variables)
    masked = trees.apply_mask(variables, mask)
    plain = OPTIMIZERS[name]()
    frozen = optax.chain(plain, jp.freeze_pruned(mask["params"]))
    statistics = masked["batch_stats"]
    params, state = masked["params"], frozen.init(masked["params"])
    params, state = trained(model.apply, frozen, params, statistics, state, x, y, 5)

    whole = {"params": params, "batch_stats": statistics}
    small, small_mask, small_state = jp.shrink(whole, mask, coupling, mask, state)
    still = optax.chain(OPTIMIZERS[name](), jp.freeze_pruned(small_mask["params"]))
    fresh = still.init(small["params"])
    assert jax.tree.map(jnp.shape, small_state) == jax.tree.map(jnp.shape, fresh)
    apply = jp.shrunk_apply(coupling, kept)
    shrunk, _ = trained(apply, frozen, small["params"], small["batch_stats"], small_state, x, y, 6)
    params, _ = trained(model.apply, frozen, params, statistics, state, x, y, 6)
    flags = coupling.vector(kept)
    whole = {"batch_stats": statistics, "params": params}
    expected = [
        np.asarray(leaf)[np.ix_(*[flags[ids] for ids in axes])]
        for leaf, axes in zip(jax.tree.leaves(whole), coupling.labels, strict=True)
    ]
    found = jax.tree.leaves({"batch_stats": small["batch_stats"], "params": shrunk})
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-5)


def test_averages_masks_and_states_in_one_call(problem):
    _, _, _, variables, coupling, kept = problem
    mask = coupling.mask(kept, variables)
    tx = optax.adam(1e-3)
    small, ema, small_mask, state, both = jp.shrink(
        variables, mask, coupling,
        variables["params"], mask, tx.init(variables["params"]), {"step": 3, "ema": variables},
    )  # fmt: skip
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    assert shapes(ema) == shapes(small["params"])
    assert shapes(small_mask) == shapes(small)
    assert shapes(state) == shapes(tx.init(small["params"]))
    assert shapes(both["ema"]) == shapes(small)
    assert both["step"] == 3
    assert all(bool(m.all()) for m in jax.tree.leaves(small_mask))


def wide_net():
    apply = lambda v, x: jax.nn.relu(x @ v["a"]) @ v["b"]
    keys = jax.random.split(jax.random.key(0), 2)
    variables = {
        "a": jax.random.normal(keys[0], (130, 140)),
        "b": jax.random.normal(keys[1], (140, 131)),
    }
    return apply, variables, jp.couple(apply, variables, jnp.ones((2, 130)))


def test_adafactors_rows_and_columns_are_sliced_where_they_fit_and_named_where_not():
    _, variables, coupling = wide_net()
    tx = optax.adafactor(1e-2)
    state = tx.init(variables)
    few = coupling.mask({"a": np.arange(140) < 135}, variables)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small, sliced = jp.shrink(variables, few, coupling, state, optimizer=tx)
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    assert shapes(sliced) == shapes(tx.init(small))
    fewer = coupling.mask({"a": np.arange(140) < 50}, variables)  # below what it factors
    with pytest.warns(UserWarning, match=r"Initialised anew.*v/a"):
        small, renewed = jp.shrink(variables, fewer, coupling, state, optimizer=tx)
    assert shapes(renewed) == shapes(tx.init(small))
    updates, _ = tx.update(small, renewed, small)
    assert shapes(updates) == shapes(small)


def test_muons_momentum_is_sliced():
    _, variables, coupling = wide_net()
    tx = optax.contrib.muon(1e-2)
    mask = coupling.mask({"a": np.arange(140) < 50}, variables)
    small, state = jp.shrink(variables, mask, coupling, tx.init(variables), optimizer=tx)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, tx.init(small))


def test_a_state_that_cannot_be_sliced_is_an_error_that_names_it():
    apply, _, _ = wide_net()
    variables = {"a": jnp.ones((6, 6)), "b": jnp.ones((6, 3))}
    coupling = jp.couple(apply, variables, jnp.ones((2, 6)))
    mask = coupling.mask({"a": np.arange(6) < 4}, variables)
    with pytest.raises(ValueError, match=r"rows/a.*shape \(6,\).*Pass `optimizer="):
        jp.shrink(variables, mask, coupling, {"rows": {"a": jnp.ones(6)}})


@pytest.mark.parametrize("name", ["sm3", "flatten", "a single array"])
def test_a_state_with_names_of_its_own_is_sliced_or_initialised_anew(name):
    apply, variables = lambda v, x: jax.nn.relu(x @ v["a"]) @ v["b"], {"a": (5, 6), "b": (6, 2)}
    variables = {leaf: jnp.ones(shape) for leaf, shape in variables.items()}
    tx = optax.sm3(0.1) if name == "sm3" else optax.flatten(optax.adam(0.1))
    if name == "a single array":
        apply, variables, tx = (
            lambda v, x: jax.nn.relu(x @ v) @ v.T,
            jnp.ones((5, 6)),
            optax.adam(1),
        )
    coupling = jp.couple(apply, variables, jnp.ones((2, 5)))
    mask = coupling.mask({n: np.arange(6) < 4 for n in coupling.groups}, variables)
    state = tx.init(variables)
    if name == "a single array":
        small, state = jp.shrink(variables, mask, coupling, state)
    else:
        with pytest.raises(ValueError, match=r"ends in no variable's.*Pass `optimizer="):
            jp.shrink(variables, mask, coupling, state)
        with pytest.warns(UserWarning, match=r"Initialised anew.*0/mu"):
            small, state = jp.shrink(variables, mask, coupling, state, optimizer=tx)
    updates, _ = tx.update(small, state, small)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, small)


def test_a_name_that_could_be_two_variables_is_an_error_that_names_both():
    variables = {"a": {"w": jnp.ones((3, 3))}, "b": {"w": jnp.ones((3, 3))}}
    apply = lambda v, x: jax.nn.relu(x @ v["a"]["w"]) @ v["b"]["w"]
    coupling = jp.couple(apply, variables, jnp.ones((1, 3)))
    mask = coupling.mask({"a/w": np.arange(3) > 0}, variables)
    with pytest.raises(ValueError, match=r"leaf 'w' could be a copy of any of \['a/w', 'b/w'\]"):
        jp.shrink(variables, mask, coupling, {"w": jnp.ones((3, 3))})
