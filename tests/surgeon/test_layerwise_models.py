"""Both layer-wise surgeons on models: layers of every kind, trees of every kind, orders, masks."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxprune as jp
from jaxprune.surgeon.layers.columnwise import sparse_gpt
from jaxprune.surgeon.layers.rowwise import exact_obs
from tests.near import assert_near, assert_trees_equal

N = 24
lowest = jp.select.lowest
both = pytest.mark.parametrize("surgeon", [exact_obs, sparse_gpt], ids=["exact", "sweep"])
exact_is_slow = pytest.mark.parametrize(
    "surgeon",
    [
        pytest.param(exact_obs, marks=pytest.mark.slow, id="exact"),
        pytest.param(sparse_gpt, id="sweep"),
    ],
)  # what the two have in common


def draw(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng((seed, *shape)).normal(size=shape), dtype)


def two_layers(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"] + params["bias"]


def mlp(dtype=jnp.float32):
    params = {"in": draw(8, 6), "out": draw(6, 4), "bias": draw(4)}
    return jax.tree.map(lambda x: x.astype(dtype), params), draw(N, 8, dtype=dtype)


def gone(mask):
    return sum(int((~np.asarray(m)).sum()) for m in jax.tree.leaves(mask))


@exact_is_slow
def test_dense_pointwise_convolution_and_einsum_are_one_layer(surgeon, x64):
    x, w = draw(N, 3, 2, 8, dtype=jnp.float64), draw(8, 5, dtype=jnp.float64)
    numbers = ("NHWC", "HWIO", "NHWC")
    pointwise = lambda w, x: lax.conv_general_dilated(
        x, w[None, None], (1, 1), "VALID", dimension_numbers=numbers
    )
    layers = [lambda w, x: x @ w, pointwise, lambda w, x: jnp.einsum("nhwi,io->nohw", x, w)]
    dense, *others = [surgeon(layer)(w, (x, None), sparsity=0.5) for layer in layers]
    for other in others:
        np.testing.assert_array_equal(dense.mask, other.mask)
        assert_near(other.params, dense.params, jnp.float64, 10**4)


@pytest.mark.parametrize("groups", [pytest.param(2, marks=pytest.mark.slow, id="grouped"),
                                    pytest.param(4, id="depthwise")])  # fmt: skip
@exact_is_slow
def test_groups_of_a_convolution_are_layers_of_their_own(groups, surgeon, x64):
    x, w = draw(N, 6, 4, dtype=jnp.float64), draw(3, 4 // groups, 8, dtype=jnp.float64)

    def conv(groups):
        return lambda w, x: lax.conv_general_dilated(
            x, w, (1,), "SAME", feature_group_count=groups, dimension_numbers=("NHC", "HIO", "NHC")
        )

    options = {"select": lowest("output"), "sequential": False}
    whole = surgeon(conv(groups), **options)(w, (x, None), sparsity=1 / 3)
    alone = surgeon(conv(1), **options)
    for xs, ws, new, mask in zip(
        jnp.split(x, groups, -1),
        *(jnp.split(a, groups, -1) for a in (w, whole.params, whole.mask)),
        strict=True,
    ):
        expected = alone(ws, (xs, None), sparsity=1 / 3)
        np.testing.assert_array_equal(mask, expected.mask)
        assert_near(new, expected.params, jnp.float64, 10**5)


@both
def test_two_uses_of_one_kernel_are_one_layer_with_all_their_positions(surgeon, x64):
    w, x = draw(6, 6, dtype=jnp.float64), draw(N, 6, dtype=jnp.float64)
    twice = surgeon(lambda w, x: jnp.tanh(x @ w) @ w)(w, (x, None), sparsity=0.5)
    both = jnp.stack([x, jnp.tanh(x @ w)], axis=1)
    once = surgeon(lambda w, x: x @ w)(w, (both, None), sparsity=0.5)
    np.testing.assert_array_equal(twice.mask, once.mask)
    assert_near(twice.params, once.params, jnp.float64, 10**4)


@exact_is_slow
def test_stacked_layers_in_a_scan_are_groups_of_one_leaf(surgeon):
    w, x = draw(2, 6, 6), draw(N, 6)

    def rolled(w, x):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    def unrolled(w, x):
        for layer in w:
            x = jnp.tanh(x @ layer)
        return x

    half = jp.select.n_of_m(1, 2)
    a = surgeon(rolled, select=half)(w, (x, None))
    b = surgeon(unrolled, select=half, sequential=False)(list(w), (x, None))
    np.testing.assert_array_equal(a.mask, jnp.stack(b.mask))
    np.testing.assert_allclose(a.params, jnp.stack(b.params), rtol=1e-3, atol=1e-4)


@exact_is_slow
def test_slices_of_a_leaf_are_pruned_together_and_what_nothing_reads_goes_first(surgeon):
    w, x = draw(3, 6, 6), draw(N, 6)
    apply = lambda w, x: jnp.tanh(x @ w[0]) @ w[2]
    pruned = surgeon(apply)(w, (x, None), sparsity=0.5)
    assert gone(pruned.mask) == 54
    assert not np.asarray(pruned.mask[1]).any()
    assert 0 < gone(pruned.mask[0]) < 18
    little = surgeon(apply)(w, (x, None), sparsity=0.25)
    assert_trees_equal(little.params[::2], w[::2])


@exact_is_slow
def test_groups_of_a_slice_that_nothing_reads_lose_as_many_as_the_others(surgeon):
    apply = lambda p, x: x @ p["kernel"][0] + x @ p["kernel"][1]
    old = {"kernel": jnp.ones((3, 8, 6), bool).at[2, 1].set(False)}
    prune = surgeon(apply, select=jp.select.n_of_m(2, 4))
    pruned = prune({"kernel": draw(3, 8, 6)}, (draw(N, 8), None), mask=old)
    groups = np.asarray(pruned.mask["kernel"]).reshape(3, 2, 4, 6).sum(axis=2)
    np.testing.assert_array_equal(groups, np.full((3, 2, 6), 2))
    assert not pruned.mask["kernel"][2, 1].any()


@exact_is_slow
def test_layers_after_a_pruned_one_are_given_what_it_now_gives(surgeon):
    params, x = mlp()
    found = {s: surgeon(two_layers, sequential=s)(params, (x, None), sparsity=0.5)
             for s in (True, False)}  # fmt: skip
    for sequential, pruned in found.items():
        first = pruned.params if sequential else params
        hidden = jnp.tanh(x @ first["in"])
        alone = surgeon(lambda w, h: h @ w)(params["out"], (hidden, None), sparsity=0.5)
        np.testing.assert_array_equal(pruned.mask["out"], alone.mask)
        np.testing.assert_allclose(pruned.params["out"], alone.params, rtol=1e-3, atol=1e-4)
    assert_trees_equal(found[True].params["in"], found[False].params["in"])
    assert_trees_equal(found[True].params["bias"], params["bias"])


@pytest.mark.parametrize("sequential", [True, pytest.param(False, marks=pytest.mark.slow)])
@exact_is_slow
def test_leaves_that_compete_lose_exactly_the_total(surgeon, sequential):
    params, x = mlp()
    prune = surgeon(two_layers, select=lowest("global"), sequential=sequential)
    pruned = prune(params, (x, None), sparsity=0.6)
    assert gone(pruned.mask) == round(0.6 * 72)
    assert pruned.info["sparsity"] == gone(pruned.mask) / 72
    for w, m in zip(jax.tree.leaves(pruned.params), jax.tree.leaves(pruned.mask), strict=True):
        np.testing.assert_array_equal(np.asarray(w)[~np.asarray(m)], 0)


@pytest.mark.parametrize("select", [lowest("erk"), lowest({"in": 0.25, "out": lambda s: s})])
@exact_is_slow
def test_every_leaf_loses_its_own_share(select, surgeon):
    params, x = mlp()
    wanted = jp.one_shot(jp.saliency.magnitude(), select)(params, sparsity=0.5).mask
    pruned = surgeon(two_layers, select=select)(params, (x, None), sparsity=0.5)
    assert [gone(m) for m in jax.tree.leaves(pruned.mask)] == [
        gone(m) for m in jax.tree.leaves(wanted)
    ]


@exact_is_slow
def test_sparsity_zero_changes_no_bit(surgeon):
    params, x = mlp()
    pruned = surgeon(two_layers)(params, (x, None), sparsity=0.0)
    assert_trees_equal(pruned.params, params)
    assert pruned.info["kept"] == 72


@both
def test_narrow_weights_are_solved_for_in_float32(surgeon):
    params, x = mlp(jnp.bfloat16)
    pruned = surgeon(two_layers)(params, (x, None), sparsity=0.5)
    assert {leaf.dtype for leaf in jax.tree.leaves(pruned.params)} == {jnp.dtype(jnp.bfloat16)}
    assert gone(pruned.mask) == 36
    for error in pruned.info["output_error"].values():
        assert error["updated"] < error["removed"]


@exact_is_slow
def test_a_list_of_weights_and_an_nnx_state(surgeon):
    x, (a, b) = draw(N, 4), (draw(4, 6), draw(6, 3))
    as_list = surgeon(lambda p, x: jnp.tanh(x @ p[0]) @ p[1])([a, b], (x, None), sparsity=0.5)
    net = nnx.Sequential(
        nnx.Linear(4, 6, rngs=nnx.Rngs(0)), jnp.tanh, nnx.Linear(6, 3, rngs=nnx.Rngs(1))
    )
    net.layers[0].kernel[...], net.layers[2].kernel[...] = a, b
    graph, state = nnx.split(net)
    apply = lambda state, x: nnx.merge(graph, state)(x)
    as_state = surgeon(apply)(state, (x, jnp.zeros(N)), sparsity=0.5)
    assert jax.tree.structure(as_state.params) == jax.tree.structure(state)
    for k, layer in enumerate((0, 2)):
        kernel = as_state.params["layers"][layer]["kernel"][...]
        np.testing.assert_allclose(kernel, as_list.params[k], rtol=1e-4, atol=1e-5)
    assert list(as_state.info["output_error"]) == ["layers/0/kernel", "layers/2/kernel"]


@both
def test_rounds_hand_their_mask_on(surgeon):
    params, x = mlp()
    rounds = jp.iterative(surgeon(two_layers), jp.schedule.linear(0.75, 3), 3)
    pruned = rounds(params, (x, None), sparsity=0.75)
    assert [info["kept"] for info in pruned.info["rounds"]] == [54, 36, 18]
    for w, m in zip(jax.tree.leaves(pruned.params), jax.tree.leaves(pruned.mask), strict=True):
        assert np.isfinite(w).all()
        np.testing.assert_array_equal(np.asarray(w)[~np.asarray(m)], 0)


def test_progress_is_told_leaf_by_leaf_in_the_order_of_the_program():
    params, x = mlp()
    told = []
    prune = exact_obs(two_layers, progress=lambda *args: told.append(args))
    pruned = prune(params, (x, None), sparsity=0.5)
    assert told == [("in", 1, 2), ("out", 2, 2)]
    assert list(pruned.info["output_error"]) == ["in", "out"]
    assert pruned.info["seconds"] > 0


class Net(nn.Module):
    """A convolution, if it is to be deep a depthwise one and attention, and a head."""

    deep: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        norm = lambda x: nn.BatchNorm(use_running_average=not train)(x)
        x = nn.relu(norm(nn.Conv(8, (3, 3), (2, 2))(x)))
        if self.deep:
            x = nn.relu(norm(nn.Conv(8, (3, 3), (2, 2), feature_group_count=8)(x)))
            x = x.reshape(x.shape[0], -1, 8)
            x = x + nn.MultiHeadDotProductAttention(2)(x)
        return nn.Dense(5)(x.reshape(x.shape[0], -1))


@functools.cache
def trained(deep):
    """A net whose statistics are those of its data, and smooth images."""
    net, rng = Net(deep), np.random.default_rng(0)
    coarse = jnp.asarray(rng.normal(size=(288, 4, 4, 2)), jnp.float32)
    images = jax.image.resize(coarse, (288, 8, 8, 2), "linear")
    variables = jax.jit(net.init)(jax.random.key(0), images[:1])
    step = jax.jit(lambda v: net.apply(v, images, train=True, mutable=["batch_stats"])[1])
    for _ in range(300):
        variables = {**variables, **step(variables)}
    return net, variables, images


@pytest.mark.parametrize(
    "deep", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["shallow", "deep"]
)
@exact_is_slow
def test_a_convolutional_net_with_batch_norm_end_to_end(deep, surgeon):
    net, variables, images = trained(deep)
    seen, held = images[:256], images[256:]
    select = lowest("layer")
    pruned = surgeon(net.apply, select=select)(variables, (seen, None), sparsity=0.5)
    magnitude = jp.one_shot(jp.saliency.magnitude(), select)(variables, sparsity=0.5)
    truth = net.apply(variables, held)
    off = lambda v: float(jnp.mean((net.apply(v, held) - truth) ** 2))
    assert off(pruned.params) < 0.8 * off(magnitude.params)
    named = zip(jp.trees.named_leaves(variables), jax.tree.leaves(pruned.params),
                jax.tree.leaves(pruned.mask), strict=True)  # fmt: skip
    for (name, old), new, mask in named:
        if name.endswith("kernel"):
            assert gone(mask) == round(0.5 * old.size)
            np.testing.assert_array_equal(np.asarray(new)[~np.asarray(mask)], 0)
            assert np.isfinite(new).all()
        else:
            assert_trees_equal(new, old)
