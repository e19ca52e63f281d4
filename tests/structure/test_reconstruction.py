"""Reconstruction and recalibration: least squares and pooled moments, against NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune import trees
from jaxprune.structure.recalibration import recalibrate_batch_norm
from jaxprune.structure.reconstruction import reconstruct
from jaxprune.structure.shrinking import shrink_units
from tests.near import assert_near, assert_trees_equal
from tests.structure.net_zoo import NETS
from tests.structure.test_zoo_laws import subset

KEPT = np.array([True, False, True, True, False, True])


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def redundant(weights, axis=-1):
    """Units 1 and 4 are linear combinations of those that are kept."""
    mix = np.eye(6)
    mix[:, 1], mix[:, 4] = [0.5, 0, -1, 2, 0, 0], [0, 0, 0.3, 0, 0, -2]
    return jnp.moveaxis(jnp.moveaxis(jnp.asarray(weights), axis, -1) @ mix, -1, axis)


def convolve(x, kernel, strides=(1, 1), padding="SAME", axes=("NHWC", "HWIO", "NHWC"), gaps=None):
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=gaps, dimension_numbers=axes
    )


def linear(w, x):
    return x @ w["in"] @ w["out"]


def on_the_left(w, x):
    return (w["out"].T @ (w["in"].T @ x.T)).T


def two_axes(w, x):  # heads and their widths are both contracted
    return jnp.einsum("nhd,hdo->no", jnp.einsum("ni,ihd->nhd", x, w["in"]), w["out"])


def batched(w, x):  # a product for each of two experts
    return jnp.einsum("enh,eho->eno", jnp.einsum("eni,ih->enh", x, w["in"]), w["out"])


def flattened(w, x):
    return convolve(x, w["in"]).reshape(len(x), -1) @ w["out"]


def convolved(w, x):
    return convolve(convolve(x, w["in"]), w["out"], (2, 1), ((1, 0), (2, 1)), gaps=(1, 2))


def channels_first(w, x):
    first = convolve(x, w["in"], axes=("NCHW", "HWIO", "NCHW"))
    return convolve(first, w["out"], axes=("NCHW", "OIWH", "NCHW"))


LINEAR = {
    "linear": (linear, (5, 6), (6, 4), (9, 5), -1),
    "on_the_left": (on_the_left, (5, 6), (6, 4), (9, 5), -1),
    "two_axes": (two_axes, (5, 6, 2), (6, 2, 3), (30, 5), 1),
    "batched": (batched, (5, 6), (2, 6, 4), (2, 9, 5), -1),
    "flattened": (flattened, (3, 3, 2, 6), (24, 3), (40, 2, 2, 2), -1),
    "convolved": (convolved, (3, 3, 2, 6), (3, 2, 6, 4), (8, 6, 5, 2), -1),
    "channels_first": (channels_first, (3, 3, 2, 6), (4, 6, 2, 3), (8, 2, 6, 5), -1),
}


@pytest.mark.every(3)
@pytest.mark.parametrize("name", LINEAR)
def test_units_that_are_combinations_of_kept_ones_are_made_up_for_exactly(name, x64):
    apply, into, out, inputs, axis = LINEAR[name]
    w = {"in": redundant(normal(0, *into), axis), "out": normal(1, *out)}
    x = normal(2, *inputs)
    coupling = jp.couple(apply, w, x)
    kept = {next(n for n, g in coupling.groups.items() if g.units == 6): KEPT}
    found = reconstruct(w, kept, coupling, x, ridge=0)
    assert found.before["out"] > 1e-2
    assert found.after["out"] < 1e-12
    assert not found.skipped
    outs = jp.shrunk_apply(coupling, kept)(shrink_units(found.variables, kept, coupling), x)
    assert_near(outs, apply(w, x), jnp.float64, 1e6)
    assert_trees_equal(found.variables["in"], w["in"])


def test_a_layer_is_solved_as_numpy_solves_it(x64):
    def apply(w, x):
        return jax.nn.relu(x @ w["in"] + w["b"]) @ w["out"] + w["c"]

    w = {"in": normal(0, 5, 6), "b": normal(1, 6), "out": normal(2, 6, 4), "c": normal(3, 4)}
    x = normal(4, 50, 5)
    coupling = jp.couple(apply, w, x)
    hidden = np.asarray(jax.nn.relu(x @ w["in"] + w["b"]))
    kept, out = hidden[:, KEPT], np.asarray(w["out"])
    for ridge in (0.0, 0.1):
        more = np.sqrt(ridge * np.mean((kept**2).sum(0))) * np.eye(4)
        rows = np.concatenate([kept, more])
        target = np.concatenate([hidden @ out, more @ out[KEPT]])
        best = np.linalg.lstsq(rows, target, rcond=None)[0]
        found = reconstruct(w, {"in": KEPT}, coupling, x, ridge=ridge)
        np.testing.assert_allclose(found.variables["out"][KEPT], best, rtol=1e-9, atol=1e-12)
        assert_trees_equal(found.variables["out"][~KEPT], w["out"][~KEPT])
        error = ((kept @ best - hidden @ out) ** 2).sum() / ((hidden @ out) ** 2).sum()
        np.testing.assert_allclose(found.after["out"], error, rtol=1e-9)


def test_later_layers_see_the_pruned_model_and_aim_at_the_dense_one(x64):
    def apply(w, x):
        for layer in w[:-1]:
            x = jnp.tanh(x @ layer)
        return x @ w[-1]

    w = [normal(0, 5, 6), normal(1, 6, 6), normal(2, 6, 3)]
    x = normal(3, 60, 5)
    coupling = jp.couple(apply, w, x)
    kept = {"0": KEPT, "1": KEPT[::-1]}
    found = reconstruct(w, kept, coupling, x, ridge=0)
    first = np.tanh(np.asarray(x @ w[0]))[:, KEPT]
    second = np.tanh(first @ np.asarray(found.variables[1])[KEPT])[:, KEPT[::-1]]
    dense = np.tanh(np.tanh(np.asarray(x @ w[0])) @ np.asarray(w[1])) @ np.asarray(w[2])
    best = np.linalg.lstsq(second, dense, rcond=None)[0]
    np.testing.assert_allclose(found.variables[2][KEPT[::-1]], best, rtol=1e-8)
    outs = jp.shrunk_apply(coupling, kept)(shrink_units(found.variables, kept, coupling), x)
    error = ((np.asarray(outs) - dense) ** 2).sum() / (dense**2).sum()
    np.testing.assert_allclose(found.after["2"], error, rtol=1e-8)


ZOO = ("crelu", "einsum_attention", "lenet5", "siamese_conv", "text_cnn")


@pytest.mark.every(5)
@pytest.mark.parametrize("name", ZOO)
def test_the_error_is_never_above_that_of_plain_removal(name):
    net = NETS[name]()
    coupling = jp.couple(net.apply, net.variables, *net.inputs)
    kept = subset(coupling, seed=5)
    for ridge in (0.0, 1e-4, 10.0):
        found = reconstruct(net.variables, kept, coupling, *net.inputs, ridge=ridge)
        assert found.before
        assert found.before.keys() == found.after.keys()
        assert all(found.after[leaf] <= found.before[leaf] for leaf in found.before)
    assert max(found.before.values()) > 1e-3
    structure: object = jax.tree.structure(net.variables)
    assert structure == jax.tree.structure(found.variables)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), net.variables, found.variables)
    assert {n for n, equal in trees.named_leaves(same) if not equal} <= set(found.before)


def test_a_shared_weight_is_solved_for_all_its_uses_at_once(x64):
    def apply(w, x, y):
        return jnp.tanh(x @ w["in"]) @ w["out"] - jnp.tanh(y @ w["in"]) @ w["out"]

    w = {"in": normal(0, 5, 6), "out": normal(1, 6, 3)}
    x, y = normal(2, 20, 5), normal(3, 30, 5)[:20]
    coupling = jp.couple(apply, w, x, y)
    found = reconstruct(w, {"in": KEPT}, coupling, x, y, ridge=0)
    hidden = np.tanh(np.concatenate([x, y]) @ np.asarray(w["in"]))
    best = np.linalg.lstsq(hidden[:, KEPT], hidden @ np.asarray(w["out"]), rcond=None)[0]
    np.testing.assert_allclose(found.variables["out"][KEPT], best, rtol=1e-8)


def test_what_is_read_in_a_loop_is_skipped_and_listed():
    net = NETS["lstm"]()
    coupling = jp.couple(net.apply, net.variables, *net.inputs)
    kept = subset(coupling, seed=0)
    found = reconstruct(net.variables, kept, coupling, *net.inputs)
    assert found.before  # the head
    assert found.skipped
    assert all("inside a loop" in why for why in found.skipped.values())


def test_if_nothing_can_be_reconstructed_the_groups_are_named():
    net = NETS["tied_autoencoder"]()
    coupling = jp.couple(net.apply, net.variables, *net.inputs)
    with pytest.raises(ValueError, match=r"'inner'.*in another way at nets_mlp\.py"):
        reconstruct(net.variables, subset(coupling, seed=0), coupling, *net.inputs)


def test_nothing_removed_changes_nothing_and_bad_input_is_named():
    w, x = {"in": jnp.ones((5, 6)), "out": jnp.ones((6, 4))}, jnp.ones((2, 5))
    coupling = jp.couple(linear, w, x)
    found = reconstruct(w, {"in": np.ones(6, bool)}, coupling, x)
    assert_trees_equal(found.variables, w)
    assert not found.before
    with pytest.raises(ValueError, match="`ridge` is a number >= 0, got -1"):
        reconstruct(w, {"in": KEPT}, coupling, x, ridge=-1)
    with pytest.raises(ValueError, match="No group"):
        reconstruct(w, {"nowhere": KEPT}, coupling, x)


class Normed(nn.Module):
    """Two BatchNorms that do not follow one another; momentum differs."""

    @nn.compact
    def __call__(self, x, train=False):
        running = {"use_running_average": not train}
        a = nn.BatchNorm(momentum=0.9, use_fast_variance=False, **running)(nn.Conv(4, (3, 3))(x))
        b = nn.BatchNorm(momentum=0.997, use_fast_variance=False, **running)(nn.Conv(3, (1, 1))(x))
        return jnp.concatenate([nn.relu(a), nn.relu(b)], -1)


def trained(v, x):
    return Normed().apply(v, x, train=True, mutable=["batch_stats"])


def test_statistics_are_those_of_all_data_at_once():
    batches = [normal(i, n, 4, 4, 2).astype(jnp.float32) * (i + 1) for i, n in enumerate((6, 3, 9))]
    variables = Normed().init(jax.random.key(0), batches[0])
    found = recalibrate_batch_norm(jax.jit(trained), variables, batches)
    data = jnp.concatenate(batches)
    for number, conv in enumerate(("Conv_0", "Conv_1")):
        size = (3, 3) if number == 0 else (1, 1)
        layer = nn.Conv(variables["params"][conv]["bias"].size, size)
        z = np.asarray(layer.apply({"params": variables["params"][conv]}, data), np.float64)
        stats = found["batch_stats"][f"BatchNorm_{number}"]
        assert_near(stats["mean"], z.mean((0, 1, 2)), jnp.float32)
        assert_near(stats["var"], z.var((0, 1, 2)), jnp.float32)
    assert_trees_equal(found["params"], variables["params"])
    # No order, and nothing left of the old statistics.
    worn = variables | {"batch_stats": jax.tree.map(lambda s: s + 7, variables["batch_stats"])}
    again = recalibrate_batch_norm(trained, worn, reversed(batches))
    jax.tree.map(lambda a, b: assert_near(a, b, jnp.float32), again, found)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99])
def test_a_momentum_is_measured_or_given(momentum, x64):
    def apply_train(v, x):
        now = {"mean": x.mean(0), "var": x.var(0), "seen": v["seen"] + 1}
        moved = {k: momentum * v[k] + (1 - momentum) * now[k] for k in ("mean", "var")}
        return x, {"bn": now | moved}

    outer = lambda v, x: apply_train(v["bn"], x)
    old = {"bn": {"mean": jnp.ones(3), "var": jnp.ones(3), "seen": jnp.int32(5)}}
    batches = [normal(0, 4, 3), normal(1, 6, 3) + 2]
    for given in (None, momentum):
        new = recalibrate_batch_norm(outer, old, batches, momentum=given)["bn"]
        assert_near(new["mean"], np.concatenate(batches).mean(0), jnp.float64)
        assert_near(new["var"], np.concatenate(batches).var(0), jnp.float64)
        assert new["seen"] == 5


def test_statistics_that_cannot_be_placed_are_named():
    v, x = {"norm": {"mean": jnp.ones(3), "var": jnp.ones(3)}}, jnp.ones((2, 3))
    same = lambda v, x: (x, v)
    with pytest.raises(ValueError, match=r"moves by 1\.0 when its old value moves by 1"):
        recalibrate_batch_norm(same, v, [x])
    with pytest.raises(ValueError, match="no batches"):
        recalibrate_batch_norm(same, v, [])
    with pytest.raises(ValueError, match="no 'norm/var' beside it"):
        recalibrate_batch_norm(lambda v, x: (x, {"norm": {"mean": x[0]}}), v, [x])
    with pytest.raises(ValueError, match="no statistics called 'mean'"):
        recalibrate_batch_norm(lambda v, x: (x, {"average": x[0]}), v, [x])
    with pytest.raises(ValueError, match="belongs to no one variable"):
        recalibrate_batch_norm(lambda v, x: (x, {"other": v["norm"]}), v, [x])
    with pytest.raises(ValueError, match=r"in \[0, 1\); got 1"):
        recalibrate_batch_norm(same, v, [x], momentum=1)
