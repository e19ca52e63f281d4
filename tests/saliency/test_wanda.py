"""Wanda is |W| times the norm of what each weight is multiplied with, found by brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

import jaxprune as jp
from tests.near import assert_near

N = 4


def _grouped(w, x):
    return lax.conv_general_dilated(
        x, w, (2,), "SAME", feature_group_count=2, dimension_numbers=("NHC", "HIO", "NHC")
    )


LAYERS = {  # (layer, shape of the weight, shape of the inputs, output axis)
    "dense": (lambda w, x: x @ w, (3, 4), (N, 3), 1),
    "transposed": (lambda w, x: x @ w.T, (4, 3), (N, 3), 0),
    "transposed, one output": (lambda w, x: x @ w.T, (1, 3), (N, 3), 0),
    "tokens": (lambda w, x: x @ w, (3, 4), (N, 6, 3), 1),
    "two axes in": (lambda w, x: jnp.einsum("nhk,hko->no", x, w), (2, 3, 4), (N, 2, 3), 2),
    "two axes out": (lambda w, x: jnp.einsum("nti,ihk->nthk", x, w), (3, 2, 4), (N, 5, 3), 2),
    "grouped conv": (_grouped, (3, 2, 6), (N, 7, 4), 2),
    "twice": (lambda w, x: jnp.tanh(x @ w) @ w, (3, 3), (N, 3), 1),
}


def norms(layer, w, x):
    """||x_w||: every use of a weight, by hand where a layer is linear in it: d out / d w = x."""
    rows = jax.jacobian(lambda w: layer(w, x))(w)
    return np.sqrt(np.sum(np.square(rows), axis=tuple(range(rows.ndim - w.ndim))) / N)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "twice"])
def test_the_score_is_the_weight_times_the_norm_of_its_inputs(name, x64):
    layer, weight, inputs, _ = LAYERS[name]
    rng = np.random.default_rng(0)
    w, x = jnp.asarray(rng.normal(size=weight)), jnp.asarray(rng.normal(size=inputs))
    scores = jp.saliency.wanda(layer)(w, (x, jnp.zeros(N)))
    assert_near(scores, np.abs(w) * norms(layer, w, x), jnp.float64)


def test_the_inputs_of_every_use_count(x64):
    layer, weight, inputs, _ = LAYERS["twice"]
    rng = np.random.default_rng(0)
    w, x = jnp.asarray(rng.normal(size=weight)), jnp.asarray(rng.normal(size=inputs))
    both = np.concatenate([x, np.tanh(x @ w)])
    expected = np.abs(w) * np.sqrt(np.sum(both**2, axis=0) / N)[:, None]
    assert_near(jp.saliency.wanda(layer)(w, (x, x)), expected, jnp.float64)


@pytest.mark.parametrize("name", LAYERS)
def test_the_output_axis_is_read_off_the_layer(name):
    layer, weight, inputs, axis = LAYERS[name]
    apply = lambda params, x: layer(params["w"], x)
    found = jp.saliency.output_axes(apply, {"w": jnp.ones(weight)}, jnp.ones(inputs))
    assert found == {"w": axis}


def test_each_output_loses_its_share_along_the_axis_that_was_read():
    layer, weight, inputs, _ = LAYERS["transposed"]
    apply = lambda params, x: layer(params["w"], x)
    params = {"w": jax.random.normal(jax.random.key(0), weight)}
    x = jax.random.normal(jax.random.key(1), inputs)
    axes = jp.saliency.output_axes(apply, params, x)
    prune = jp.one_shot(jp.saliency.wanda(apply), jp.select.lowest("output", output_axis=axes))
    mask = prune(params, (x, x), sparsity=1 / 3).mask["w"]
    np.testing.assert_array_equal(mask.sum(axis=1), [2, 2, 2, 2])


def test_leaves_without_a_layer_are_nan_and_so_are_models_whose_examples_meet():
    net = nn.Sequential([nn.Dense(4), nn.LayerNorm(), nn.relu, nn.Dense(2)])
    x = jax.random.normal(jax.random.key(0), (N, 3))
    params = net.init(jax.random.key(1), x)
    scores = dict(jp.trees.named_leaves(jp.saliency.wanda(net.apply)(params, (x, x))))
    assert {name for name, s in scores.items() if np.isnan(s).any()} == {
        name for name in scores if not name.endswith("kernel")
    }
    meet = lambda params, x: net.apply(params, x - jnp.mean(x, axis=0))
    scores = jp.saliency.wanda(meet)(params, (x, x))
    assert all(np.isnan(s).all() for s in jax.tree.leaves(scores))
