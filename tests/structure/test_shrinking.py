"""Units that a mask has killed are removed, and the constants they leave behind are folded."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune import trees


def draw(shapes, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    pairs = zip(shapes.items(), keys, strict=True)
    return {name: jax.random.normal(key, shape) for (name, shape), key in pairs}


def mlp(v, x):
    hidden = jax.nn.sigmoid(x @ v["w0"] + v["b0"])
    hidden = jax.nn.softplus(hidden @ v["w1"] + v["b1"])
    return hidden @ v["w2"] + v["b2"]


@pytest.fixture
def net():
    shapes = {"w0": (5, 8), "b0": (8,), "w1": (8, 7), "b1": (7,), "w2": (7, 3), "b2": (3,)}
    variables = draw(shapes)
    x = jax.random.normal(jax.random.key(9), (6, 5))
    return variables, x, jp.couple(mlp, variables, x)


def masked_at(variables, **holes):
    """The full mask with holes: leaf name -> index."""
    mask = dict(trees.full_mask(variables))
    for name, where in holes.items():
        mask[name] = mask[name].at[where].set(False)
    return mask


EVERY = slice(None)


@pytest.mark.parametrize(
    ("holes", "widths"),
    [
        ({"w0": (EVERY, 2)}, (7, 7)),  # only the incoming weights: sigmoid(b) is folded
        ({"w1": (5, EVERY)}, (7, 7)),  # only the outgoing weights
        ({"w1": (EVERY, 4)}, (8, 6)),  # softplus(b) into the bias of the outputs
        ({"w2": (3, EVERY)}, (8, 6)),
        ({"w0": (EVERY, [0, 1, 2]), "w1": (EVERY, [4, 5])}, (5, 5)),
        ({"w0": (EVERY, 2), "b0": 2}, (7, 7)),
        ({"w0": (0, EVERY)}, (8, 7)),  # an input: pinned, stays
        ({"b1": 3}, (8, 7)),  # a bias alone kills nothing
    ],
)
def test_half_masked_units_go_if_nothing_is_lost(net, holes, widths):
    variables, x, coupling = net
    mask = masked_at(variables, **holes)
    small = jp.shrink(variables, mask, coupling)
    assert (small["b0"].shape[0], small["b1"].shape[0]) == widths
    expected = mlp(trees.apply_mask(variables, mask), x)
    np.testing.assert_allclose(mlp(small, x), expected, rtol=1e-5, atol=1e-5)


def test_what_only_feeds_the_dead_is_dead_too(net):
    variables, x, coupling = net
    mask = masked_at(variables, w2=(3, EVERY))
    mask["w1"] = mask["w1"].at[6].set(False).at[6, 3].set(True)  # unit 6 feeds only unit 3
    small = jp.shrink(variables, mask, coupling)
    assert small["w1"].shape == (7, 6)
    expected = mlp(trees.apply_mask(variables, mask), x)
    np.testing.assert_allclose(mlp(small, x), expected, rtol=1e-5, atol=1e-5)


def test_zeros_that_the_mask_keeps_are_not_removed(net):
    variables, _, coupling = net
    variables = {**variables, "w0": variables["w0"].at[:, 2].set(0.0), "b0": jnp.zeros(8)}
    small = jp.shrink(variables, trees.full_mask(variables), coupling)
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, variables)


def test_what_is_pruned_inside_kept_slices_stays_zero(net):
    variables, x, coupling = net
    rng = np.random.default_rng(0)
    mask = {name: jnp.asarray(rng.random(leaf.shape) < 0.4) for name, leaf in variables.items()}
    with pytest.warns(UserWarning, match=r"group 'w0' .* entries of 'b1' .* are pruned"):
        small, small_mask = jp.shrink(variables, mask, coupling, mask)
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, small_mask)
    assert all((a[~m] == 0).all() for a, m in zip(small.values(), small_mask.values(), strict=True))
    expected = mlp(trees.apply_mask(variables, mask), x)
    np.testing.assert_allclose(mlp(small, x), expected, rtol=1e-5, atol=1e-5)


class Conv(nn.Module):
    padding: str
    bias: bool

    @nn.compact
    def __call__(self, x):
        for features in (8, 6):
            x = nn.Conv(features, (3, 3), padding=self.padding, use_bias=self.bias)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        return nn.Dense(3)(x.mean((1, 2)))


@pytest.mark.parametrize("bias", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_batch_norms_offset_is_folded_through_activation_pooling_and_convolution(bias):
    model = Conv("VALID", bias)
    x = jax.random.normal(jax.random.key(0), (2, 9, 9, 2))
    variables = model.init(jax.random.key(1), x)
    variables = jax.tree.map(
        lambda a: (
            jax.random.uniform(jax.random.key(a.size), a.shape, minval=0.2) - (a.ndim > 1) / 2
        ),
        variables,
    )
    coupling = jp.couple(model.apply, variables, x)
    mask = trees.full_mask(variables)
    for layer, channel in (("Conv_0", 3), ("Conv_1", 2)):
        kernel = mask["params"][layer]["kernel"]
        mask["params"][layer]["kernel"] = kernel.at[..., channel].set(False)
    dead = jp.structure.dead_units(variables, mask, coupling)
    small = jp.shrink(variables, mask, coupling)
    assert small["params"]["Conv_1"]["kernel"].shape == (3, 3, 7, 5)
    expected = model.apply(trees.apply_mask(variables, mask), x)
    found = jp.shrunk_apply(coupling, dead.kept)(small, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_constant_that_zero_padding_would_change_is_refused_with_a_warning():
    model = Conv("SAME", True)
    x = jnp.ones((2, 5, 5, 2))
    variables = jax.tree.map(lambda a: a + 0.1, model.init(jax.random.key(1), x))
    coupling = jp.couple(model.apply, variables, x)
    mask = trees.full_mask(variables)
    mask["params"]["Conv_0"]["kernel"] = mask["params"]["Conv_0"]["kernel"].at[..., 3].set(False)
    with pytest.warns(UserWarning, match="group 'Conv_0' emit a constant.*zero padding"):
        small = jp.shrink(variables, mask, coupling)
    assert small["params"]["Conv_0"]["kernel"].shape[-1] == 8


def test_without_a_bias_to_take_it_a_constant_stays():
    apply = lambda v, x: jax.nn.sigmoid(x @ v["a"]) @ v["b"]
    variables, x = draw({"a": (3, 4), "b": (4, 2)}), jnp.ones((2, 3))
    coupling = jp.couple(apply, variables, x)
    mask = masked_at(variables, a=(EVERY, 1))
    with pytest.warns(UserWarning, match="no bias after"):
        small = jp.shrink(variables, mask, coupling)
    assert small["a"].shape == (3, 4)
    whole = masked_at(variables, a=(EVERY, 1), b=(1, EVERY))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert jp.shrink(variables, whole, coupling)["a"].shape == (3, 3)


def test_a_unit_that_nothing_reads_goes_though_its_reader_reads_inputs_too():
    apply = lambda v, x: jnp.concatenate([jax.nn.relu(x @ v["a"]), x], -1) @ v["b"]
    variables, x = draw({"a": (3, 4), "b": (7, 2)}), jnp.ones((2, 3))
    coupling = jp.couple(apply, variables, x)
    mask = masked_at(variables, b=(1, EVERY))
    small = jp.shrink(variables, mask, coupling)
    assert jax.tree.map(jnp.shape, small) == {"a": (3, 3), "b": (6, 2)}
    np.testing.assert_allclose(
        apply(small, x), apply(trees.apply_mask(variables, mask), x), rtol=1e-5, atol=1e-6
    )


def test_constants_are_folded_where_examples_are_columns():
    def apply(v, x):
        hidden = jax.nn.sigmoid(v["a"] @ x + v["p"])
        return v["b"] @ hidden + jnp.broadcast_to(v["q"], (2, x.shape[1]))

    variables = draw({"a": (4, 3), "p": (4, 1), "b": (2, 4), "q": (2, 1)})
    x = jax.random.normal(jax.random.key(1), (3, 5))
    coupling = jp.couple(apply, variables, x)
    mask = masked_at(variables, a=(2, EVERY))
    small = jp.shrink(variables, mask, coupling)
    assert small["a"].shape == (3, 3)
    np.testing.assert_allclose(
        apply(small, x), apply(trees.apply_mask(variables, mask), x), rtol=1e-5, atol=1e-6
    )


def test_outputs_that_are_empty_or_no_numbers_are_not_compared():
    apply = lambda v, x: (jax.nn.relu(x @ v["a"]) @ v["b"], x[:0], x > 0, jax.random.key(0))
    variables, x = draw({"a": (3, 4), "b": (4, 2)}), jnp.ones((2, 3))
    coupling = jp.couple(apply, variables, x)
    check = jp.check_shrunk(variables, masked_at(variables, a=(EVERY, 1)), coupling, x)
    assert check.relative < 1e-6
    assert check.original < 1e-6


def test_a_width_written_into_the_code_is_found_and_replayed():
    def apply(v, x):
        hidden = jax.nn.relu(x @ v["a"]).reshape(-1, 4, 2)  # 4 and 2 are written here
        return hidden.reshape(-1, 8) @ v["b"]

    variables, x = draw({"a": (3, 8), "b": (8, 2)}), jnp.ones((2, 3))
    coupling = jp.couple(apply, variables, x)
    assert [g.units for g in coupling.groups.values()] == [4]
    mask = coupling.mask({"a": np.array([True, False, True, True])}, variables)
    check = jp.check_shrunk(variables, mask, coupling, x)
    assert check.relative < 1e-6
    assert check.original is None
    assert "TypeError" in check.refusal
    assert "shrunk_apply" in str(check)


def test_a_width_that_the_code_reads_is_found():
    def apply(v, x):
        q, k = x @ v["q"], x @ v["k"]
        return jax.nn.softmax(q @ k.swapaxes(-1, -2) / jnp.sqrt(q.shape[-1])) @ x

    variables, x = (
        draw({"q": (3, 16), "k": (3, 16)}),
        jax.random.normal(jax.random.key(1), (2, 4, 3)),
    )
    coupling = jp.couple(apply, variables, x)
    mask = coupling.mask({"q": np.arange(16) < 4}, variables)
    check = jp.check_shrunk(variables, mask, coupling, x)
    assert check.relative < 1e-6 < 1e-3 < check.original
    assert "reads a width" in str(check)


def test_inexact_units_are_allowed_on_request_and_their_error_is_measured():
    def apply(v, x):
        hidden = jax.nn.sigmoid(x @ v["a"])  # sigmoid(0) = .5 is summed
        return jnp.sum(hidden, -1)

    variables, x = draw({"a": (3, 8)}), jnp.ones((2, 3))
    pinned = jp.couple(apply, variables, x)
    assert not pinned.groups
    assert "sum over slices that are not zero" in pinned.pinned["a", 1]
    coupling = jp.couple(apply, variables, x, inexact="allow")
    [group] = coupling.groups.values()
    assert "sum over slices that are not zero" in group.inexact
    assert group.inexact in str(coupling)
    mask = coupling.mask({"a": np.arange(8) > 1}, variables)
    np.testing.assert_allclose(
        jp.check_shrunk(variables, mask, coupling, x).largest, 1.0, rtol=1e-6
    )


def test_the_shrunk_model_takes_any_batch_size_and_is_jitted(net):
    variables, _, coupling = net
    kept = {"w0": np.arange(8) != 3}
    small = jp.shrink(variables, coupling.mask(kept, variables), coupling)
    apply = jax.jit(jp.shrunk_apply(coupling, kept))
    for n in (1, 4, 11):
        x = jax.random.normal(jax.random.key(n), (n, 5))
        np.testing.assert_allclose(apply(small, x), mlp(small, x), rtol=1e-5, atol=1e-6)


def test_bad_input_is_named(net):
    variables, x, coupling = net
    with pytest.raises(ValueError, match=r"'w0'.*empty layer. Keep at least one"):
        coupling.mask({"w0": np.zeros(8, bool)}, variables)
    with pytest.raises(
        ValueError, match=r"No group of units is called 'w2'.*an output of the model"
    ):
        coupling.mask({"w2": np.zeros(3, bool)}, variables)
    with pytest.raises(ValueError, match=r"has 8 units, got flags of shape \(7,\)"):
        coupling.mask({"w0": np.ones(7, bool)}, variables)
    with pytest.raises(TypeError, match="bool"):
        coupling.mask({"w0": np.ones(8)}, variables)
    with pytest.raises(ValueError, match="prunes all 7 units of the group 'w1'"):
        jp.shrink(variables, masked_at(variables, w2=EVERY), coupling)
    with pytest.raises(ValueError, match=r"differs from the one that was coupled.*'w0'"):
        jp.shrink({**variables, "w0": jnp.ones((4, 8))}, trees.full_mask(variables), coupling)
    with pytest.raises(TypeError, match="mask is bool"):
        jp.shrink(variables, variables, coupling)
    kept = {"w0": np.arange(8) != 3}
    with pytest.raises(
        ValueError, match=r"'b0' of the shrunk variables has shape \(8,\), expected"
    ):
        jp.shrunk_apply(coupling, kept)(variables, x)
    with pytest.raises(ValueError, match="`inexact` is 'pin' or 'allow'"):
        jp.couple(mlp, variables, x, inexact="perhaps")


def test_an_unknown_primitive_pins_what_it_touches_and_is_listed_with_its_line():
    def apply(v, x):
        return jnp.linalg.cholesky(v["a"] @ v["a"].T) @ jax.nn.relu(v["b"] @ x)

    variables = draw({"a": (4, 6), "b": (4, 3)})
    coupling = jp.couple(apply, variables, jnp.ones((3, 2)))
    [text] = coupling.unknown
    assert "'cholesky' at test_shrinking.py:" in text
    assert text in str(coupling)
    assert "cholesky" in coupling.pinned["a", 0]
    assert [group.units for group in coupling.groups.values()] == [6]  # contracted before
