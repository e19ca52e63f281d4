"""Merging: exact where the formulas say so, and the formulas themselves, by slow loops."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune import trees
from jaxprune.structure.merging import merge_pairs, merge_similar
from jaxprune.structure.shrinking import shrink_units
from jaxprune.structure.ways import ways_in_and_out
from tests.near import assert_near, assert_trees_equal
from tests.structure.net_zoo import NETS

KEPT = np.array([True, False, True, True, False, True])
INTO = np.array([0, 2, 2, 3, 0, 5])  # unit 1 is a multiple of 2, unit 4 of 0
SCALE = np.array([1, 0.5, 1, 1, 3, 1])


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def multiples(array, axis=-1, scale=SCALE):
    """Along an axis, dropped units are multiples of the kept ones they go into."""
    moved = np.moveaxis(np.array(array), axis, 0)
    moved = moved[INTO] * scale.reshape(-1, *(1,) * (moved.ndim - 1))
    return np.moveaxis(moved, 0, axis)


def merged_outputs(apply, variables, coupling, merged, *inputs):
    small = shrink_units(merged.variables, merged.kept, coupling)
    return jp.shrunk_apply(coupling, merged.kept)(small, *inputs)


def convolve(x, kernel):
    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=axes)


def dense(w, x):
    return jax.nn.relu(x @ w["in"] + w["b"]) @ w["out"] + w["c"]


def dense_weights(seed=0):
    return {
        "in": normal(seed, 5, 6), "b": normal(seed + 1, 6),
        "out": normal(seed + 2, 6, 4), "c": normal(seed + 3, 4),
    }  # fmt: skip


def in_jax(tree):
    return jax.tree.map(jnp.asarray, tree)


def test_proportional_units_merge_exactly_through_relu(x64):
    w = dense_weights()
    w = in_jax(w | {"in": multiples(w["in"]), "b": multiples(w["b"])})
    x = jnp.asarray(normal(9, 7, 5))
    coupling = jp.couple(dense, w, x)
    merged = merge_similar(w, {"in": KEPT}, coupling, threshold=1.0)
    assert merged.into["in"].tolist() == INTO.tolist()
    np.testing.assert_allclose(merged.scales["in"], SCALE, rtol=1e-14)
    assert not merged.offsets["in"].any()
    outs = merged_outputs(dense, w, coupling, merged, x)
    assert_near(outs, dense(w, x), jnp.float64)
    assert_trees_equal(jax.tree.map(np.asarray, merged.variables["in"]), np.asarray(w["in"]))


def test_proportional_channels_merge_exactly_with_zero_padding_pooling_and_flattening(x64):
    def apply(w, x):
        x = jp.max_pool(jax.nn.leaky_relu(convolve(x, w["one"]) + w["b"]), (2, 2), (2, 2))
        x = jax.nn.relu(convolve(x, w["two"]))
        x = x.reshape(len(x), -1)  # every channel has four positions
        return x @ w["out"]

    w = {"one": multiples(normal(0, 3, 3, 2, 6)), "b": multiples(normal(1, 6)),
         "two": multiples(normal(2, 3, 3, 6, 6)), "out": normal(3, 24, 3)}  # fmt: skip
    w, x = in_jax(w), jnp.asarray(normal(4, 3, 4, 4, 2))
    coupling = jp.couple(apply, w, x)
    merged = merge_similar(w, {"one": KEPT, "two": KEPT}, coupling, threshold=1.0)
    assert merged.into["two"].tolist() == INTO.tolist()
    assert_near(merged_outputs(apply, w, coupling, merged, x), apply(w, x), jnp.float64, 1000)


def normed(w, x):
    x = (convolve(x, w["kernel"]) - w["mean"]) * jax.lax.rsqrt(w["var"] + 1e-3)
    return convolve(jax.nn.relu(x * w["scale"] + w["bias"]), w["next"])


def normed_weights(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "kernel": multiples(normal(seed, 3, 3, 2, 6)), "mean": normal(seed + 1, 6),
        "var": rng.uniform(0.5, 2, 6), "scale": rng.uniform(0.5, 2, 6),
        "bias": normal(seed + 2, 6), "next": normal(seed + 3, 3, 3, 6, 4),
    }  # fmt: skip


def slow_scale_and_offset(w):
    """S and B as section 1 of the papers has them, in loops."""
    scale, offset = np.ones(6), np.zeros(6)
    for two, one in enumerate(INTO):
        if one == two:
            continue
        filters = w["kernel"][..., two], w["kernel"][..., one]
        s = np.linalg.norm(filters[0]) / np.linalg.norm(filters[1])
        sigma = np.sqrt(w["var"] + 1e-3)
        gamma, beta, mu = w["scale"], w["bias"], w["mean"]
        scale[two] = s * (gamma[two] / gamma[one]) * (sigma[one] / sigma[two])
        offset[two] = beta[two] + (gamma[two] / sigma[two]) * (
            s * (mu[one] - sigma[one] * beta[one] / gamma[one]) - mu[two]
        )
    return scale, offset


def test_scale_and_offset_through_batch_norm_are_the_papers(x64):
    w = normed_weights()
    x = jnp.asarray(normal(9, 2, 5, 5, 2))
    coupling = jp.couple(normed, in_jax(w), x)
    merged = merge_similar(in_jax(w), {"kernel": KEPT}, coupling)
    scale, offset = slow_scale_and_offset(w)
    np.testing.assert_allclose(merged.scales["kernel"], scale, rtol=1e-12)
    np.testing.assert_allclose(merged.offsets["kernel"], np.abs(offset), rtol=1e-10)
    assert (merged.offsets["kernel"][~KEPT] > 1e-3).all()
    # A ReLU is 1-Lipschitz: the error is at most the offsets through the next kernel.
    apart = merged_outputs(normed, w, coupling, merged, x) - normed(in_jax(w), x)
    bound = np.einsum("i,hwio->o", np.abs(offset), np.abs(w["next"]))
    assert (np.abs(apart) <= bound * (1 + 1e-12)).all()
    assert np.abs(apart).max() > 1e-3


def test_channels_with_batch_norm_and_no_offset_merge_exactly(x64):
    w = normed_weights()
    _, offset = slow_scale_and_offset(w)
    w["bias"] = w["bias"] - offset
    assert np.abs(slow_scale_and_offset(w)[1]).max() < 1e-12
    x = jnp.asarray(normal(9, 2, 5, 5, 2))
    coupling = jp.couple(normed, in_jax(w), x)
    merged = merge_similar(in_jax(w), {"kernel": KEPT}, coupling, threshold=1.0)
    assert merged.offsets["kernel"].max() < 1e-12
    assert_near(merged_outputs(normed, w, coupling, merged, x), normed(in_jax(w), x), jnp.float64)


@pytest.mark.parametrize("biased", [True, False])
def test_an_offset_goes_into_the_next_bias_if_nothing_bends_on_the_way(x64, biased):
    def apply(w, x):
        x = (x @ w["kernel"] - w["mean"]) * jax.lax.rsqrt(w["var"] + 1e-3)
        x = (x * w["scale"] + w["bias"]) @ w["next"]
        return x + w["c"] if biased else x

    w = normed_weights()
    w |= {"kernel": multiples(normal(5, 3, 6)), "next": normal(6, 6, 4), "c": normal(7, 4)}
    x = jnp.asarray(normal(9, 5, 3))
    coupling = jp.couple(apply, in_jax(w), x)
    merged = merge_similar(in_jax(w), {"kernel": KEPT}, coupling, threshold=1.0)
    outs = merged_outputs(apply, w, coupling, merged, x)
    if biased:
        assert not merged.offsets["kernel"].any()
        assert_near(outs, apply(in_jax(w), x), jnp.float64)
    else:
        missing = np.abs(slow_scale_and_offset(w)[1])
        np.testing.assert_allclose(merged.offsets["kernel"], missing, rtol=1e-10)


def test_opposite_signs_of_gamma_are_not_merged_through_a_relu(x64):
    w = normed_weights()
    w["scale"] = w["scale"] * np.array([1, -1, 1, 1, -1, 1])
    coupling = jp.couple(normed, in_jax(w), jnp.zeros((1, 5, 5, 2)))
    merged = merge_similar(in_jax(w), {"kernel": KEPT}, coupling, threshold=0.9)
    assert merged.into["kernel"].tolist() == [0, -1, 2, 3, -1, 5]
    assert not merged.offsets["kernel"].any()  # what is not merged is off by nothing


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.45, 0.9])
def test_merging_is_what_a_loop_over_units_does(threshold, x64):
    w = dense_weights(seed=20)
    coupling = jp.couple(dense, in_jax(w), jnp.zeros((1, 5)))
    merged = merge_similar(in_jax(w), {"in": KEPT}, coupling, threshold=threshold)
    vectors = np.concatenate([w["in"], w["b"][None]]).T
    out, into = w["out"].copy(), np.where(KEPT, np.arange(6), -1)
    for i in np.flatnonzero(~KEPT):
        lengths = np.linalg.norm(vectors, axis=1)
        cosine = {k: vectors[i] @ vectors[k] / lengths[i] / lengths[k]
                  for k in np.flatnonzero(KEPT)}  # fmt: skip
        k = max(cosine, key=cosine.get)
        if cosine[k] >= threshold:
            out[k] += lengths[i] / lengths[k] * w["out"][i]
            into[i] = k
    assert merged.into["in"].tolist() == into.tolist()
    np.testing.assert_allclose(merged.variables["out"], out, rtol=1e-13)


def test_what_is_too_different_is_left_to_plain_removal():
    w = in_jax(dense_weights())
    coupling = jp.couple(dense, w, jnp.zeros((1, 5)))
    merged = merge_similar(w, {"in": KEPT}, coupling, threshold=1.0)
    assert_trees_equal(merged.variables, w)
    assert (merged.into["in"][~KEPT] == -1).all()
    assert not merged.scales["in"][~KEPT].any()


def test_the_units_of_a_residual_stream_are_compared_by_all_their_kernels(x64):
    def apply(w, x):
        stream = x @ w["stem"]
        for block in w["blocks"]:
            stream = jax.nn.relu(stream + jax.nn.relu(stream @ block["one"]) @ block["two"])
        return stream @ w["out"]

    block = lambda seed: {"one": normal(seed, 6, 7), "two": multiples(normal(seed + 1, 7, 6))}
    w = {"stem": multiples(normal(0, 3, 6)), "out": normal(1, 6, 2), "blocks": [block(2), block(4)]}
    w, x = in_jax(w), jnp.asarray(normal(9, 5, 3))
    coupling = jp.couple(apply, w, x)
    (name,) = [n for n, g in coupling.groups.items() if g.units == 6]
    merged = merge_similar(w, {name: KEPT}, coupling, threshold=1.0)
    assert merged.into[name].tolist() == INTO.tolist()
    assert_near(merged_outputs(apply, w, coupling, merged, x), apply(w, x), jnp.float64)
    # One kernel that disagrees is enough.
    w["blocks"][1]["two"] = jnp.asarray(normal(8, 7, 6)) * 30
    merged = merge_similar(w, {name: KEPT}, coupling, threshold=0.99)
    assert (merged.into[name][~KEPT] == -1).all()


def test_columns_of_an_embedding_merge_with_what_is_added_to_them(x64):
    def apply(w, words):
        x = w["table"][words] + w["places"]
        return jax.nn.relu(x) @ w["out"]

    w = {"table": multiples(normal(0, 9, 6)), "places": multiples(normal(1, 4, 6)),
         "out": normal(2, 6, 2)}  # fmt: skip
    w, words = in_jax(w), jnp.arange(8).reshape(2, 4)
    coupling = jp.couple(apply, w, words)
    merged = merge_similar(w, {"table": KEPT}, coupling, threshold=1.0)
    assert_near(merged_outputs(apply, w, coupling, merged, words), apply(w, words), jnp.float64)


def twins(net, coupling):
    """The variables with unit 1 of every group that has known ways out made a copy of unit 0."""
    ways = ways_in_and_out(coupling)
    leaves = {name: np.array(leaf) for name, leaf in trees.named_leaves(net.variables)}
    found = [n for n, way in ways.items() if way.outs and not way.why]
    for member in (m for n in found for m in ways[n].ins):
        moved = np.moveaxis(leaves[member.leaf], member.axis, 0)
        moved[member.positions[1]] = moved[member.positions[0]]
    structure = jax.tree.structure(net.variables)
    return jax.tree.unflatten(structure, [jnp.asarray(x) for x in leaves.values()]), found


TWINS = ("crelu", "einsum_attention", "glu", "mobilenet_v1", "siamese_conv", "text_cnn")


@pytest.mark.every(3)
@pytest.mark.parametrize("name", TWINS)
def test_twins_merge_exactly_in_any_network(name):
    net = NETS[name]()
    coupling = jp.couple(net.apply, net.variables, *net.inputs)
    variables, found = twins(net, coupling)
    assert found
    merged = merge_pairs(variables, coupling, {n: coupling.groups[n].units - 1 for n in found})
    outs = merged_outputs(net.apply, variables, coupling, merged, *net.inputs)
    dense = net.apply(variables, *net.inputs)
    for a, b in zip(jax.tree.leaves(outs), jax.tree.leaves(dense), strict=True):
        assert_near(a, b, jnp.float32, 1000)
    assert all(set(np.flatnonzero(~kept)) <= {0, 1} for kept in merged.kept.values())


def slow_pairs(incoming, outgoing, n):
    """Srinivas and Babu, in loops."""
    alive, outgoing = list(range(len(incoming))), outgoing.copy()
    while len(alive) > n:
        cost = {(i, j): np.mean(outgoing[j] ** 2) * np.sum((incoming[i] - incoming[j]) ** 2)
                for i, j in itertools.permutations(alive, 2)}  # fmt: skip
        stays, goes = min(cost, key=cost.get)
        outgoing[stays] += outgoing[goes]
        alive.remove(goes)
    return alive, outgoing


@pytest.mark.parametrize("n", [1, 4, 11, 12])
def test_pairs_are_merged_in_the_order_of_their_cost(n, x64):
    w = {"in": normal(0, 5, 12), "b": normal(1, 12), "out": normal(2, 12, 4), "c": normal(3, 4)}
    coupling = jp.couple(dense, in_jax(w), jnp.zeros((1, 5)))
    merged = merge_pairs(in_jax(w), coupling, {"in": n})
    alive, out = slow_pairs(np.concatenate([w["in"], w["b"][None]]).T, w["out"], n)
    assert np.flatnonzero(merged.kept["in"]).tolist() == alive
    np.testing.assert_allclose(merged.variables["out"][np.array(alive)], out[alive], rtol=1e-12)


def test_identical_pairs_merge_exactly_through_any_activation(x64):
    def apply(w, x):
        return jnp.tanh(x @ w["in"] + w["b"]) @ w["out"]

    w = dense_weights()
    same = np.ones(6)
    w = in_jax(w | {"in": multiples(w["in"], scale=same), "b": multiples(w["b"], scale=same)})
    x = jnp.asarray(normal(9, 7, 5))
    coupling = jp.couple(apply, w, x)
    merged = merge_pairs(w, coupling, {"in": 4})
    assert_near(merged_outputs(apply, w, coupling, merged, x), apply(w, x), jnp.float64)
    assert {frozenset((i, k)) for i, k in enumerate(merged.into["in"]) if i != k} == {
        frozenset((1, 2)), frozenset((0, 4))
    }  # fmt: skip


def test_dtypes_and_what_nobody_reads_stay():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(6, param_dtype=jnp.bfloat16)(x)
            return nn.Dense(2)(nn.relu(nn.BatchNorm(use_running_average=True)(x)))

    variables = Net().init(jax.random.key(0), jnp.ones((1, 3)))
    coupling = jp.couple(Net().apply, variables, jnp.ones((1, 3)))
    merged = merge_similar(variables, {"Dense_0": KEPT}, coupling, threshold=-1)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), variables, merged.variables)
    assert [n for n, equal in trees.named_leaves(same) if not equal] == ["params/Dense_1/kernel"]
    assert jax.tree.map(jnp.result_type, merged.variables) == jax.tree.map(
        jnp.result_type, variables
    )


def test_bad_input_is_named():
    w = in_jax(dense_weights())
    coupling = jp.couple(dense, w, jnp.zeros((1, 5)))
    with pytest.raises(ValueError, match=r"cosine in \[-1, 1\], got 2"):
        merge_similar(w, {"in": KEPT}, coupling, threshold=2)
    with pytest.raises(ValueError, match="No group"):
        merge_similar(w, {"nowhere": KEPT}, coupling)
    with pytest.raises(ValueError, match="was coupled"):
        merge_similar(w | {"in": w["in"][:2]}, {"in": KEPT}, coupling)
    with pytest.raises(ValueError, match=r"1 \.\. 6, got 7"):
        merge_pairs(w, coupling, {"in": 7})
    with pytest.raises(TypeError, match=r"an integer; got 0\.5"):
        merge_pairs(w, coupling, {"in": 0.5})
    net = NETS["mobilenet_v1"]()
    coupling = jp.couple(net.apply, net.variables, *net.inputs)
    keep = {n: np.arange(g.units) > 0 for n, g in coupling.groups.items()}
    with pytest.raises(ValueError, match="go through"):
        merge_similar(net.variables, keep, coupling)
