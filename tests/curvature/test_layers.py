"""layer_moments against the definition: inputs by hand, output curvature by jax.jacobian."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune as jp
from tests.near import assert_near
from tests.problems import N, cluttered, scan_rnn, softmax_loss, squared_loss, tied_net


def _conv(layout: str, **window: Any) -> Any:
    numbers = ("NHWC", "HWIO", "NHWC") if layout == "NHWC" else ("NCHW", "OIHW", "NCHW")
    strides, padding = window.get("strides", (1, 1)), window.get("padding", "SAME")
    return lambda w, x: lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=numbers)


class Layer(NamedTuple):
    """A layer, and which axes mean what.

    Attributes:
      run: (w, x) -> z.
      weight, inputs: shapes.
      input_axes: (axis of w, axis of x) of the input index i.
      output_axes: axes of w, and of z, of the output indices; the other axes of z but the first
        are positions.
    """

    run: Any
    weight: tuple[int, ...]
    inputs: tuple[int, ...]
    input_axes: tuple[int, int]
    output_axes: tuple[tuple[int, ...], tuple[int, ...]]


LAYERS = {
    "inputs @ weight": Layer(lambda w, x: x @ w, (3, 4), (N, 3), (0, 1), ((1,), (1,))),
    "weight first": Layer(
        lambda w, x: lax.dot_general(w, x, (((1,), (1,)), ((), ()))).T,
        (4, 3), (N, 3), (1, 1), ((0,), (1,)),
    ),
    "einsum, output axis first": Layer(
        lambda w, x: jnp.einsum("oi,ni->no", w, x), (4, 3), (N, 3), (1, 1), ((0,), (1,))
    ),
    "tokens": Layer(lambda w, x: x @ w, (3, 4), (N, 6, 3), (0, 2), ((1,), (2,))),
    "attention projection": Layer(
        lambda w, x: jnp.einsum("nti,ihk->nthk", x, w),
        (3, 2, 4), (N, 6, 3), (0, 2), ((1, 2), (2, 3)),
    ),
    "conv": Layer(_conv("NHWC"), (3, 3, 2, 4), (N, 5, 5, 2), (2, 3), ((3,), (3,))),
    "conv, strided, no padding": Layer(
        _conv("NHWC", strides=(2, 1), padding="VALID"),
        (2, 3, 2, 4), (N, 5, 5, 2), (2, 3), ((3,), (3,)),
    ),
    "conv, channels first": Layer(
        _conv("NCHW"), (4, 2, 3, 3), (N, 2, 5, 5), (1, 1), ((0,), (1,))
    ),
}  # fmt: skip


def case(layer):
    """(w, batch, apply, head): a model that is the layer, tanh and a fixed dense readout."""
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=layer.weight) * 0.5)
    x = jnp.asarray(rng.normal(size=layer.inputs) + 0.5)
    readout = jnp.asarray(rng.normal(size=(jax.eval_shape(layer.run, w, x).size // N, 3)))
    head = lambda z: jnp.tanh(z).reshape(z.shape[0], -1) @ readout
    return w, (x, jnp.array([0, 2, 1, 1, 0])), lambda w, x: head(layer.run(w, x)), head


@functools.cache
def truth(name):
    """Mean and mean square of inputs, and mean summed curvature, each of the weight's shape."""
    layer = LAYERS[name]
    w, (x, labels), _, head = case(layer)
    of_weight, of_inputs = layer.input_axes
    rows = np.moveaxis(np.asarray(x), of_inputs, -1).reshape(-1, w.shape[of_weight])
    along = lambda v: np.expand_dims(v, [a for a in range(w.ndim) if a != of_weight])

    z = layer.run(w, x)
    jacobian = jax.jacobian(head)(z)  # [n, k, n, ...]
    jacobian = np.stack([jacobian[n, :, n] for n in range(N)])
    one = lambda y, t: softmax_loss(y[None], t[None])[0]
    hessian = jax.vmap(jax.hessian(one))(head(z), labels)
    curved = np.einsum("nk...,nkl,nl...->n...", jacobian, hessian, jacobian)
    of_w, of_z = layer.output_axes
    positions = tuple(a for a in range(1, curved.ndim) if a not in of_z)
    bend = curved.sum(positions).mean(0)
    bend = np.expand_dims(bend, [a for a in range(w.ndim) if a not in of_w])
    return [
        np.broadcast_to(m, w.shape) for m in (along(rows.mean(0)), along((rows**2).mean(0)), bend)
    ]


@pytest.mark.parametrize("name", LAYERS)
def test_moments_are_those_of_the_definition(name, x64):
    layer = LAYERS[name]
    w, batch, apply, _ = case(layer)
    options = {"root": jp.curvature.softmax_root} if name == "tokens" else {}
    found = jp.curvature.layer_moments(apply, softmax_loss, **options)(w, batch)
    for moment, expected in zip(found, truth(name), strict=True):
        assert_near(np.broadcast_to(moment, w.shape), expected, jnp.float64, 1000)


