"""Profiles: what they count, how they scale, and fresh values at their shapes."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune import trees
from jaxprune.structure.profiles import (
    kept_of,
    reinitialise,
    scaled_profile,
    width_profile,
    width_shares,
)
from jaxprune.structure.shrinking import shrink_units
from tests.near import assert_near, assert_trees_equal
from tests.structure.net_zoo import FULL, NETS
from tests.structure.test_zoo_laws import subset


@pytest.fixture(scope="module")
def vgg():
    net = NETS["vgg_bn"]()
    return net, jp.couple(net.apply, net.variables, *net.inputs)


@pytest.fixture(scope="module")
def resnet():
    net = FULL["resnet18"]()
    return jp.couple(net.apply, net.variables, *net.inputs)


def test_a_profile_counts_what_is_left_and_costs_what_the_shrunk_net_costs(vgg):
    net, coupling = vgg
    kept = subset(coupling, seed=1)
    profile = width_profile(coupling, kept)
    assert profile == {name: int(flags.sum()) for name, flags in kept.items()}
    assert width_shares(coupling, kept) == {
        name: n / coupling.groups[name].units for name, n in profile.items()
    }
    first = kept_of(coupling, profile)
    small = shrink_units(net.variables, first, coupling)
    assert coupling.parameters(first) == trees.count(small) == coupling.parameters(kept)
    assert coupling.flops(first) == coupling.flops(kept)
    assert all((flags == np.sort(flags)[::-1]).all() for flags in first.values())
    assert width_profile(coupling, {}) == {n: g.units for n, g in coupling.groups.items()}


def test_a_profile_survives_json(vgg):
    _, coupling = vgg
    for profile in (
        width_profile(coupling, subset(coupling, seed=2)),
        scaled_profile(coupling, width_profile(coupling, {}), 0.5),
    ):
        back = json.loads(json.dumps(profile))
        assert back == profile
        assert width_profile(coupling, kept_of(coupling, back)) == profile


def test_widths_are_scaled_rounded_and_kept_inside_their_groups(resnet):
    profile = width_profile(resnet, subset(resnet, seed=3))
    for factor, multiple in ((0.01, 1), (0.3, 1), (0.3, 8), (1.0, 1), (1.7, 16), (50.0, 1)):
        found = scaled_profile(resnet, profile, factor, multiple=multiple)
        for name, n in found.items():
            units = resnet.groups[name].units
            wanted = factor * profile[name]
            assert multiple <= n <= units
            assert n % multiple == 0
            assert abs(n - wanted) <= multiple / 2 or n in (multiple, units)
    assert scaled_profile(resnet, profile, 1.0) == profile


@pytest.mark.parametrize("what", ["parameters", "flops"])
@pytest.mark.parametrize("multiple", [1, 8])
def test_a_target_is_met_as_closely_as_the_family_allows(resnet, what, multiple):
    profile = width_profile(resnet, subset(resnet, seed=4))
    cost = lambda profile: getattr(resnet, what)(kept_of(resnet, profile))
    for share in (0.05, 0.3, 0.9):
        target = int(share * getattr(resnet, what)())
        found = scaled_profile(resnet, profile, multiple=multiple, **{what: target})
        assert cost(found) <= target
        # The next larger factor at which any width changes is too large.
        whole = {n: resnet.groups[n].units for n in found}
        steps = [(found[n] + multiple / 2) / profile[n] for n in found if found[n] < whole[n]]
        wider = scaled_profile(resnet, profile, min(steps) * (1 + 1e-9), multiple=multiple)
        assert wider != found
        assert cost(wider) > target


def test_the_cost_of_the_whole_model_gives_the_whole_model(resnet):
    whole = {name: group.units for name, group in resnet.groups.items()}
    narrow = {name: max(units // 3, 1) for name, units in whole.items()}
    assert scaled_profile(resnet, narrow, parameters=resnet.parameters()) == whole


def test_bad_profiles_and_targets_are_named(vgg):
    _, coupling = vgg
    name = next(iter(coupling.groups))
    units = coupling.groups[name].units
    profile = {name: units}
    with pytest.raises(ValueError, match="No group"):
        kept_of(coupling, {"nowhere": 1})
    with pytest.raises(ValueError, match=rf"1 \.\. {units}, got 0"):
        kept_of(coupling, {name: 0})
    with pytest.raises(TypeError, match=r"an integer; got 2\.5"):
        kept_of(coupling, {name: 2.5})
    with pytest.raises(ValueError, match="exactly one"):
        scaled_profile(coupling, profile)
    with pytest.raises(ValueError, match="exactly one"):
        scaled_profile(coupling, profile, 0.5, flops=100)
    with pytest.raises(ValueError, match="positive number, got -1"):
        scaled_profile(coupling, profile, -1)
    with pytest.raises(ValueError, match="`multiple` is an integer >= 1"):
        scaled_profile(coupling, profile, 1.0, multiple=0)
    for target in (1, coupling.parameters() + 1):
        with pytest.raises(ValueError, match=r"lies outside \d+ \.\. \d+"):
            scaled_profile(coupling, profile, parameters=target)


class Wide(nn.Module):
    """Kernels of every kind, wide enough for their spread to be measured."""

    make: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(64, (3, 3), kernel_init=self.make)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.Conv(96, (3, 3), kernel_init=self.make)(x)
        x = nn.relu(x).mean((1, 2))
        x = nn.DenseGeneral((8, 40), kernel_init=self.make)(x)  # heads of 40
        x = nn.DenseGeneral(200, axis=(-2, -1), kernel_init=self.make)(nn.relu(x))
        return nn.Dense(10, kernel_init=nn.initializers.zeros)(nn.relu(x))


def fans(kernel):
    """(in, out) by Flax's conventions, of the four kernels of `Wide`."""
    if kernel.ndim == 4:
        taps = kernel.shape[0] * kernel.shape[1]
        return taps * kernel.shape[2], taps * kernel.shape[3]
    last = kernel.shape[0] if kernel.shape[-1] != 200 and kernel.ndim == 3 else None
    size_in = last or int(np.prod(kernel.shape[:-1]))
    return size_in, kernel.size // size_in


