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
    "weight transposed": Layer(lambda w, x: x @ w.T, (4, 3), (N, 3), (1, 1), ((0,), (1,))),
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


@pytest.mark.every(3)
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


def curvature_at(head, z, labels):
    """[n, *z]: d^2 loss / dz^2 by Gauss-Newton, of a head that takes examples one by one."""
    one = lambda v: head(v[None])[0]
    jacobian = jax.vmap(jax.jacobian(one))(z)
    loss = lambda y, t: softmax_loss(y[None], t[None])[0]
    hessian = jax.vmap(jax.hessian(loss))(jax.vmap(one)(z), labels)
    return jnp.einsum("nk...,nkl,nl...->n...", jacobian, hessian, jacobian)


def drawn(*shape):
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape) + 0.3)


def measured(apply, w, x, labels):
    found = jp.curvature.layer_moments(lambda p, x: apply(p["w"], x), softmax_loss)
    return [moment["w"] for moment in found({"w": w}, (x, labels))]


LABELS = jnp.array([0, 2, 1, 1, 0])


def test_several_input_axes_each_have_their_own_moments(x64):
    w, x, readout = drawn(2, 3, 4), drawn(N, 2, 3), drawn(4, 3)
    layer = lambda w, x: jnp.einsum("nhk,hko->no", x, w)
    head = lambda z: jnp.tanh(z) @ readout
    mean, square, bend = measured(lambda w, x: head(layer(w, x)), w, x, LABELS)
    whole = lambda v: np.broadcast_to(np.asarray(v)[:, :, None], w.shape)
    assert_near(mean, whole(x.mean(0)), jnp.float64)
    assert_near(square, whole((x**2).mean(0)), jnp.float64)
    expected = curvature_at(head, layer(w, x), LABELS).mean(0)
    assert_near(bend, np.broadcast_to(expected, w.shape), jnp.float64, 1000)


def test_a_weight_for_each_head_has_the_moments_of_its_own_head(x64):
    w, x, readout = drawn(2, 3, 4), drawn(N, 6, 2, 3), drawn(6 * 2 * 4, 3)
    layer = lambda w, x: jnp.einsum("nthi,hio->ntho", x, w)
    head = lambda z: jnp.tanh(z).reshape(z.shape[0], -1) @ readout / 4
    mean, square, bend = measured(lambda w, x: head(layer(w, x)), w, x, LABELS)
    whole = lambda v: np.broadcast_to(np.asarray(v)[:, :, None], w.shape)
    assert_near(mean, whole(x.mean((0, 1))), jnp.float64)
    assert_near(square, whole((x**2).mean((0, 1))), jnp.float64)
    expected = curvature_at(head, layer(w, x), LABELS).sum(1).mean(0)
    assert_near(bend, np.broadcast_to(expected[:, None], w.shape), jnp.float64, 1000)


@pytest.mark.parametrize(("groups", "out"), [(2, 4), (4, 4), (4, 8)])
def test_a_grouped_convolution_reads_the_channels_of_its_group(groups, out, x64):
    own = 4 // groups
    w, x, readout = drawn(3, own, out), drawn(N, 5, 4), drawn(5 * out, 3)

    def layer(w, x):
        return lax.conv_general_dilated(x, w, (1,), "SAME", feature_group_count=groups,
                                        dimension_numbers=("NHC", "HIO", "NHC"))  # fmt: skip

    head = lambda z: jnp.tanh(z).reshape(z.shape[0], -1) @ readout / 4
    mean, square, bend = measured(lambda w, x: head(layer(w, x)), w, x, LABELS)
    # Output channel o is of group o // (out // groups), whose inputs begin at group * own.
    group = np.arange(out) // (out // groups)
    reads = group[None, :] * own + np.arange(own)[:, None]
    for found, power in ((mean, x), (square, x**2)):
        expected = np.asarray(power.mean((0, 1)))[reads]
        assert_near(found, np.broadcast_to(expected, w.shape), jnp.float64)
    expected = curvature_at(head, layer(w, x), LABELS).sum(1).mean(0)
    assert_near(bend, np.broadcast_to(expected, w.shape), jnp.float64, 1000)


