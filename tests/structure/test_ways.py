"""Which slices make a unit and which read it, and the units of which that cannot be known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.structure.merging import merge_pairs, merge_similar
from jaxprune.structure.ways import ways_in_and_out
from tests.near import assert_trees_equal
from tests.structure.net_zoo import NETS


def named(members):
    return sorted((m.leaf, m.axis) for m in members)


def test_a_shared_square_layer_makes_units_and_reads_them():
    def apply(w, x):
        x = jnp.tanh(x @ w["in"])
        for _ in range(2):
            x = jnp.tanh(x @ w["square"] + w["b"])
        return x @ w["out"]

    w = {"in": jnp.ones((3, 5)), "square": jnp.ones((5, 5)), "b": jnp.ones(5)}
    w["out"] = jnp.ones((5, 2))
    (ways,) = ways_in_and_out(jp.couple(apply, w, jnp.ones((1, 3)))).values()
    assert named(ways.ins) == [("b", 0), ("in", 1), ("square", 1)]
    assert named(ways.outs) == [("out", 0), ("square", 0)]
    assert not ways.why


def test_ways_out_are_followed_through_moves_and_casts():
    def apply(w, x):
        x = jax.nn.relu(x @ w["in"]).reshape(len(x), 4, 5)
        kernel = w["out"].astype(jnp.float32).reshape(3, 4, 5).transpose(1, 2, 0)
        return jnp.einsum("nhd,hdo->no", x, kernel)

    w = {"in": jnp.ones((3, 20)), "out": jnp.ones((3, 20), jnp.bfloat16)}
    (ways,) = ways_in_and_out(jp.couple(apply, w, jnp.ones((2, 3)))).values()
    assert (named(ways.ins), named(ways.outs), ways.why) == ([("in", 1)], [("out", 1)], "")
    assert ways.outs[0].positions.size == 20


@pytest.mark.parametrize("name", ["activations", "conv_autoencoder", "resnet_option_a", "vit"])
def test_every_slice_is_a_way_in_or_a_way_out(name):
    net = NETS[name]()
    coupling = jp.couple(net.apply, net.variables, *net.inputs)
    for group, ways in ways_in_and_out(coupling).items():
        members = coupling.groups[group].members
        assert sorted(named(ways.ins) + named(ways.outs)) == named(members)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("lstm_plain_cell", "inside a loop"),
        ("tied_autoencoder", "used for more"),
        ("siamese_cosine", "no parameter as it stands|without a weight"),
        ("sums_of_relu_and_softplus", "without a weight"),
    ],
)
def test_units_whose_outgoing_weights_are_unknown_are_refused_by_name(name, why):
    net = NETS[name]()
    coupling = jp.couple(net.apply, net.variables, *net.inputs)
    bad = [n for n, way in ways_in_and_out(coupling).items() if way.why]
    group = coupling.group(bad[-1])
    keep = np.arange(group.units) > 0
    with pytest.raises(ValueError, match=why) as raised:
        merge_similar(net.variables, {group.name: keep}, coupling)
    assert repr(group.name) in str(raised.value)
    with pytest.raises(ValueError, match="outgoing weights"):
        merge_pairs(net.variables, coupling, {group.name: 1})
    whole = merge_similar(net.variables, {group.name: np.ones(group.units, bool)}, coupling)
    assert_trees_equal(whole.variables, net.variables)


def test_units_that_multiply_each_other_are_not_merged_by_scale():
    rng = np.random.default_rng(0)
    first, second = (np.tile(rng.normal(size=(5, 4)), 2) * ([1] * 4 + [2] * 4) for _ in range(2))
    gated = lambda w, x: ((x @ w[0]) * jax.nn.relu(x @ w[1])) @ w[2]
    weights, x = (
        [jnp.asarray(a) for a in (first, second, rng.normal(size=(8, 2)))],
        jnp.ones((1, 5)),
    )
    coupling = jp.couple(gated, weights, x)
    kept = {"0": np.arange(8) < 4}
    with pytest.raises(ValueError, match=r"'0' by scale.*multiplied .* test_ways.py.*merge_pairs"):
        merge_similar(weights, kept, coupling)
    merge_pairs(weights, coupling, {"0": 4})
    added = lambda w, x: jax.nn.silu((x @ w[0]) + (x @ w[1])) @ w[2]  # a product with itself
    merge_similar(weights, kept, jp.couple(added, weights, x))
