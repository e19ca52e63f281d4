"""Taps: the model as it is, its layers found, and deltas that are gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxprune import trees
from jaxprune.jaxpr import sites
from jaxprune.jaxpr.taps import tap
from tests.near import assert_near
from tests.problems import PROBLEMS

SITES = {  # leaf names that enter a layer, in order of evaluation, and those tapped themselves
    "tanh_mlp": (["hidden/kernel", "head/kernel"], {"hidden/bias", "head/bias"}),
    "relu_mlp": (["hidden/kernel", "head/kernel"], {"hidden/bias", "head/bias"}),
    "conv_net": (["conv", "dense"], {"bias"}),
    "scan_rnn": (["0", "1", "2"], set()),
    "tied_net": (["shared", "middle", "shared"], set()),
    "wavy_net": (["0", "1/mean", "1/spread"], set()),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_with_zeros_in_the_taps_the_model_computes_what_it_computes(name):
    problem = PROBLEMS[name]()
    inputs = problem.batch[0]
    tapped = tap(problem.apply, problem.params, inputs)
    outputs, captures = tapped.run(jax.tree.leaves(problem.params), inputs, tapped.zeros)
    expected = problem.apply(problem.params, inputs)
    assert jax.tree.structure(outputs) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(outputs), jax.tree.leaves(expected), strict=True):
        assert_near(a, b, jnp.float32, 10)
    assert captures.keys() == tapped.zeros.sites.keys() == {site.key for site in tapped.sites}
    for site in tapped.sites:
        assert captures[site.key].shape == site.captured


@pytest.mark.parametrize("name", SITES)
def test_sites_are_where_a_parameter_enters_a_layer(name):
    problem = PROBLEMS[name]()
    tapped = tap(problem.apply, problem.params, problem.batch[0])
    layers, direct = SITES[name]
    names = trees.paths(problem.params)
    assert [names[site.leaf] for site in tapped.sites] == layers
    assert {names[i] for i in tapped.direct} == direct
    assert set(tapped.zeros.leaves) == set(tapped.direct)
    assert tapped.slow == ()


@pytest.mark.every(5)
@pytest.mark.parametrize("name", PROBLEMS)
def test_deltas_and_captures_make_the_gradient_of_every_leaf(name, x64):
    """The gradient of the whole batch: one example to the algebra of sites."""
    problem = PROBLEMS[name](jnp.float64)
    x, t = problem.batch
    tapped = tap(problem.apply, problem.params, x)
    leaves, structure = jax.tree.flatten(problem.params)
    real = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.floating)]

    def total(taps):
        outputs, captures = tapped.run(leaves, x, taps)
        return jnp.sum(problem.loss(outputs, t)), captures

    deltas, captures = jax.grad(total, has_aux=True)(tapped.zeros)
    found = dict(deltas.leaves)
    for site in tapped.sites:
        delta, captured = deltas.sites[site.key][None, None], captures[site.key][None]
        (part,) = sites.gradients(site, captured, delta)[0]
        found[site.leaf] = found.get(site.leaf, 0) + part

    def loss(some):
        full = [some.get(i, leaf) for i, leaf in enumerate(leaves)]
        return jnp.sum(problem.loss(problem.apply(jax.tree.unflatten(structure, full), x), t))

    expected = jax.grad(loss)({i: leaves[i] for i in real})
    for i in real:
        assert_near(found.get(i, jnp.zeros(leaves[i].shape)), expected[i], jnp.float64)


def test_a_tap_is_added_to_what_a_layer_computes_and_to_what_a_leaf_is():
    params, x = {"w": jnp.eye(2), "bias": jnp.zeros(2)}, jnp.ones((3, 2))
    tapped = tap(lambda p, x: 2 * (x @ p["w"]) + p["bias"], params, x)
    (site,) = tapped.sites
    (bias,) = tapped.direct
    taps = tapped.zeros._replace(
        sites={site.key: jnp.ones((3, 2))}, leaves={bias: jnp.array([5.0, 7.0])}
    )
    outputs, _ = tapped.run(jax.tree.leaves(params), x, taps)
    np.testing.assert_array_equal(outputs, [[9.0, 11.0]] * 3)


def test_every_step_of_a_scan_has_its_own_tap():
    problem = PROBLEMS["scan_rnn"]()
    tapped = tap(problem.apply, problem.params, problem.batch[0])
    first = tapped.sites[0]
    assert first.origin.loops == ((4, "constant"),)
    assert first.output.shape == (4, 5, 3)


def test_moves_on_the_way_to_a_layer_are_kept_in_order():
    apply = lambda w, x: x @ w.astype(jnp.bfloat16).T[::-1].reshape(3, 4).astype(jnp.float32)
    tapped = tap(apply, jnp.ones((2, 6)), jnp.ones((5, 3)))
    (site,) = tapped.sites
    assert [step.primitive.name for step in site.origin.steps] == ["transpose", "rev", "reshape"]
    assert site.origin.injective
    spread = tap(lambda w, x: x @ jnp.broadcast_to(w, (3, 4)), jnp.ones(4), jnp.ones((5, 3)))
    assert not spread.sites[0].origin.injective


OPAQUE = {
    "a sum over the weight": lambda w, x: x @ w + jnp.sum(w),
    "a function of the weight": lambda w, x: x @ jnp.tanh(w),
    "a product with itself": lambda w, x: x @ (w @ w),
    "a layer and an elementwise use": lambda w, x: (x @ w) * w[0] + w[1],
    "a carry": lambda w, x: lax.scan(lambda c, _: ((c[0] @ c[1], c[1] / 2), None), (x, w), None, 2),
    "a branch": lambda w, x: lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x),
}
OPEN = {
    "a mask": lambda w, x: x @ (w * jnp.tri(3)),
    "a shift": lambda w, x: x @ (w + 1),
    "added to the outputs": lambda w, x: x + w,
}


@pytest.mark.parametrize("name", [*OPAQUE, *OPEN])
def test_a_leaf_that_something_else_reads_is_tapped_itself(name):
    tapped = tap({**OPAQUE, **OPEN}[name], jnp.ones((3, 3)), jnp.ones((3, 3)))
    assert tapped.sites == ()
    assert tapped.direct == (0,)
    assert tapped.slow == ((0,) if name in OPAQUE else ())


def test_layers_inside_custom_derivatives_are_left_to_their_author():
    @jax.custom_vjp
    def dense(w, x):
        return x @ w

    dense.defvjp(lambda w, x: (x @ w, (w, x)), lambda res, ct: (res[1].T @ ct, 7 * ct @ res[0].T))
    params, x = {"a": jnp.eye(2), "b": jnp.ones((3, 2))}, jnp.ones((5, 3))
    tapped = tap(lambda p, x: dense(p["a"], x @ p["b"]), params, x)
    assert [site.leaf for site in tapped.sites] == [1]
    assert tapped.direct == tapped.slow == (0,)
    run = lambda taps: tapped.run(jax.tree.leaves(params), x, taps)
    deltas = jax.grad(lambda taps: jnp.sum(run(taps)[0]))(tapped.zeros)
    np.testing.assert_array_equal(deltas.sites[tapped.sites[0].key], np.full((5, 2), 7.0))
    np.testing.assert_array_equal(deltas.leaves[0], np.full((2, 2), 15.0))


def test_integer_layers_have_no_taps():
    tapped = tap(lambda w, x: x @ w, jnp.ones((3, 2), jnp.int32), jnp.ones((4, 3), jnp.int32))
    assert tapped.sites == ()
    assert tapped.direct == ()


def test_leaves_that_nothing_reads_have_no_taps():
    tapped = tap(lambda p, x: x @ p[0], [jnp.ones((3, 2)), jnp.ones(4)], jnp.ones((4, 3)))
    assert [site.leaf for site in tapped.sites] == [0]
    assert tapped.direct == ()
