"""Any pytree, any dtype: what Optax is given comes back in kind, pruned leaves and others."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.transforms import zoo


class Pair(NamedTuple):
    kernel: Any
    bias: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: Any
    bias: Any


def weights(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


TREES = {
    "nested_dict": lambda: {"net": {"kernel": weights(6, 4), "bias": jnp.ones(4)}},
    "list": lambda: [weights(6, 4), jnp.ones(4)],
    "tuple": lambda: (weights(6, 4), (jnp.ones(4), jnp.ones(()))),
    "named_tuple": lambda: Pair(weights(6, 4), jnp.ones(4)),
    "dataclass": lambda: {"layer": Layer(weights(6, 4), jnp.ones(4))},
    "bare_array": lambda: weights(6, 4),
    "empty_leaf": lambda: {"kernel": weights(6, 4), "none_left": jnp.zeros((0, 4))},
    "holes": lambda: {"kernel": weights(6, 4), "absent": None, "nothing": {}},
    "bfloat16": lambda: {"kernel": weights(6, 4).astype(jnp.bfloat16), "bias": jnp.ones(4)},
    "complex": lambda: {"kernel": weights(6, 4) + 1j * weights(6, 4, seed=1)},
}

WORK = {
    "freeze_pruned": lambda mask: jp.freeze_pruned(mask),
    "freeze_random": lambda mask: jp.freeze_random(jax.random.key(1), 0.5),
    "prune_gradually": lambda mask: zoo.magnitude_pruning(0.5, 1),
    "straight_through": lambda mask: zoo.TRANSFORMS["straight_through"](),
}


@pytest.mark.every(5)
@pytest.mark.parametrize("masking", sorted(WORK.keys() - {"freeze_random"}))
@pytest.mark.parametrize("name", sorted(TREES))
def test_every_tree_keeps_its_structure_and_dtypes_and_half_of_its_kernel(name, masking):
    params = TREES[name]()
    mask = jp.one_shot(jp.saliency.magnitude(), jp.select.lowest())(params, sparsity=0.5).mask
    tx = optax.chain(optax.sgd(0.1, momentum=0.9), WORK[masking](mask))
    state = tx.init(params)
    traces = []

    def step(params, state):
        traces.append(1)
        grads = jax.tree.map(lambda p: p / 3, params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    now, step = zoo.copied(params), jax.jit(step, donate_argnums=(0, 1))
    for _ in range(4):
        now, state = step(now, state)
    assert jax.tree.structure(now) == jax.tree.structure(params)
    for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(now), strict=True):
        assert (new.dtype, new.shape) == (old.dtype, old.shape)
        assert int((new == 0).sum()) == (12 if new.shape == (6, 4) else 0)
    found = jp.mask_of(state)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    assert zoo.dropped(found) == 12
    assert len(traces) == 1


def with_passengers():
    """A tree that holds more than floating-point weights."""
    params = {
        "kernel": weights(4, 4),
        "count": jnp.int32(3),
        "key": jax.random.key(0),
        "flag": jnp.array([True, False]),
        "temperature": jnp.float32(2.0),
    }
    return params, jax.tree.map(lambda leaf: jnp.ones(np.shape(leaf), bool), params)


def updates_for(params, passenger):
    return {name: leaf if name in TRAINED else passenger(leaf) for name, leaf in params.items()}


TRAINED = ("kernel", "temperature")
PASSENGERS = {
    "none": lambda leaf: None,
    "float0": lambda leaf: np.zeros(np.shape(leaf), jax.dtypes.float0),
    "themselves": lambda leaf: leaf,
}


@pytest.mark.parametrize("passenger", sorted(PASSENGERS))
@pytest.mark.parametrize("masking", sorted(WORK))
def test_updates_of_integers_flags_and_keys_pass_through_untouched(masking, passenger):
    params, mask = with_passengers()
    tx = WORK[masking]({**mask, "kernel": mask["kernel"].at[0, 0].set(False)})
    given = updates_for(params, PASSENGERS[passenger])
    state = tx.init(params)
    for update in (tx.update, jax.jit(tx.update) if passenger == "none" else tx.update):
        updates, state = update(given, state, params)
        assert updates.keys() == given.keys()
        for name in set(params) - set(TRAINED):
            if given[name] is None:
                assert updates[name] is None
            else:
                assert updates[name].dtype == given[name].dtype
                assert (updates[name] == given[name]).all()
    held = optax.apply_updates(params["kernel"], updates["kernel"])
    assert int((held == 0).sum()) == int((~state.mask["kernel"]).sum()) > 0
    assert updates["temperature"] == given["temperature"]


@pytest.mark.parametrize("masking", sorted(WORK))
def test_a_float_leaf_whose_update_is_none_is_left_alone(masking):
    params = {"kernel": weights(4, 4), "frozen": {"scale": jnp.ones(3), "bias": jnp.ones(2)}}
    tx = WORK[masking](jp.trees.full_mask(params))
    updates = {"kernel": params["kernel"], "frozen": {"scale": None, "bias": jnp.ones(2)}}
    found, _ = tx.update(updates, tx.init(params), params)
    assert found["frozen"]["scale"] is None
    np.testing.assert_array_equal(found["frozen"]["bias"], jnp.ones(2))


@pytest.mark.parametrize("masking", sorted(WORK))
def test_python_numbers_among_the_parameters_are_scalars(masking):
    params = {"kernel": weights(4, 4), "temperature": 2.0}
    tx = WORK[masking]({"kernel": jnp.ones((4, 4), bool), "temperature": np.True_})
    updates, state = tx.update(params, tx.init(params), params)
    assert float(optax.apply_updates(params, updates)["temperature"]) == 4.0
    assert jp.mask_of(state)["temperature"].shape == ()


def test_a_weight_of_rank_one_or_zero_is_pruned_when_asked_for():
    params = {"a": jnp.array([1.0, 3.0, 2.0, 4.0]), "b": jnp.float32(0.5), "c": jnp.zeros((0,))}
    everything = jp.select.lowest(prunable=lambda name, leaf: True, floor=0)
    tx = jp.prune_gradually(jp.saliency.magnitude(), everything, jp.schedule.constant(0.4))
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    np.testing.assert_array_equal(state.mask["a"], [False, True, True, True])
    assert not state.mask["b"]
    assert optax.apply_updates(params, updates)["b"] == 0