def test_recurrent_kernels_have_moments_over_time_steps(x64):
    """By hand: the states that each kernel reads, and the curvature in each sum it adds to."""
    problem = scan_rnn(jnp.float64)
    (of_inputs, of_states, readout), (x, _) = problem.params, problem.batch
    labels = LABELS % 2
    steps = x.shape[1]

    def run(shifts, x):
        h, states = jnp.zeros((x.shape[0], 3)), []
        for t in range(steps):
            states.append(h)
            h = jnp.tanh(x[:, t] @ of_inputs + h @ of_states + shifts[:, t])
        return h @ readout, jnp.stack(states, axis=1)

    zeros = jnp.zeros((N, steps, 3))
    states = run(zeros, x)[1]
    one = lambda shift, v: run(shift[None], v[None])[0][0]
    jacobian = jax.vmap(jax.jacobian(one))(zeros, x)
    loss = lambda y, t: softmax_loss(y[None], t[None])[0]
    hessian = jax.vmap(jax.hessian(loss))(run(zeros, x)[0], labels)
    bend = jnp.einsum("nkto,nkl,nlto->o", jacobian, hessian, jacobian) / N
    found = jp.curvature.layer_moments(problem.apply, softmax_loss)(problem.params, (x, labels))
    for i, read in enumerate((x, states)):
        whole = lambda v: np.broadcast_to(np.asarray(v)[:, None], problem.params[i].shape)  # noqa: B023
        assert_near(found.input_mean[i], whole(read.mean((0, 1))), jnp.float64)
        assert_near(found.input_second_moment[i], whole((read**2).mean((0, 1))), jnp.float64)
        expected = np.broadcast_to(bend, problem.params[i].shape)
        assert_near(found.output_curvature[i], expected, jnp.float64, 1000)


def test_layers_stacked_for_a_scan_have_the_moments_of_the_same_layers_apart(x64):
    stacked, head, x = drawn(3, 4, 4) / 2, drawn(4, 3), drawn(N, 4)
    layer = lambda h, w: (jnp.tanh(h @ w), None)
    scanned = lambda p, x: lax.scan(layer, x, p[0])[0] @ p[1]

    def apart(p, x):
        for w in p[:-1]:
            x, _ = layer(x, w)
        return x @ p[-1]

    together = jp.curvature.layer_moments(scanned, softmax_loss)((stacked, head), (x, LABELS))
    each = jp.curvature.layer_moments(apart, softmax_loss)((*stacked, head), (x, LABELS))
    for one, many in zip(together, each, strict=True):
        assert_near(one[0], np.stack(many[:-1]), jnp.float64, 1000)
        assert_near(one[1], many[-1], jnp.float64, 1000)


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


SHARED = {  # (w, batch): the leaf is no weight of one layer, or of several
    "looked up": (lambda w, x: jnp.tanh(w[x.astype(int)]), (4, 3), (N,)),
    "scaled": (lambda w, x: x @ (2 * w), (3, 4), (N, 3)),
    "broadcast": (lambda w, x: x @ jnp.broadcast_to(w[:, None], (3, 4)), (3,), (N, 3)),
    "joined": (lambda w, x: x @ jnp.concatenate([w, w], axis=1), (3, 4), (N, 3)),
    "inside a branch": (
        lambda w, x: lax.cond(jnp.sum(w) > 0, lambda: x @ w, lambda: 2 * x @ w), (3, 4), (N, 3)
    ),
    "sliced into two layers": (
        lambda w, x: jnp.tanh(x @ w[:, :4]) @ w[:, 4:].reshape(4, 3), (3, 8), (N, 3)
    ),
    "centred over the batch": (lambda w, x: (x - jnp.mean(x, 0)) @ w, (3, 4), (N, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARED)
def test_weights_out_of_sight_are_nan(name):
    apply, weight, inputs = SHARED[name]
    x = jnp.arange(np.prod(inputs, dtype=float)).reshape(inputs) / 4
    targets = jnp.ones(jax.eval_shape(apply, jnp.ones(weight), x).shape)
    assert nan_leaves({"w": jnp.ones(weight)}, (x, targets), apply_to(apply), squared_loss) == {"w"}


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
