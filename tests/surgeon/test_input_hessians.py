"""`d' H d` is the mean square of what a change d of a layer's weights does to its outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxprune.surgeon.layers import calibration
from jaxprune.surgeon.layers.calibration import checked_inputs, input_hessians, trace_model
from tests.near import assert_near
from tests.surgeon.layer_doubles import moment

N = 5
EVERY = lambda name, leaf: True


def conv(w, x, steps=(1, 1), pads="SAME", groups=1, gaps=(1, 1), apart=(1, 1)):
    return lax.conv_general_dilated(
        x, w, steps, pads, lhs_dilation=apart, rhs_dilation=gaps, feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def over_time(w, x):
    return jnp.swapaxes(lax.scan(lambda c, x: (c, x @ w), 0, jnp.swapaxes(x, 0, 1))[1], 0, 1)


def over_layers(w, x):
    return lax.scan(lambda c, w: (c, x @ w), 0, w)[1].swapaxes(0, 1)


LAYERS = {  # (layer, shape of the weight, shape of the inputs, [b, i, i] of H)
    "dense": (lambda w, x: x @ w, (3, 4), (N, 3), (1, 3)),
    "transposed": (lambda w, x: x @ w.T, (4, 3), (N, 3), (1, 3)),
    "weight on the left": (lambda w, x: (w @ x.T).T, (4, 3), (N, 3), (1, 3)),
    "tokens": (lambda w, x: x @ w, (3, 4), (N, 6, 3), (1, 3)),
    "two axes in": (lambda w, x: jnp.einsum("nhk,hko->no", x, w), (2, 3, 4), (N, 2, 3), (1, 6)),
    "heads out": (lambda w, x: jnp.einsum("nti,ihk->nthk", x, w), (3, 2, 4), (N, 5, 3), (1, 3)),
    "a weight a head": (
        lambda w, x: jnp.einsum("nthi,hio->ntho", x, w), (2, 3, 4), (N, 5, 2, 3), (2, 3)),
    "conv": (lambda w, x: conv(w, x, (2, 2), "SAME"), (3, 2, 2, 3), (N, 5, 4, 2), (1, 12)),
    "dilated conv": (
        lambda w, x: conv(w, x, (1, 2), [(1, 2), (0, 0)], gaps=(2, 1)),
        (2, 3, 2, 3), (N, 5, 6, 2), (1, 12)),
    "transposed conv": (
        lambda w, x: conv(w, x, pads=[(1, 1), (1, 1)], apart=(2, 2)),
        (2, 2, 2, 3), (N, 3, 3, 2), (1, 8)),
    "grouped conv": (lambda w, x: conv(w, x, groups=2), (2, 2, 2, 6), (N, 4, 3, 4), (2, 8)),
    "depthwise conv": (lambda w, x: conv(w, x, groups=3), (3, 3, 1, 3), (N, 4, 4, 3), (3, 9)),
    "time steps": (over_time, (3, 4), (N, 6, 3), (1, 3)),
    "stacked layers": (over_layers, (2, 3, 4), (N, 3), (2, 3)),
}  # fmt: skip


@pytest.mark.every(3)
@pytest.mark.parametrize("name", LAYERS)
def test_the_second_moment_gives_the_change_of_the_outputs(name, x64):
    layer, weight, inputs, (b, i) = LAYERS[name]
    rng = np.random.default_rng(0)
    w, x = jnp.zeros(weight), jnp.asarray(rng.normal(size=inputs))
    model = trace_model(layer, w, x, EVERY, None)
    (h,) = model.hessians(w, x, [0])[0]
    assert h.shape == (b, i, i)
    assert_near(np.swapaxes(h, 1, 2), h, jnp.float64, 0)
    changes = rng.normal(size=(3, *weight))
    moved = jax.vmap(lambda d: jnp.sum(layer(d, x) ** 2))(changes) / N
    for change, expected in zip(changes, moved, strict=True):
        (d,) = model.weights[0].split(change)
        assert_near(np.einsum("bio,bij,bjo->", d, h, d), expected, jnp.float64)


@pytest.mark.parametrize("budget", [pytest.param(1, marks=pytest.mark.slow), 30])
def test_patches_of_a_few_examples_at_a_time_add_up(budget, monkeypatch, x64):
    layer, weight, inputs, _ = LAYERS["conv"]
    x, w = jax.random.normal(jax.random.key(0), inputs), jnp.zeros(weight)
    whole = input_hessians(layer, w, (x, None))[""][0]
    each = 12 * 6 * 2  # entries of the patches of two examples
    monkeypatch.setattr(calibration, "budget", lambda dtype: budget * each // 30)
    assert_near(input_hessians(layer, w, (x, None))[""][0], whole, jnp.float64)


def test_microbatches_add_up_whether_they_divide_the_batch_or_not(x64):
    x = jax.random.normal(jax.random.key(0), (7, 3))
    w = [jax.random.normal(jax.random.key(1), (3, 4)), jnp.zeros((4, 2))]
    apply = lambda w, x: jnp.tanh(x @ w[0]) @ w[1]
    for size in (3, 100):
        found = input_hessians(apply, w, (x, jnp.zeros(7)), microbatch=size)
        assert list(found) == ["0", "1"]
        assert_near(found["0"][0][0], moment(np.asarray(x)), jnp.float64)
        assert_near(found["1"][0][0], moment(np.tanh(x @ w[0])), jnp.float64)


def test_the_uses_of_a_shared_weight_are_positions_of_one_layer(x64):
    x = np.asarray(jax.random.normal(jax.random.key(0), (N, 3)))
    w = np.asarray(jax.random.normal(jax.random.key(1), (3, 3)))
    apply = lambda w, x: jnp.einsum("ij,ni->nj", w, jnp.tanh(x @ w))
    found = input_hessians(apply, jnp.asarray(w), (jnp.asarray(x), None))[""]
    both = np.stack([x, np.tanh(x @ w)], axis=1)
    assert_near(found[0][0], moment(both), jnp.float64)


def test_slices_that_layers_read_are_weights_of_their_own(x64):
    x = np.asarray(jax.random.normal(jax.random.key(0), (N, 3)))
    w = np.asarray(jax.random.normal(jax.random.key(1), (2, 4, 3)))
    apply = lambda w, x: jnp.tanh(x @ w[0, :3]) @ w[1, 1:]
    found = input_hessians(apply, jnp.asarray(w), (jnp.asarray(x), None))[""]
    assert [h.shape for h in found] == [(1, 3, 3)] * 2
    assert_near(found[0][0], moment(x), jnp.float64)
    assert_near(found[1][0], moment(np.tanh(x @ w[0, :3])), jnp.float64)
    (weight,) = trace_model(apply, jnp.asarray(w), checked_inputs((x, None)), EVERY, None).weights
    assert weight.read().sum() == 18
    again = weight.gather(weight.split(w))
    np.testing.assert_array_equal(again, np.where(weight.read(), w, 0))


def test_narrow_weights_are_measured_in_float32():
    apply = lambda w, x: x.astype(jnp.bfloat16) @ w
    x = jax.random.normal(jax.random.key(0), (N, 3))
    (h,) = input_hessians(apply, jnp.ones((3, 2), jnp.bfloat16), (x, None))[""]
    assert h.dtype == jnp.float32
    assert_near(h[0], moment(np.asarray(x.astype(jnp.bfloat16), np.float64)), jnp.float32)