SCALINGS = {"in": "fan_in", "out": "fan_out", "avg": "fan_avg"}


@pytest.mark.every(3)
@pytest.mark.parametrize("fan", SCALINGS)
def test_the_variance_is_that_of_the_small_fans(fan):
    model = Wide(nn.initializers.variance_scaling(2.0, SCALINGS[fan], "normal"))
    x = jnp.ones((1, 5, 5, 16))
    init = lambda key: model.init(key, x)
    coupling = jp.couple(model.apply, jax.eval_shape(init, jax.random.key(0)), x)
    shares = (0.5, 0.4, 0.5, 0.3, 0.8)
    kept = {
        name: np.arange(g.units) < max(int(share * g.units), 1)
        for (name, g), share in zip(coupling.groups.items(), shares, strict=True)
        if g.units != 200
    }
    small = reinitialise(init, kept, coupling, jax.random.key(1), fan=fan)
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(
        jnp.shape, shrink_units(init(jax.random.key(0)), kept, coupling)
    )
    kernels = {n: k for n, k in trees.named_leaves(small["params"]) if n.endswith("kernel")}
    assert not np.asarray(kernels.pop("Dense_0/kernel")).any()
    assert len(kernels) == 4
    for kernel in kernels.values():
        mean = {"in": fans(kernel)[0], "out": fans(kernel)[1], "avg": sum(fans(kernel)) / 2}[fan]
        spread = float(jnp.std(kernel) * np.sqrt(mean / 2.0))
        assert abs(spread - 1) < 5 / np.sqrt(2 * kernel.size)  # five standard errors
    assert all((b == 0).all() for n, b in trees.named_leaves(small["params"]) if n[-4:] == "bias")
    assert (small["batch_stats"]["BatchNorm_0"]["var"] == 1).all()


