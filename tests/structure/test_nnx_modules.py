"""An NNX module shrunk in place computes what the masked one did, or is left as it was."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxprune import trees
from jaxprune.coupling import couple, from_json, shrunk_apply, to_json
from jaxprune.nnx_modules import shrink_module
from jaxprune.structure import shrink
from tests.structure import nets_nnx
from tests.structure.nets_kit import floats, tokens
from tests.structure.nnx_cases import (
    Cells,
    Chooses,
    Dense,
    Kernels,
    Others,
    OwnHeads,
    OwnLayer,
    Queries,
    Returns,
    Scaled,
    Stale,
    Starts,
    built,
)

IMAGE, SERIES, WORDS = floats(2, 8, 8, 3), floats(2, 5, 3), tokens(9, 2, 5)
# A group is left out if the units it would lose make the module's code compute something else.
MODELS: dict[str, tuple[Any, Any, Any]] = {
    "mlp": (nets_nnx.MLP, floats(4, 6), ()),
    "cnn": (nets_nnx.CNN, IMAGE, ()),
    "shared": (nets_nnx.Shared, floats(3, 6), ()),
    "transformer": (nets_nnx.Transformer, WORDS, (4, 6)),  # heads of 4 and 6 stay as wide
    "queries": (Queries, SERIES, (4,)),
    "kernels": (Kernels, floats(2, 6, 6, 3), ()),
    "cells": (Cells, floats(2, 4, 5), ()),
    "others": (Others, WORDS, ()),
}


def some(coupling, share=0.6, whole=()):
    """Random units to keep, of every group that is not to stay whole."""
    random = np.random.default_rng(3)
    return {
        name: random.permutation(group.units) < max(1, round(share * group.units))
        for name, group in coupling.groups.items()
        if group.units not in whole
    }


def masked(coupling, mask, state, *inputs):
    return jax.jit(coupling.source.apply)(trees.apply_mask(state, mask), *inputs)


def called(model, *inputs):
    """What it computes, under nnx.jit; op by op XLA compiles each one."""
    return nnx.jit(lambda model, *inputs: model(*inputs))(model, *inputs)


def everything(model):
    """All that a module holds, to see that nothing was changed."""
    graphdef, state = nnx.split(model)
    return graphdef, [(n, leaf) for n, leaf in trees.named_leaves(state)]


def assert_unchanged(model, before):
    graphdef, leaves = everything(model)
    assert graphdef == before[0]
    for (name, leaf), (old, was) in zip(leaves, before[1], strict=True):
        assert name == old
        assert leaf is was


@pytest.mark.every(3)
@pytest.mark.parametrize("name", MODELS)
def test_the_shrunk_module_is_the_masked_one(name):
    make, x, whole = MODELS[name]
    model, coupling = built(make, x)
    kept, state = some(coupling, whole=whole), nnx.state(model)
    mask = coupling.mask(kept, state)
    expected, small = masked(coupling, mask, state, x), shrink(state, mask, coupling)
    assert kept
    assert shrink_module(model, mask, coupling) is None
    np.testing.assert_allclose(called(model, x), expected, rtol=1e-5, atol=1e-5)
    assert list(map(np.shape, jax.tree.leaves(nnx.state(model)))) == list(
        map(np.shape, jax.tree.leaves(small))
    )


def test_widths_are_consistent_it_can_be_coupled_and_shrunk_again():
    make, x, whole = MODELS["queries"]
    model, coupling = built(make, x)
    shrink_module(model, coupling.mask(some(coupling, 0.8, whole), nnx.state(model)), coupling)
    graphdef, state = nnx.split(model)
    coupling = couple(lambda s, x: nnx.merge(graphdef, s)(x), state, x)
    mask = coupling.mask(some(coupling, 0.5, whole), state)
    expected = masked(coupling, mask, state, x)
    shrink_module(model, mask, coupling)
    np.testing.assert_allclose(called(model, x), expected, rtol=1e-5, atol=1e-5)


def test_static_widths_are_those_of_a_module_made_small():
    make, x, _ = MODELS["kernels"]
    model, coupling = built(make, x)
    kept = some(coupling)
    shrink_module(model, coupling.mask(kept, nnx.state(model)), coupling)
    groups = [int(keep.sum()) for keep in kept.values()]
    one, up, mix, down = groups
    assert (one, up, mix, down) == (2, 4, 4, 4)
    conv, each = model.grouped, model.each
    assert (conv.in_features, conv.out_features, conv.feature_group_count) == (4, 6, 2)
    assert conv.kernel_shape == conv.kernel.shape == (3, 3, 2, 6)
    assert (each.in_features, each.out_features, each.feature_group_count) == (4, 8, 4)
    assert (model.norm.num_groups, model.norm.group_size) == (2, 3)
    assert model.instances.num_features == down
    assert (model.down.in_features, model.down.out_features) == (mix, down)


def test_it_goes_on_training_with_its_optimizer_under_nnx_jit():
    model, coupling = built(nets_nnx.MLP, floats(4, 6))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        loss = lambda model: jnp.square(model(x)).mean()
        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    step(model, optimizer, floats(4, 6))
    before = nnx.state(optimizer)
    mask = coupling.mask(some(coupling), nnx.state(model))
    (state,) = shrink_module(model, mask, coupling, before)
    expected = dict(trees.named_leaves(before))["opt_state/0/mu/layers/2/kernel"]
    keep = np.asarray(dict(trees.named_leaves(mask))["layers/2/kernel"])[:, 0]
    found = dict(trees.named_leaves(state))["opt_state/0/mu/layers/2/kernel"]
    np.testing.assert_array_equal(found, np.asarray(expected)[keep])
    nnx.update(optimizer, state)
    losses = [float(step(model, optimizer, floats(4, 6))) for _ in range(4)]
    assert losses[-1] < losses[0]


def test_constants_of_dead_units_are_moved_on():
    model, coupling = built(nets_nnx.MLP, floats(4, 6))
    state = nnx.state(model)
    mask = trees.full_mask(state)
    mask["layers"][0]["kernel"].set_value(jnp.ones((6, 9), bool).at[:, :4].set(False))
    expected = masked(coupling, mask, state, floats(4, 6))
    shrink_module(model, mask, coupling)
    assert model.layers[0].out_features == 5
    np.testing.assert_allclose(model(floats(4, 6)), expected, rtol=1e-5, atol=1e-5)


def test_it_is_split_and_merged_and_differentiated_like_any_module():
    x = floats(4, 6)
    model, coupling = built(nets_nnx.MLP, x)
    mask = coupling.mask(some(coupling), nnx.state(model))
    shrink_module(model, mask, coupling)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    found = jax.jit(lambda p, x: nnx.merge(graphdef, p, rest)(x))(params, x)
    np.testing.assert_allclose(found, model(x), rtol=1e-5, atol=1e-5)
    gradient = nnx.grad(lambda model: jnp.square(model(x)).sum())(model)
    trees.check_like(nnx.state(model, nnx.Param), gradient, "gradient")
    assert all(np.abs(leaf).sum() > 0 for leaf in jax.tree.leaves(gradient))


# What is refused.


REFUSED = {
    "query_width": (Queries, SERIES, r"attend \(MultiHeadAttention\) divides .* from 4 to"),
    "written_width": (Starts, SERIES, "its code fails: .*width written in it"),
    "own_layer": (OwnLayer, floats(4, 3), r"blocks\.0 \(Dense\) keeps `sizes` = \(3, 8\)"),
    "own_heads": (OwnHeads, floats(2, 3, 6), r"`heads` = 4 of the model \(OwnHeads\)"),
    "scaled": (Scaled, floats(4, 3), "computes something else: outputs of up to"),
    "chooses": (Chooses, floats(4, 3), r"something else: \d of 4 outputs of dtype int32 differ"),
    "stale": (Stale, floats(4, 3), "one .*keeps `out_features` = 7 where its variables say 8"),
}


@pytest.mark.every(3)
@pytest.mark.parametrize("name", REFUSED)
def test_what_would_compute_something_else_is_refused_and_nothing_is_changed(name):
    make, x, text = REFUSED[name]
    model, coupling = built(make, x)
    before, kept, state = everything(model), some(coupling), nnx.state(model)
    mask = coupling.mask(kept, state)
    with pytest.raises(ValueError, match=f"(?s)was not changed.*{text}.*shrunk_apply"):
        shrink_module(model, mask, coupling)
    assert_unchanged(model, before)
    expected = masked(coupling, mask, state, x)
    found = shrunk_apply(coupling, kept)(shrink(state, mask, coupling), x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_values_narrower_than_queries_are_refused_by_name():
    model, coupling = built(nets_nnx.Transformer, WORDS)
    mask = coupling.mask({"attend/1/value": np.arange(6) < 4}, nnx.state(model))
    with pytest.raises(ValueError, match=r"attend\.1 .*they would be 4 wide"):
        shrink_module(model, mask, coupling)


def test_a_module_of_ones_own_is_told_its_widths():
    model, coupling = built(OwnLayer, floats(4, 3))
    mask = coupling.mask({"blocks/0": np.arange(8) < 5}, nnx.state(model))
    expected, seen = masked(coupling, mask, nnx.state(model), floats(4, 3)), []

    def widths(module, old):
        seen.append(old)
        return {"sizes": module.kernel.shape}

    before = everything(model)
    with pytest.raises(ValueError, match="has no `width` to set"):
        shrink_module(model, mask, coupling, widths={Dense: lambda module, old: {"width": 5}})
    assert_unchanged(model, before)
    shrink_module(model, mask, coupling, widths={Dense: widths})
    assert seen == [{"kernel": (3, 8)}, {"kernel": (8, 2)}]
    assert [block.sizes for block in model.blocks] == [(3, 5), (5, 2)]
    np.testing.assert_allclose(model(floats(4, 3)), expected, rtol=1e-5, atol=1e-5)


def test_heads_counted_by_hand_go_once_their_number_is_told():
    x = floats(2, 3, 6)
    model, coupling = built(OwnHeads, x)
    heads = next(name for name, group in coupling.groups.items() if group.units == 4)
    mask = coupling.mask({heads: np.array([True, False, True, True])}, nnx.state(model))
    expected = masked(coupling, mask, nnx.state(model), x)
    count = lambda module, old: {"heads": module.out.kernel.shape[0] // 5}
    shrink_module(model, mask, coupling, widths={OwnHeads: count})
    assert model.heads == 3
    np.testing.assert_allclose(called(model, x), expected, rtol=1e-5, atol=1e-5)


def test_a_model_that_is_called_otherwise_says_how():
    model = Returns(nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    call = lambda model, x: model.encode(x, scale=2.0)
    coupling = couple(lambda s, x: call(nnx.merge(graphdef, s), x), state, floats(4, 3))
    mask = coupling.mask({"one": np.arange(8) < 5}, state)
    expected = masked(coupling, mask, state, floats(4, 3))
    with pytest.raises(ValueError, match="Say by `call=lambda model"):
        shrink_module(model, mask, coupling)
    with pytest.raises(ValueError, match=r"not finite.*`inputs=`"):
        shrink_module(model, mask, coupling, call=call, inputs=np.full((4, 3), np.nan, "f4"))
    assert model.one.out_features == len(model.gains[1]["b"]) == 8
    shrink_module(model, mask, coupling, call=call, inputs=floats(7, 3))
    np.testing.assert_allclose(call(model, floats(4, 3)), expected, rtol=1e-5, atol=1e-5)


def test_other_models_and_couplings_are_refused():
    model, coupling = built(nets_nnx.MLP, floats(4, 6))
    mask = coupling.mask({}, nnx.state(model))
    with pytest.raises(TypeError, match="is a State, not an NNX module"):
        shrink_module(nnx.state(model), mask, coupling)
    with pytest.raises(ValueError, match="loaded from a file"):
        shrink_module(model, mask, from_json(to_json(coupling)))
    with pytest.raises(ValueError, match="differs from the one that was coupled"):
        shrink_module(built(Scaled, floats(4, 3))[0], mask, coupling)


def test_a_warning_of_shrink_is_the_callers():
    model, coupling = built(nets_nnx.CNN, IMAGE)
    mask = trees.full_mask(nnx.state(model))
    kernel, bias = (mask["one"][name] for name in ("kernel", "bias"))
    kernel.set_value(kernel.get_value().at[..., 1].set(False))
    bias.set_value(bias.get_value().at[1].set(False))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        shrink_module(model, mask, coupling)
    assert [warning.filename for warning in caught if "kept, masked" in str(warning.message)] == [
        __file__
    ]
