"""Taps: the model as it is, its layers found, and deltas that are gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.jaxpr.taps import tap
from tests.near import assert_near
from tests.problems import PROBLEMS

SITES = {  # leaf names that enter a layer, in order of evaluation, and those that enter more
    "tanh_mlp": (["hidden/kernel", "head/kernel"], {"hidden/bias", "head/bias"}),
    "relu_mlp": (["hidden/kernel", "head/kernel"], {"hidden/bias", "head/bias"}),
    "conv_net": (["conv", "dense"], {"bias"}),
    "scan_rnn": (["2"], {"0", "1"}),
    "tied_net": (["shared", "middle"], {"shared"}),
    "wavy_net": (["0", "1/mean", "1/spread"], set()),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_with_zeros_in_the_taps_the_model_computes_what_it_computes(name):
    problem = PROBLEMS[name]()
    inputs = problem.batch[0]
    tapped = tap(problem.apply, problem.params, inputs)
    zeros = [jnp.zeros(site.output.shape, site.output.dtype) for site in tapped.sites]
    outputs, captures = tapped.run(problem.params, inputs, zeros)
    expected = problem.apply(problem.params, inputs)
    assert jax.tree.structure(outputs) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(outputs), jax.tree.leaves(expected), strict=True):
        assert_near(a, b, jnp.float32, 10)
    assert len(captures) == len(tapped.sites)


@pytest.mark.parametrize("name", SITES)
def test_sites_are_where_a_parameter_enters_a_layer(name):
    problem = PROBLEMS[name]()
    tapped = tap(problem.apply, problem.params, problem.batch[0])
    pairs = jax.tree_util.tree_flatten_with_path(problem.params)[0]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in pairs]
    assert [names[site.leaf] for site in tapped.sites] == SITES[name][0]
    assert {names[i] for i in tapped.elsewhere} == SITES[name][1]


def test_a_capture_times_its_delta_is_the_gradient_of_the_weight(x64):
    problem = PROBLEMS["tanh_mlp"](jnp.float64)
    x, t = problem.batch
    tapped = tap(problem.apply, problem.params, x)
    zeros = [jnp.zeros(site.output.shape, site.output.dtype) for site in tapped.sites]

    def total(taps):
        outputs, captures = tapped.run(problem.params, x, taps)
        return jnp.sum(problem.loss(outputs, t)), captures

    deltas, captures = jax.grad(total, has_aux=True)(zeros)
    grads = jax.grad(lambda p: jnp.sum(problem.loss(problem.apply(p, x), t)))(problem.params)
    for layer, delta, inputs in zip(("hidden", "head"), deltas, captures, strict=True):
        assert_near(inputs.T @ delta, grads[layer]["kernel"], jnp.float64)


def test_layers_inside_custom_derivatives_are_left_to_their_author():
    @jax.custom_vjp
    def dense(w, x):
        return x @ w

    dense.defvjp(lambda w, x: (x @ w, (w, x)), lambda res, ct: (res[1].T @ ct, 7 * ct @ res[0].T))
    tapped = tap(lambda p, x: dense(p["a"], x @ p["b"]), {"a": jnp.ones((2, 2)),
                 "b": jnp.ones((3, 2))}, jnp.ones((5, 3)))  # fmt: skip
    assert [site.leaf for site in tapped.sites] == [1]
    assert tapped.elsewhere == {0}
    run = lambda taps: tapped.run({"a": jnp.eye(2), "b": jnp.ones((3, 2))}, jnp.ones((5, 3)), taps)
    delta = jax.grad(lambda taps: jnp.sum(run(taps)[0]))([jnp.zeros((5, 2))])[0]
    np.testing.assert_array_equal(delta, np.full((5, 2), 7.0))


def test_integer_layers_have_no_taps():
    tapped = tap(lambda w, x: x @ w, jnp.ones((3, 2), jnp.int32), jnp.ones((4, 3), jnp.int32))
    assert tapped.sites == []
    assert tapped.elsewhere == {0}