@pytest.mark.parametrize("name", LAYERS)
def test_input_spread_is_what_the_mean_part_of_an_input_cannot_explain(name, x64):
    layer = LAYERS[name]
    w, batch, apply, _ = case(layer)
    saliency = jp.saliency.optimal_brain_damage_sd(
        jp.curvature.layer_moments(apply, softmax_loss), reading="input_spread"
    )
    mean, square, bend = truth(name)
    expected = bend * (square - mean**2) * np.asarray(w) ** 2 / 2
    assert_near(saliency(w, batch), expected, jnp.float64, 1000)


def nan_leaves(params, batch, apply, loss):
    found = jp.curvature.layer_moments(apply, loss)(params, batch)
    leaves = [jp.trees.named_leaves(tree) for tree in found]
    flags = [{name for name, leaf in tree if np.isnan(leaf).any()} for tree in leaves]
    assert flags[0] == flags[1] == flags[2]
    for tree in leaves:
        for name, leaf in tree:
            assert np.isnan(leaf).all() == (name in flags[0]) or not leaf.size
    return flags[0]


def test_leaves_that_are_no_layers_weight_are_nan():
    problem = cluttered()
    found = nan_leaves(problem.params, problem.batch, problem.apply, problem.loss)
    assert found == {"flag", "key", "net/head/bias", "net/hidden/bias", "scalar", "step"}


def test_a_weight_with_several_uses_is_nan_and_not_the_moments_of_one_of_them():
    tied = tied_net()
    assert nan_leaves(tied.params, tied.batch, tied.apply, tied.loss) == {"shared"}
    x, w = jnp.ones((N, 3)), jnp.ones((3, 3))
    uses = {
        "two layers": lambda w, x: jnp.tanh(x @ w) @ w,
        "a layer and a sum": lambda w, x: x @ w + jnp.sum(w),
        "a layer and a scan": lambda w, x: lax.scan(lambda h, _: (h @ w, None), x @ w, None, 2)[0],
    }
    for apply in uses.values():
        assert nan_leaves({"w": w}, (x, x), apply_to(apply), squared_loss) == {"w"}


def apply_to(function):
    return lambda params, x: function(params["w"], x)


def test_weights_out_of_sight_are_nan():
    rnn = scan_rnn()
    assert nan_leaves(rnn.params, rnn.batch, rnn.apply, rnn.loss) == {"0", "1"}
    grouped = lambda params, x: lax.conv_general_dilated(
        x, params["w"], (1,), "SAME", feature_group_count=2, dimension_numbers=("NHC", "HIO", "NHC")
    )
    batch = (jnp.ones((N, 4, 2)), jnp.ones((N, 4, 4)))
    assert nan_leaves({"w": jnp.ones((3, 1, 4))}, batch, grouped, squared_loss) == {"w"}
    two_axes = lambda params, x: jnp.einsum("nhk,hko->no", x, params["w"])
    batch = (jnp.ones((N, 2, 3)), jnp.ones((N, 4)))
    assert nan_leaves({"w": jnp.ones((2, 3, 4))}, batch, two_axes, squared_loss) == {"w"}


def test_the_models_own_derivatives_are_used():
    """ReLU's derivative at 0 is 0 by its custom_jvp; inside it, max(x, 0) would say one half."""
    params = {"first": jnp.ones((3, 4)), "last": jnp.ones((4, 2))}
    apply = lambda p, x: jax.nn.relu(x @ p["first"]) @ p["last"]
    batch = (jnp.zeros((N, 3)), jnp.ones((N, 2)))
    found = jp.curvature.layer_moments(apply, squared_loss)(params, batch)
    assert not np.any(found.output_curvature["first"])
    assert np.all(found.output_curvature["last"] > 0)


def test_layers_within_jit_and_checkpoint_are_seen_and_casts_are_looked_through():
    w, x = jnp.ones((3, 2)), jnp.arange(6.0).reshape(2, 3)
    plain = lambda w, x: x @ w
    models = [
        jax.jit(plain),
        jax.checkpoint(plain),
        lambda w, x: jax.jit(jax.checkpoint(plain))(w, x),
        lambda w, x: (x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)).astype(jnp.float32),
    ]
    expected = jp.curvature.layer_moments(plain, squared_loss)(w, (x, jnp.ones((2, 2))))
    for model in models:
        found = jp.curvature.layer_moments(model, squared_loss)(w, (x, jnp.ones((2, 2))))
        for a, b in zip(found, expected, strict=True):
            assert_near(a, b, jnp.bfloat16, 2)
