"""Linen's TrainState and NNX's Optimizer, used as their own documentation uses them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze
from flax.training.train_state import TrainState

import jaxprune as jp
from tests.transforms import zoo

INPUTS = jax.random.normal(jax.random.key(5), (16, 4))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(2)(nn.tanh(nn.LayerNorm()(nn.Dense(8)(inputs))))


def linen_loss(params, batch):
    return jnp.mean((LinenNet().apply({"params": params}, batch) - 1) ** 2)


def linen_params():
    return LinenNet().init(jax.random.key(0), INPUTS)["params"]


def magnitude_mask(params):
    return jp.one_shot(jp.saliency.magnitude(), jp.select.lowest())(params, sparsity=0.5).mask


def maskings(mask):
    return {
        "freeze_pruned": jp.freeze_pruned(mask),
        "freeze_random": jp.freeze_random(jax.random.key(0), 0.5),
        "prune_gradually": zoo.magnitude_pruning(0.5, 2),
        "straight_through": zoo.TRANSFORMS["straight_through"](),
    }


@pytest.mark.every(3)
@pytest.mark.parametrize("container", [dict, freeze])
@pytest.mark.parametrize("masking", ["freeze_pruned", "prune_gradually", "straight_through"])
def test_linen_train_states_keep_their_pruned_weights_at_zero(masking, container):
    params = container(linen_params())
    mask = magnitude_mask(params)
    tx = optax.chain(optax.adamw(1e-2, weight_decay=0.1), maskings(mask)[masking])
    train = TrainState.create(apply_fn=LinenNet().apply, params=params, tx=tx)
    traces = []

    def step(train, batch):
        traces.append(1)
        return train.apply_gradients(grads=jax.grad(linen_loss)(train.params, batch))

    # The step counter starts as a Python number, which would count as a second trace.
    train, step = train.replace(step=jnp.int32(0)), jax.jit(step, donate_argnums=0)
    for _ in range(10):
        train = step(train, INPUTS)
    mask = jp.mask_of(train.opt_state)
    assert zoo.dropped(mask) == 24
    assert jax.tree.structure(mask) == jax.tree.structure(train.params)
    assert zoo.alive(train.params, mask) == 0
    assert len(traces) == 1


def test_without_the_mask_a_linen_train_state_revives_them():
    params = linen_params()
    mask = magnitude_mask(params)
    train = TrainState.create(
        apply_fn=None, params=jp.apply_mask(params, mask), tx=optax.adamw(1e-2)
    )
    train = train.apply_gradients(grads=jax.grad(linen_loss)(train.params, INPUTS))
    assert zoo.alive(train.params, mask) == 24


def test_train_state_takes_a_batch_by_calling_the_transformation_itself():
    saliency = jp.saliency.taylor(linen_loss)
    tx = jp.prune_gradually(saliency, jp.select.lowest(), jp.schedule.constant(0.5))
    train = TrainState.create(apply_fn=None, params=linen_params(), tx=tx)
    grads = jax.grad(linen_loss)(train.params, INPUTS)
    with pytest.raises(ValueError, match="batch=batch"):
        train.apply_gradients(grads=grads)
    _, state = train.tx.update(grads, train.opt_state, train.params, batch=INPUTS)
    assert zoo.dropped(jp.mask_of(state)) == 24


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.last = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, inputs):
        return self.last(self.drop(nnx.tanh(self.norm(self.first(inputs)))))


def nnx_loss(model):
    return jnp.mean((model(INPUTS) - 1) ** 2)


def nnx_training(masking):
    """A model, its optimizer and a jitted step that counts its traces."""
    model = Net(nnx.Rngs(0))
    mask = magnitude_mask(nnx.state(model, nnx.Param))
    tx = optax.chain(optax.adamw(1e-2, weight_decay=0.1), maskings(mask)[masking])
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    traces = []

    def step(model, optimizer):
        traces.append(1)
        optimizer.update(model, nnx.grad(nnx_loss)(model))

    return model, optimizer, nnx.jit(step), traces


@pytest.mark.parametrize("masking", ["freeze_pruned", "prune_gradually", "straight_through"])
def test_nnx_optimizers_keep_their_pruned_weights_at_zero(masking):
    model, optimizer, step, traces = nnx_training(masking)
    for _ in range(10):
        step(model, optimizer)
    params = nnx.state(model, nnx.Param)
    mask = jp.mask_of(optimizer.opt_state, like=params)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    assert zoo.dropped(mask) == 24
    assert zoo.alive(params, mask) == 0
    zoo.assert_same_bits(jp.apply_mask(params, mask), params)
    assert len(traces) == 1


def test_the_mask_of_an_nnx_optimizer_does_not_change_behind_the_readers_back():
    model, optimizer, step, _ = nnx_training("prune_gradually")
    before = jp.mask_of(optimizer.opt_state)
    for _ in range(5):
        step(model, optimizer)
    assert zoo.dropped(before) == 0
    assert zoo.dropped(jp.mask_of(optimizer.opt_state)) == 24


def test_an_nnx_mask_of_another_model_is_an_error_that_names_the_leaf():
    _, optimizer, _, _ = nnx_training("freeze_pruned")
    other = nnx.state(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.Param)
    with pytest.raises(ValueError, match=r"missing .*\['bias', 'kernel'\]"):
        jp.mask_of(optimizer.opt_state, like=other)
    with pytest.raises(ValueError, match="first/kernel"):
        jp.with_mask(optimizer.opt_state, jp.trees.full_mask(other))


def test_an_nnx_mask_is_swapped_in_without_recompiling():
    model, optimizer, step, traces = nnx_training("freeze_pruned")
    step(model, optimizer)
    params = nnx.state(model, nnx.Param)
    prune = jp.one_shot(jp.saliency.magnitude(), jp.select.lowest())
    old = jp.mask_of(optimizer.opt_state, like=params)
    later = prune(params, sparsity=0.75, mask=old).mask
    optimizer.opt_state = jp.with_mask(optimizer.opt_state, later)
    step(model, optimizer)
    step(model, optimizer)
    zoo.assert_same_bits(
        jp.mask_of(optimizer.opt_state, like=params), jax.tree.map(jnp.asarray, later)
    )
    assert zoo.alive(nnx.state(model, nnx.Param), later) == 0
    assert len(traces) == 1


def test_an_nnx_optimizer_passes_the_batch_on():
    model = Net(nnx.Rngs(0))
    energy = lambda params, batch: jax.tree.map(lambda p: p**2 * jnp.mean(batch**2), params)
    tx = jp.prune_gradually(energy, jp.select.lowest("layer"), jp.schedule.constant(0.5))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, nnx.grad(nnx_loss)(model), batch=INPUTS)
    zeros = [int((leaf == 0).sum()) for leaf in (model.first.kernel[...], model.last.kernel[...])]
    assert zeros == [16, 8]


def test_part_of_an_nnx_model_can_be_masked_alone():
    model = Net(nnx.Rngs(0))
    first_only = lambda params: jax.tree_util.tree_map_with_path(
        lambda path, _: "first" in jax.tree_util.keystr(path), params
    )
    tx = optax.chain(optax.adamw(1e-2), optax.masked(zoo.magnitude_pruning(0.5, 1), first_only))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    step = nnx.jit(lambda model, opt: opt.update(model, nnx.grad(nnx_loss)(model)))
    for _ in range(3):
        step(model, optimizer)
    assert int((model.first.kernel[...] == 0).sum()) == 16
    assert int((model.last.kernel[...] == 0).sum()) == 0
    assert jp.trees.paths(jp.mask_of(optimizer.opt_state)) == ["first/bias", "first/kernel"]


def test_an_nnx_state_trains_without_an_nnx_optimizer():
    graph, params, rest = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)
    mask = magnitude_mask(params)
    tx = optax.chain(optax.adamw(1e-2), jp.freeze_pruned(mask))
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: nnx_loss(nnx.merge(graph, p, rest, copy=True)))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(3):
        params, state = step(params, state)
    assert zoo.alive(params, mask) == 0
    found = jp.mask_of(state)  # here the state is as Optax made it, and `like` is not needed
    assert jax.tree.structure(found) == jax.tree.structure(params)
    np.testing.assert_array_equal(found["first"]["kernel"][...], mask["first"]["kernel"][...])
