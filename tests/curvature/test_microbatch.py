"""However a batch is cut, compiled, mapped or placed, the same sums come out."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune as jp
from tests.dense import flat
from tests.near import assert_near
from tests.problems import softmax_loss
from tests.transforms.fresh import run_module

N = 23
of = jp.curvature
quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def mlp(params, x):
    return jnp.tanh(x.reshape(x.shape[0], -1) @ params["a"] + params["bias"]) @ params["b"]


def convolved(x, w):
    return lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def conv(params, x):
    x = convolved(x.astype(params["a"].dtype), params["a"])
    return jnp.mean(convolved(jax.nn.relu(x + params["bias"]), params["b"]), axis=(1, 2))


APPLIES = {"mlp": mlp, "conv": conv}
WEIGHTS = {"mlp": ((32, 5), (5, 3)), "conv": ((2, 2, 2, 5), (2, 2, 5, 3))}
KEY = jax.random.key(7)
MEASURES = {
    "gauss_newton": lambda f, m: of.gauss_newton_diagonal(
        f, softmax_loss, root=of.softmax_root, microbatch=m
    ),
    "fisher": lambda f, m: of.fisher_diagonal(f, softmax_loss, microbatch=m),
    "true_fisher": lambda f, m: of.true_fisher_diagonal(f, of.categorical, microbatch=m),
    "sampled": lambda f, m: of.true_fisher_diagonal(
        f, of.categorical, key=KEY, samples=3, microbatch=m
    ),
    "gradient_moments": lambda f, m: of.gradient_moments(f, softmax_loss, microbatch=m),
    "layer_moments": lambda f, m: of.layer_moments(
        f, softmax_loss, root=of.softmax_root, microbatch=m
    ),
}


def case(name, dtype=jnp.float64, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) * 0.4, dtype)
    first, last = WEIGHTS[name]
    params = {"a": draw(*first), "bias": draw(5), "b": draw(*last)}
    return params, (2 * draw(N, 4, 4, 2), jnp.asarray(rng.integers(0, 3, N)))


def arrays(found):
    """Leaves of a result, NaN (a bias is no layer) as a number."""
    return [np.nan_to_num(np.asarray(x, np.float64), nan=-7.0) for x in jax.tree.leaves(found)]


def same(found, expected, roundings=100, dtype=jnp.float64):
    for a, b in zip(arrays(found), arrays(expected), strict=True):
        assert_near(a, b, dtype, roundings)


@functools.cache
def whole(measure, name):
    with jax.enable_x64(True):
        return MEASURES[measure](APPLIES[name], N)(*case(name))


@pytest.mark.every(5)
@pytest.mark.parametrize("name", ["mlp", pytest.param("conv", marks=pytest.mark.slow)])
@pytest.mark.parametrize("measure", MEASURES)
def test_a_loop_over_microbatches_is_the_whole_batch(measure, name, x64):
    for microbatch in (1, 2, 3, 7, 100) if name == "mlp" else (1, 7, 100):
        found = MEASURES[measure](APPLIES[name], microbatch)(*case(name))
        same(found, whole(measure, name))


@pytest.mark.every(3)
@pytest.mark.parametrize("name", ["mlp", pytest.param("conv", marks=pytest.mark.slow)])
@pytest.mark.parametrize("measure", MEASURES)
def test_so_are_microbatches_inside_jit_few_or_many(measure, name, x64):
    """23 of one image are a scan in the MLP; three of seven and a rest are unrolled."""
    for microbatch in (1, 7):
        found = quickly(MEASURES[measure](APPLIES[name], microbatch))(*case(name))
        same(found, whole(measure, name))


def test_a_scan_takes_the_rest_that_fills_no_microbatch(x64, monkeypatch):
    monkeypatch.setattr("jaxprune.curvature.examples._UNROLLED", 2)
    measure = MEASURES["gradient_moments"](mlp, 3)
    text = str(jax.make_jaxpr(measure)(*case("mlp")))
    assert "scan" in text
    same(quickly(measure)(*case("mlp")), whole("gradient_moments", "mlp"))


@pytest.mark.every(3)
@pytest.mark.parametrize("name", APPLIES)
@pytest.mark.parametrize("measure", ["gauss_newton", "sampled"])
def test_under_vmap_over_seeds_each_seed_has_its_own(measure, name, x64):
    params = [case(name, seed=seed)[0] for seed in range(3)]
    batch = case(name)[1]
    run = MEASURES[measure](APPLIES[name], 8)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *params)
    found = quickly(jax.vmap(run, in_axes=(0, None)))(stacked, batch)
    for i, one in enumerate(params):
        same(jax.tree.map(lambda x, i=i: x[i], found), run(one, batch))


def test_parameters_may_be_donated(x64):
    params, batch = case("mlp")
    run = jax.jit(MEASURES["gauss_newton"](mlp, 7), donate_argnums=0)
    same(run(jax.tree.map(jnp.copy, params), batch), whole("gauss_newton", "mlp"))


@pytest.mark.parametrize("microbatch", [7, N])
def test_neither_parameters_nor_batch_are_consumed(microbatch):
    params, batch = case("mlp", jnp.float32)
    before = jax.tree.map(np.array, (params, batch))
    run = MEASURES["gauss_newton"](mlp, microbatch)
    first, second = run(params, batch), run(params, batch)
    same(second, first, 0, jnp.float32)
    same((params, batch), before, 0, jnp.float32)


@pytest.mark.every(3)
@pytest.mark.parametrize("name", APPLIES)
@pytest.mark.parametrize("measure", [m for m in MEASURES if m != "sampled"])
def test_parameters_in_bfloat16_are_measured_in_float32(measure, name):
    params, batch = case(name, jnp.float32)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    run = MEASURES[measure](APPLIES[name], None)
    found = run(narrow, batch)
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
    same(found, run(jax.tree.map(lambda x: x.astype(jnp.float32), narrow), batch), 20, jnp.float32)


def test_inputs_may_have_the_narrow_dtype_of_their_parameters_too():
    """A convolution takes operands of one dtype only."""
    params, (x, labels) = case("conv", jnp.bfloat16)
    strict = lambda p, x: jnp.mean(convolved(convolved(x, p["a"]), p["b"]), axis=(1, 2))
    wide = jax.tree.map(lambda v: v.astype(jnp.float32), params)
    expected = of.fisher_diagonal(strict, softmax_loss)(wide, (x.astype(jnp.float32), labels))
    found = of.fisher_diagonal(strict, softmax_loss)(params, (x, labels))
    same(found.mean, expected.mean, 8, jnp.bfloat16)


@pytest.mark.parametrize("options", [{}, {"key": jax.random.key(0), "samples": 300}])
def test_the_true_fisher_of_bfloat16_outputs_is_taken_in_float32(options):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 64)), jnp.bfloat16)
    narrow, wide = (
        of.true_fisher_diagonal(
            lambda p, x, dtype=dtype: x.astype(dtype) + p.astype(dtype), of.categorical, **options
        )(jnp.zeros(64), (x, jnp.zeros(8))).mean
        for dtype in (jnp.bfloat16, jnp.float32)
    )  # fmt: skip
    np.testing.assert_allclose(narrow.sum(), wide.sum(), rtol=2e-3)


def test_what_true_fishers_refuse():
    apply = lambda p, x: jnp.zeros((2, 3, 4)) + p
    for key in (None, jax.random.key(0)):
        with pytest.raises(ValueError, match=r"logits of shape \[N, K\]"):
            of.true_fisher_diagonal(apply, of.categorical, key=key)(
                jnp.zeros(4), (jnp.zeros((2, 1)), jnp.zeros(2))
            )


def test_the_exact_true_fisher_is_the_gauss_newton_diagonal_of_its_loss(x64):
    found, expected = whole("true_fisher", "mlp"), whole("gauss_newton", "mlp")
    same((found.mean, found.second_moment), (expected.mean, expected.second_moment))
    assert not whole("sampled", "mlp").is_hessian


LIKELIHOODS = {
    "categorical": (of.categorical, softmax_loss),
    "bernoulli": (of.bernoulli, lambda y, t: jnp.sum(jax.nn.softplus(y), axis=1)),
    "normal": (of.normal, lambda y, t: jnp.sum(y**2, axis=1) / 2),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_likelihoods_root_is_the_hessian_of_its_negative_logarithm(name, x64):
    likelihood, loss = LIKELIHOODS[name]
    params, batch = case("mlp")
    exact = of.true_fisher_diagonal(mlp, likelihood)(params, batch)
    expected = of.gauss_newton_diagonal(mlp, loss)(params, batch)
    same((exact.mean, exact.second_moment), (expected.mean, expected.second_moment), 1000)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_draws_have_the_exact_true_fisher_as_their_mean(name):
    """Forty estimates of a hundred draws: their mean is within their own standard errors."""
    likelihood, _ = LIKELIHOODS[name]
    params, batch = case("mlp", jnp.float32)
    exact = flat(params, of.true_fisher_diagonal(mlp, likelihood)(params, batch).mean)
    one = lambda key: (
        of.true_fisher_diagonal(mlp, likelihood, key=key, samples=100, second_moment=False)(
            params, batch
        ).mean
    )
    found = jax.jit(lambda keys: lax.map(one, keys))(jax.random.split(KEY, 40))
    draws = np.stack([flat(params, jax.tree.map(lambda x, i=i: x[i], found)) for i in range(40)])
    # Some 180 entries: five standard errors of 40 draws, and the key is fixed.
    error = np.abs(draws.mean(0) - exact)
    assert (error <= 5 * draws.std(0, ddof=1) / np.sqrt(40) + 1e-6 * exact.max()).all()
    assert (draws.std(0) > 0).mean() > 0.9


def test_the_same_key_draws_the_same_targets_and_another_key_others():
    params, batch = case("mlp", jnp.float32)
    run = lambda key: of.true_fisher_diagonal(mlp, of.categorical, key=key)(params, batch).mean
    same(run(KEY), run(KEY), 0, jnp.float32)
    assert np.any(flat(params, run(KEY)) != flat(params, run(jax.random.key(8))))


def test_targets_are_not_read_by_a_true_fisher():
    params, (x, labels) = case("mlp", jnp.float32)
    for options in ({}, {"key": KEY}):
        run = of.true_fisher_diagonal(mlp, of.categorical, **options)
        same(run(params, (x, labels)), run(params, (x, 2 - labels)), 0, jnp.float32)


@pytest.mark.parametrize("microbatch", [0, -1, 2.0, True, "all"])
@pytest.mark.parametrize("measure", MEASURES)
def test_a_microbatch_that_is_no_count_is_refused_when_it_is_given(measure, microbatch):
    with pytest.raises(ValueError, match="`microbatch` is how many are taken"):
        MEASURES[measure](mlp, microbatch)


@pytest.mark.slow
def test_a_batch_on_four_devices_gives_what_one_device_gives():
    found = json.loads(run_module("tests.curvature.on_four_devices", devices=4))
    assert found["devices"] == 4
    assert len(found["results"]) == 8
    assert max(found["results"].values()) < 1e-4, found["results"]
