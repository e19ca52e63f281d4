"""A coupling comes back from text as it was, and takes a model only if it is the same."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.coupling import couple, from_json, gated, ones, shrunk_apply, to_json, with_model
from jaxprune.structure import shrink, shrink_units
from tests.structure.net_zoo import NETS

SOME = ["bfloat16_mlp", "densenet_bc", "glu_interleaved", "lstm_fused", "mlp_list", "nnx_cnn",
        "scan_over_layers", "vit"]  # fmt: skip


def same(one, two):
    assert one.dtype == two.dtype
    np.testing.assert_array_equal(one, two)


def assert_equal(one, two):
    """Every field but the model; arrays with their types."""
    plain = ("names", "shapes", "itemsizes", "pinned", "unknown", "units")
    for field in plain:
        assert getattr(one, field) == getattr(two, field)
    jax.tree.map(same, one.labels, two.labels)
    assert list(one.groups) == list(two.groups)
    for name, group in one.groups.items():
        other = two.groups[name]
        assert (group.name, group.inexact) == (other.name, other.inexact) == (name, other.inexact)
        same(group.ids, other.ids)
        for mine, theirs in zip(group.members, other.members, strict=True):
            assert mine[:2] == theirs[:2]
            same(mine.positions, theirs.positions)
    for mine, theirs in zip(one.products, two.products, strict=True):
        assert (mine.flops, mine.size) == (theirs.flops, theirs.size)
        jax.tree.map(same, (mine.axes, mine.outputs), (theirs.axes, theirs.outputs))
    assert str(one) == str(two)


def halved(coupling):
    return {name: np.arange(group.units) % 2 == 0 for name, group in coupling.groups.items()}


@pytest.mark.every(3)
@pytest.mark.parametrize("name", SOME)
def test_it_comes_back_as_it_was_and_shrinks_as_it_did(name):
    net = NETS[name]()
    coupling = couple(net.apply, net.variables, *net.inputs)
    loaded = from_json(to_json(coupling))
    assert loaded.source is None
    assert_equal(loaded, coupling)
    assert to_json(loaded) == to_json(coupling)
    kept = halved(coupling)
    mask = loaded.mask(kept, net.variables)
    small = shrink(net.variables, mask, loaded)
    jax.tree.map(np.testing.assert_array_equal, small, shrink(net.variables, mask, coupling))
    for what in ("parameters", "bytes", "flops", "activations"):
        assert getattr(loaded, what)(kept) == getattr(coupling, what)(kept)


@pytest.mark.parametrize("name", ["glu_interleaved", "mlp_list"])
def test_with_its_model_it_runs(name):
    net = NETS[name]()
    coupling = couple(net.apply, net.variables, *net.inputs)
    kept, loaded = halved(coupling), from_json(to_json(coupling))
    again = with_model(loaded, net.apply, net.variables, *net.inputs)
    assert_equal(again, coupling)
    small = shrink_units(net.variables, kept, again)
    found = shrunk_apply(again, kept)(small, *net.inputs)
    np.testing.assert_array_equal(found, shrunk_apply(coupling, kept)(small, *net.inputs))


def test_units_that_are_not_exact_stay_removable():
    apply = lambda w, x: jax.nn.softmax(x @ w[0]) @ w[1]
    w, x = [jnp.ones((3, 4)), jnp.ones((4, 2))], jnp.ones((1, 3))
    coupling = couple(apply, w, x, inexact="allow")
    assert [group.inexact != "" for group in coupling.groups.values()] == [True]
    loaded = from_json(to_json(coupling))
    assert_equal(loaded, coupling)
    assert_equal(with_model(loaded, apply, w, x), coupling)
    plain = from_json(to_json(couple(apply, w, x)))
    assert not with_model(plain, apply, w, x).groups


def test_costs_are_those_of_the_inputs_that_the_model_is_given_with():
    apply = lambda w, x: jnp.tanh(x @ w[0]) @ w[1]
    w = [jnp.ones((3, 4)), jnp.ones((4, 2))]
    loaded = from_json(to_json(couple(apply, w, jnp.ones((1, 3)))))
    shapes = jax.eval_shape(lambda: (w, jnp.ones((6, 3))))
    assert with_model(loaded, apply, *shapes).flops() == 6 * loaded.flops() > 0


def test_without_a_model_it_says_how_to_give_it_one():
    w, x = [jnp.ones((3, 4)), jnp.ones((4, 2))], jnp.ones((1, 3))
    loaded = from_json(to_json(couple(lambda w, x: jnp.tanh(x @ w[0]) @ w[1], w, x)))
    for function in (lambda: shrunk_apply(loaded, {}), lambda: gated(loaded, w)(ones(loaded), x)):
        with pytest.raises(ValueError, match=r"`with_model\(coupling, apply, variables, \*inputs"):
            function()


def test_another_model_is_refused_by_the_first_leaf_that_differs():
    w, x = {k: jnp.ones((4, 4)) for k in "abc"}, jnp.ones((1, 4))
    plain = lambda w, x: jnp.tanh(jnp.tanh(x @ w["a"]) @ w["b"]) @ w["c"]
    added = lambda w, x: (jnp.tanh(x @ w["a"]) + jnp.tanh(x @ w["b"])) @ w["c"]
    loaded = from_json(to_json(couple(plain, w, x)))
    with pytest.raises(ValueError, match="axis 0 of the leaf 'b' the slice 0 belongs to no unit"):
        with_model(loaded, added, w, x)
    with pytest.raises(ValueError, match="'a' of shape \\(4, 5\\) where 'a' of shape \\(4, 4\\)"):
        with_model(loaded, plain, w | {"a": jnp.ones((4, 5)), "b": jnp.ones((5, 4))}, x)


def test_damaged_text_is_an_error_that_says_what_it_is():
    text = to_json(couple(lambda w, x: x @ w, jnp.ones((3, 4)), jnp.ones((1, 3))))
    with pytest.raises(ValueError, match="no coupling that `to_json` wrote, or only a part"):
        from_json(text[:-9])
    for other in ("[1]", "{}", text.replace("coupling 1", "coupling 7")):
        with pytest.raises(ValueError, match="no coupling of the format 'jaxprune coupling 1'"):
            from_json(other)
    for field in ("names", "labels", "products"):
        fields = json.loads(text)
        del fields[field]
        with pytest.raises(ValueError, match=f"damaged .*KeyError '{field}'"):
            from_json(json.dumps(fields))
    fields = json.loads(text) | {"shapes": [[3, 5]]}
    with pytest.raises(ValueError, match=r"damaged .*labels and shapes do not fit"):
        from_json(json.dumps(fields))


def test_text_of_wide_layers_is_short():
    shape = lambda *size: jax.ShapeDtypeStruct(size, jnp.float32)
    apply = lambda w, x: jnp.tanh(x @ w[0]) @ w[1]
    coupling = couple(apply, [shape(4096, 16384), shape(16384, 4096)], shape(1, 4096))
    assert len(to_json(coupling)) < 2000
