"""Fine-tuning through quantization: the forward pass, the gradient, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import quantize, trees
from tests.laws import TREES
from tests.quantize.quantize_cases import assert_same_bits, normal, small_net


def apply(params, x):
    hidden = jnp.tanh(x @ params["in"]["kernel"] + params["in"]["bias"])
    return hidden @ params["out"]["kernel"]


def network(seed=0):
    params = {
        "in": {"kernel": normal(6, 8, seed=seed) * 0.5, "bias": jnp.zeros(8)},
        "out": {"kernel": normal(8, 3, seed=seed + 1) * 0.5},
    }
    mask = jax.tree.map(lambda w: jnp.ones(w.shape, bool) if w.ndim == 1 else jnp.abs(w) > 0.2,
                        params)  # fmt: skip
    return params, mask, normal(32, 6, seed=seed + 2)


def loss_of(model, x, targets):
    return lambda params: jnp.mean((model(params, x) - targets) ** 2)


SHARED = quantize.shared_values(2)
QUANTIZERS = {"uniform": quantize.uniform(3), "shared": SHARED}


@pytest.mark.every(3)
@pytest.mark.parametrize("which", QUANTIZERS)
def test_the_gradient_is_the_one_at_the_quantized_point(which):
    params, mask, x = network()
    quantizer, targets = QUANTIZERS[which], jnp.ones((32, 3))
    at_point = quantizer(params, mask).params
    through = loss_of(quantize.fake_quantized(apply, quantizer, mask), x, targets)
    there = loss_of(apply, x, targets)
    value, gradient = jax.jit(jax.value_and_grad(through))(params)
    expected, expected_gradient = jax.jit(jax.value_and_grad(there))(at_point)
    assert value == expected
    for a, b in zip(*map(jax.tree.leaves, (gradient, expected_gradient)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    tangent = jax.tree.map(jnp.ones_like, params)
    forward = jax.jvp(through, (params,), (tangent,))[1]
    total = sum(float(jnp.sum(g)) for g in jax.tree.leaves(gradient))
    np.testing.assert_allclose(forward, total, rtol=1e-5)


def test_complex_leaves_that_are_not_quantized_learn_as_before():
    params = {"w": normal(3, 2), "c": jnp.array([[1 + 2j, 3j]])}
    loss = lambda p, x: jnp.sum(p["w"]) + jnp.sum(jnp.abs(p["c"]) ** 2)
    quantizer = quantize.uniform(4, quantizable=lambda name, leaf: name == "w")
    found = jax.grad(quantize.fake_quantized(loss, quantizer))(params, None)
    np.testing.assert_allclose(found["c"], jax.grad(loss)(params, None)["c"], rtol=1e-6)


def test_over_seeds_it_maps():
    nets = [network(seed)[0] for seed in (0, 5)]
    x = network()[2]
    model = quantize.fake_quantized(apply, quantize.uniform(3))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *nets)
    gradients = jax.vmap(jax.grad(lambda p: jnp.sum(model(p, x) ** 2)))(stacked)
    for i, net in enumerate(nets):
        alone = jax.grad(lambda p: jnp.sum(model(p, x) ** 2))(net)
        for a, b in zip(*map(jax.tree.leaves, (gradients, alone)), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", ["recomputed", "frozen", "frozen codebook"])
def test_training_through_it_lowers_the_loss_of_the_quantized_network(which):
    params, mask, x = network()
    targets = apply(network(7)[0], x)
    quantizer = SHARED if "codebook" in which else quantize.uniform(3)
    used = quantizer if which == "recomputed" else quantize.frozen(quantizer(params, mask))
    loss = loss_of(quantize.fake_quantized(apply, used, mask), x, targets)
    step = jax.jit(lambda p: jax.tree.map(lambda w, g: w - 0.1 * g, p, jax.grad(loss)(p)))
    before = loss(params)
    for _ in range(60):
        params = trees.apply_mask(step(params), mask)
    assert loss(params) < 0.7 * before
    final = used(params, mask).params
    np.testing.assert_allclose(loss_of(apply, x, targets)(final), loss(params), rtol=1e-6)


@pytest.mark.every(3)
@pytest.mark.parametrize("quantizer", [quantize.uniform(4, symmetric=False, channels=True),
                                       quantize.shared_values(3, channels=True),
                                       quantize.half_precision()])  # fmt: skip
def test_frozen_gives_back_what_it_was_made_of_and_keeps_its_tables(quantizer):
    params, mask = small_net()
    found = quantizer(params, mask)
    fixed = quantize.frozen(found)
    assert_same_bits(fixed(params, mask), found)
    moved = fixed(jax.tree.map(lambda w: w * 1.3, params), mask)
    if not isinstance(found.stored[1], quantize.Plain):
        assert_same_bits(quantize.tables_of(moved)[1], quantize.tables_of(found)[1])
    with pytest.raises(ValueError, match="frozen quantization at leaf 'conv/bias' has shape"):
        fixed({"conv": {"kernel": params["conv"]["kernel"], "bias": jnp.ones(3)}})
    params["conv"]["kernel"] = params["conv"]["kernel"].at[0].set(jnp.inf)
    if not isinstance(found.stored[1], quantize.Plain):
        with pytest.raises(ValueError, match="Cannot quantize leaf 'conv/kernel'"):
            fixed(params)


@pytest.mark.parametrize("name", ["nnx state", "scalar, empty, integer and key leaves", "tuple"])
def test_any_tree_passes_through(name):
    params = TREES[name].make()
    quantizer = quantize.uniform(4)
    seen = quantize.fake_quantized(lambda p, x: p, quantizer)(params, None)
    assert_same_bits(seen, quantizer(params).params)


def test_a_shared_value_learns_from_all_its_weights():
    params, mask = small_net()
    found = SHARED(params, mask)
    weight = normal(3, 3, 2, 4, seed=9)
    loss = lambda p: jnp.sum(weight * p["conv"]["kernel"]) + jnp.sum(p["conv"]["bias"] ** 2)
    of_tables = lambda tables: loss(quantize.with_tables(found, tables).params)
    bias, values = jax.grad(of_tables)(quantize.tables_of(found))
    np.testing.assert_allclose(bias, 2 * params["conv"]["bias"], rtol=1e-6)
    codes, keep = found.stored[1].codes, np.asarray(mask["conv"]["kernel"])
    for code, value in enumerate(values):
        members = np.asarray(weight)[keep & (np.asarray(codes) == code)]
        np.testing.assert_allclose(value, members.sum(), rtol=1e-5)
    trained = quantize.with_tables(found, (bias, values))
    np.testing.assert_array_equal(np.asarray(trained.params["conv"]["kernel"])[~keep], 0)
    assert_same_bits(quantize.unpack(quantize.pack(trained), params), trained.params)
    assert bool(jnp.all(jnp.diff(jnp.sort(values)) >= 0))
    quantize.frozen(trained)(params, mask)  # a codebook that is no longer ascending