def test_fresh_values_are_slices_times_the_root_of_the_fans_ratio(vgg):
    net, coupling = vgg
    kept = subset(coupling, seed=6)
    small = dict(trees.named_leaves(reinitialise(lambda _: net.variables, kept, coupling, None)))
    cut = dict(trees.named_leaves(shrink_units(net.variables, kept, coupling)))
    whole = dict(trees.named_leaves(net.variables))
    for name, leaf in small.items():
        ratio = 1.0
        if name.endswith("kernel"):
            ratio = np.prod(whole[name].shape[:-1]) / np.prod(leaf.shape[:-1])
        assert_near(leaf, np.sqrt(ratio) * np.asarray(cut[name], np.float64), leaf.dtype)
    plain = reinitialise(lambda _: net.variables, kept, coupling, None, fan=None)
    assert_trees_equal(plain, shrink_units(net.variables, kept, coupling))


def test_kernels_inside_a_loop_are_rescaled_too():
    net = NETS["lstm"]()
    coupling = jp.couple(net.apply, net.variables, *net.inputs)
    group = next(g for n, g in coupling.groups.items() if n.startswith("OptimizedLSTMCell_0"))
    kept = {group.name: np.arange(group.units) < 3}
    small = reinitialise(lambda _: net.variables, kept, coupling, None)["params"]
    cut = shrink_units(net.variables, kept, coupling)["params"]
    for leaf, ratio in (("hi", group.units / 3), ("hf", group.units / 3), ("ii", 1.0)):
        kernels = (tree["OptimizedLSTMCell_0"][leaf]["kernel"] for tree in (small, cut))
        a, b = map(np.asarray, kernels)
        assert_near(a, np.sqrt(ratio) * b, jnp.float32)


@pytest.mark.parametrize(("axis", "fan", "ratio"), [(1, "in", 4), (1, "out", 2), (0, "in", 2)])
def test_concatenated_kernels_are_each_rescaled_by_their_own_fans(axis, fan, ratio):
    kernels = lambda v: jnp.concatenate([v["q"], v["k"]], axis)
    apply = lambda v, x: jnp.tanh(jnp.tanh(x @ v["a"]) @ kernels(v)) @ v["b"]
    wide = (8, 8) if axis else (4, 16)
    shapes = {"a": (3, 8), "q": wide, "k": wide, "b": (16, 2)}
    variables = {name: jnp.ones(shape) for name, shape in shapes.items()}
    coupling = jp.couple(apply, variables, jnp.ones((1, 3)))
    first = 4 if fan == "in" and axis else 2  # of 8 or of 4
    inside = lambda g: any(m.leaf == "a" for m in g.members) == (fan == "in")
    kept = {
        n: np.arange(g.units) < g.units // (4 if first == 4 else 2)
        for n, g in coupling.groups.items()
        if inside(g)
    }
    small = reinitialise(lambda _: variables, kept, coupling, None, fan=fan)
    for name in ("q", "k"):
        assert_near(small[name], np.full(small[name].shape, np.sqrt(ratio)), jnp.float32)


def test_values_of_a_small_model_are_taken_as_they_are(vgg):
    net, coupling = vgg
    kept = subset(coupling, seed=7)
    small = shrink_units(net.variables, kept, coupling)
    assert_trees_equal(reinitialise(lambda _: small, kept, coupling, None), small)
    with pytest.raises(ValueError, match="was coupled"):
        reinitialise(lambda _: jax.tree.map(lambda x: x[:1], small), kept, coupling, None)
    with pytest.raises(ValueError, match="`fan` is 'in'"):
        reinitialise(lambda _: small, kept, coupling, None, fan="both")
