"""Max-pooling: Flax's values, XLA's gradient, and derivatives of any order."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxprune.pooling import Window, max_pool, pool
from tests.near import assert_near

POOLS = {  # inputs, window, strides, padding
    "tiles": ((2, 6, 4, 3), (2, 2), (2, 2), "VALID"),
    "tiles with a rest": ((2, 7, 5, 3), (2, 2), (2, 2), "VALID"),
    "overlapping": ((2, 7, 7, 2), (3, 3), (2, 2), "VALID"),
    "strides of one": ((2, 5, 5, 2), (2, 3), None, "VALID"),
    "gaps": ((2, 9, 8, 2), (2, 2), (3, 4), "VALID"),
    "SAME": ((2, 7, 6, 2), (3, 2), (2, 2), "SAME"),
    "SAME, overlapping": ((2, 6, 6, 2), (3, 3), (1, 1), "SAME"),
    "padded by hand": ((2, 5, 6, 2), (3, 2), (2, 1), ((1, 2), (0, 1))),
    "1-D": ((3, 9, 2), (3,), (2,), "VALID"),
    "3-D": ((2, 4, 4, 4, 1), (2, 2, 2), (2, 2, 2), "VALID"),
    "whole image": ((2, 4, 4, 2), (4, 4), (4, 4), "VALID"),
}


def draw(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def ties(shape):
    """Small integers: nearly every window has its maximum more than once."""
    return jnp.asarray(np.random.default_rng(1).integers(0, 2, shape), float)


@pytest.mark.every(5)
@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("make", [draw, ties])
def test_values_are_flaxs_and_the_gradient_is_xlas(name, make, x64):
    shape, *how = POOLS[name]
    x = make(shape)
    ours, pull = jax.vjp(lambda x: max_pool(x, *how), x)
    plain, plain_pull = jax.vjp(lambda x: nn.max_pool(x, *how), x)
    np.testing.assert_array_equal(ours, plain)
    deltas = draw(plain.shape, 2)
    assert_near(pull(deltas)[0], plain_pull(deltas)[0], jnp.float64)


@pytest.mark.every(3)
@pytest.mark.parametrize("name", POOLS)
def test_forward_and_reverse_derivatives_are_each_others_transpose(name, x64):
    shape, *how = POOLS[name]
    x, v = ties(shape), draw(shape, 3)
    pooled, moved = jax.jvp(lambda x: max_pool(x, *how), (x,), (v,))
    deltas = draw(pooled.shape, 4)
    (back,) = jax.vjp(lambda x: max_pool(x, *how), x)[1](deltas)
    assert_near(jnp.vdot(deltas, moved), jnp.vdot(back, v), jnp.float64)


@pytest.mark.parametrize("name", ["tiles", "overlapping", "SAME"])
def test_second_derivatives_are_those_of_flax(name, x64):
    _, *how = POOLS[name]
    x = draw((1, 5, 4, 1))
    loss = lambda x, pool: jnp.sum(jnp.sin(pool(jnp.tanh(x), *how)))
    hessian = lambda pool: jax.jit(jax.hessian(loss), static_argnums=1)(x, pool)
    assert_near(hessian(max_pool), hessian(nn.max_pool), jnp.float64)


@pytest.mark.every(5)
@pytest.mark.parametrize("name", POOLS)
def test_under_jit_and_vmap_it_is_the_same(name):
    shape, *how = POOLS[name]
    x = draw((3, *shape))
    loss = lambda x: jnp.sum(jnp.square(max_pool(x, *how)))
    found = jax.jit(jax.vmap(jax.grad(loss)))(x)
    assert_near(found, jnp.stack([jax.grad(loss)(one) for one in x]), jnp.float32)


@pytest.mark.parametrize("how", [((2,), (2,)), ((2,), (1,))])
def test_nan_spreads_to_its_windows_only_and_breaks_no_gradient(how):
    x = jnp.array([1.0, jnp.nan, 2.0, 3.0, 4.0, 5.0]).reshape(1, 6, 1)
    value, gradient = jax.value_and_grad(lambda x: jnp.nansum(max_pool(x, *how)))(x)
    np.testing.assert_array_equal(np.isnan(max_pool(x, *how)), np.isnan(nn.max_pool(x, *how)))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    # Each finite window hands its one to its maximum; nansum hands the others nothing.
    assert gradient.sum() == np.isfinite(np.asarray(max_pool(x, *how))).sum()


def test_infinities_are_values_like_any_other():
    x = jnp.array([-jnp.inf, -jnp.inf, 1.0, jnp.inf]).reshape(1, 4, 1)
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x, (2,), (2,))))(x)
    np.testing.assert_array_equal(max_pool(x, (2,), (2,)).ravel(), [-np.inf, np.inf])
    np.testing.assert_array_equal(gradient.ravel(), [1, 0, 0, 1])


@pytest.mark.every(3)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_the_dtype_stays(dtype):
    x = draw((2, 5, 5, 2)).astype(dtype)
    pooled, pull = jax.vjp(lambda x: max_pool(x, (3, 3), (2, 2), "SAME"), x)
    assert pooled.dtype == dtype
    assert pull(pooled)[0].dtype == dtype


def test_any_axis_may_have_a_window(x64):
    x = draw((4, 3, 6, 2))
    window = Window((2, 1, 3, 2), (1, 1, 3, 2), ((1, 0), (0, 0), (0, 0), (0, 0)))
    plain = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, *window)
    ours, pull = jax.vjp(lambda x: pool(window, x), x)
    expected, plain_pull = jax.vjp(plain, x)
    np.testing.assert_array_equal(ours, expected)
    deltas = draw(ours.shape, 5)
    assert_near(pull(deltas)[0], plain_pull(deltas)[0], jnp.float64)


def test_windows_that_do_not_fit_are_refused():
    x = jnp.ones((2, 4, 4, 1))
    with pytest.raises(ValueError, match="one window size for each axis between"):
        max_pool(x, (2,), (2,))
    with pytest.raises(ValueError, match=r"strides \(2,\)"):
        max_pool(x, (2, 2), (2,))
    with pytest.raises(TypeError, match="floating-point inputs, got int32"):
        max_pool(x.astype(jnp.int32), (2, 2))
