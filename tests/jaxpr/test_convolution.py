"""convolve: XLA's convolution and XLA's gradients, whichever way they are computed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxprune.jaxpr import convolution, equations
from jaxprune.jaxpr.convolution import convolve
from tests.near import assert_near

LAYOUTS = {
    "NHWC": ("NHWC", "HWIO", "NHWC"),
    "NCHW": ("NCHW", "OIHW", "NCHW"),
    "mixed": ("NHWC", "OHWI", "NWCH"),
}
PADDINGS = {
    "SAME": "SAME",
    "VALID": "VALID",
    "uneven": ((0, 2), (1, 0)),
    "more than the kernel": ((4, 5), (0, 6)),
    "negative": ((-1, 1), (2, -2)),
}


QUICKLY = {"xla_backend_optimization_level": 0}


def draw(*shape):
    return jnp.asarray(np.random.default_rng(len(shape) + shape[0]).normal(size=shape))


def case(kernel, strides, dilation, padding, layout, channels=(3, 2)):
    """(the plain convolution, the one under test, x, w)."""
    sizes = {"N": 4, "H": 9, "W": 8, "C": channels[0]}
    lhs, rhs, _ = numbers = LAYOUTS[layout]
    x = draw(*(sizes[axis] for axis in lhs))
    sizes = dict(zip("HWIO", (*kernel, *channels), strict=True))
    w = draw(*(sizes[axis] for axis in rhs))

    def plain(x, w):
        return lax.conv_general_dilated(
            x, w, strides, PADDINGS[padding], rhs_dilation=dilation, dimension_numbers=numbers
        )

    program, _ = equations.trace(plain, x, w)
    (equation,) = (e for e in program.equations if e.name == "conv_general_dilated")
    return plain, lambda x, w: convolve(equation, x, w), x, w


def pulled(function, x, w, deltas):
    outputs, pull = jax.vjp(lambda x: function(x, w), x)
    return outputs, jax.vmap(pull)(deltas)


@pytest.mark.every(5)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_gradients_are_those_of_xla(padding, layout, x64):
    ways = itertools.product(
        ((3, 3), (1, 4)), (((1, 1), (1, 1)), ((2, 1), (1, 1)), ((3, 2), (2, 2)))
    )
    for kernel, (strides, dilation) in ways:
        plain, ours, x, w = case(kernel, strides, dilation, padding, layout)
        deltas = draw(3, *jax.eval_shape(plain, x, w).shape)
        both = lambda *args, fs=(ours, plain): [pulled(f, *args) for f in fs]
        found, expected = jax.jit(both, compiler_options=QUICKLY)(x, w, deltas)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert_near(a, b, jnp.float64)


def test_both_ways_of_our_own_are_taken_by_some_of_these_cases(x64):
    """Otherwise the test above would compare XLA with itself."""

    def way(*args):
        plain, _, x, w = case(*args)
        equation = equations.trace(plain, x, w)[0].equations[-1]
        found = convolution._pieces(equation.params, x, w)
        return None if found is None else found.args[1]

    assert way((3, 3), (1, 1), (1, 1), "SAME", "NHWC") == 1
    assert way((3, 3), (2, 1), (1, 1), "SAME", "NCHW") == 0
    assert way((1, 1), (2, 2), (1, 1), "SAME", "NHWC") is None


@pytest.mark.parametrize("padding", ["SAME", "uneven", "more than the kernel"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
def test_a_few_images_at_a_time_is_the_same(padding, strides, x64, monkeypatch):
    monkeypatch.setattr(convolution, "_PIECES_BYTES", 3000)
    plain, ours, x, w = case((3, 2), strides, (1, 1), padding, "NHWC")
    deltas = draw(5, *jax.eval_shape(plain, x, w).shape)
    found, expected = (pulled(f, x, w, deltas)[1] for f in (ours, plain))
    for a, b in zip(found, expected, strict=True):
        assert_near(a, b, jnp.float64)


@pytest.mark.every(3)
@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
@pytest.mark.parametrize("mapped", ["kernels", "images", "both", "deltas in deltas"])
def test_under_vmap_it_is_what_it_is_one_by_one(mapped, strides, x64):
    plain, ours, x, w = case((3, 3), strides, (1, 1), "SAME", "NHWC")
    several = lambda v: jnp.stack([v, 2 * v - 1, -v])
    xs, x_axis = (several(x), 0) if mapped in ("images", "both") else (x, None)
    ws, w_axis = (several(w), 0) if mapped in ("kernels", "both") else (w, None)
    shape = jax.eval_shape(plain, x, w).shape
    if mapped == "deltas in deltas":
        ways = lambda f: jax.vmap(jax.vmap(jax.vjp(lambda x: f(x, w), x)[1]))(draw(2, 3, *shape))
    else:
        deltas = draw(3, *shape)
        one = lambda f: lambda x, w: pulled(f, x, w, deltas)[1]
        ways = lambda f: jax.vmap(one(f), (x_axis, w_axis))(xs, ws)
    for a, b in zip(ways(ours), ways(plain), strict=True):
        assert_near(a, b, jnp.float64)


UNUSUAL = {
    "groups": {"feature_group_count": 3},
    "input dilation": {"lhs_dilation": (2, 1)},
    "groups of the batch": {"batch_group_count": 2},
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_has_no_way_of_our_own_is_xlas(name, x64):
    options = UNUSUAL[name]
    x, w = draw(4, 6, 6, 3), draw(3, 3, 3 // options.get("feature_group_count", 1), 6)
    plain = lambda x, w: lax.conv_general_dilated(
        x, w, (2, 1), ((1, 1), (1, 1)), dimension_numbers=LAYOUTS["NHWC"], **options
    )
    equation = equations.trace(plain, x, w)[0].equations[-1]
    deltas = draw(2, *jax.eval_shape(plain, x, w).shape)
    found = pulled(lambda x, w: convolve(equation, x, w), x, w, deltas)
    expected = pulled(plain, x, w, deltas)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
