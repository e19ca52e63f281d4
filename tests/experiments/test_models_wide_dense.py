"""Wide ResNets and DenseNets: published counts, what can be pruned, and two frameworks alike."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jaxprune as jp
from experiments.models import DenseNet, NNXWideResNet, ResNet, WideResNet
from experiments.models.wide_resnet import wide_widths
from jaxprune.trees import count

IMAGE = jnp.zeros((1, 32, 32, 3))


def shapes(model, image=IMAGE):
    return jax.eval_shape(model.init, jax.random.key(0), image)


def coupled(model, image=IMAGE):
    return jp.couple(model.apply, shapes(model, image), image)


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (WideResNet(40, 2), 2_243_546),
        (WideResNet(40, 1), 563_930),
        (WideResNet(16, 2), 691_674),
        (WideResNet(28, 10), 36_479_194),
        (DenseNet(), 769_162),
        (ResNet(20), 269_722),
    ],
)
def test_the_parameters_are_those_published(model, parameters):
    assert count(shapes(model)["params"]) == parameters


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
)
def test_resnets_have_the_published_millions(depth, millions):
    own = count(shapes(ResNet(depth))["params"]) / 1e6
    assert own == pytest.approx(millions, abs=0.03 if depth == 110 else 0.008)


def test_multiply_adds_are_those_published_with_one_for_every_normalised_number():
    model = WideResNet(40, 2)
    products = jp.reporting.flops(model.apply, shapes(model), IMAGE) / 2
    norms = lambda module, _: isinstance(module, nn.BatchNorm)
    run = partial(model.apply, capture_intermediates=norms)
    found = jax.eval_shape(run, shapes(model), IMAGE)[1]["intermediates"]
    assert round((products + count(found)) / 1e6, 1) == 328.3


@pytest.mark.parametrize(
    ("model", "units"),
    [(WideResNet(40, 2), 1344), pytest.param(DenseNet(), 2304, marks=pytest.mark.slow)],
)
def test_units_between_the_convolutions_of_blocks_are_as_many_as_in_the_paper(model, units):
    groups = coupled(model).groups
    assert sum(g.units for name, g in groups.items() if name.endswith("/first")) == units


@pytest.mark.slow
@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("model", "small", "blocks"),
    [
        (WideResNet(10, 1), lambda middles: WideResNet(10, 1, middles=middles), "block"),
        (DenseNet(10, 4), lambda middles: DenseNet(10, 4, middles=middles), "layer"),
    ],
)
def test_the_code_with_other_middle_widths_is_the_shrunk_network(model, small, blocks):
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    variables = model.init(jax.random.key(0), image)
    coupling = jp.couple(model.apply, variables, image)
    inner = [f"{blocks}_{i}/first" for i in range(3)]
    groups = {name: g for name, g in coupling.groups.items() if name.endswith("/first")}
    assert sorted(groups) == inner
    kept = {name: np.arange(g.units) < 3 + i for i, (name, g) in enumerate(groups.items())}
    middles = tuple(int(np.sum(kept[name])) for name in inner)
    fewer = jp.structure.shrink_units(variables, kept, coupling)
    masked = jp.apply_mask(variables, coupling.mask(kept, variables))
    other = small(middles)
    assert jax.tree.map(jnp.shape, shapes(other, image)) == jax.tree.map(jnp.shape, fewer)
    np.testing.assert_allclose(
        other.apply(fewer, image), model.apply(masked, image), rtol=1e-4, atol=1e-5
    )


def test_a_multiplier_sets_every_middle_width():
    narrow = shapes(WideResNet(10, 2, z=0.25))["params"]
    for at, wide in enumerate(wide_widths(10, 2)):
        assert narrow[f"block_{at}"]["first"]["kernel"].shape[-1] == wide // 4
        assert narrow[f"block_{at}"]["second"]["kernel"].shape[-1] == wide


def test_nnx_computes_what_linen_does():
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    linen = WideResNet(10, 1, middles=(3, 4, 5))
    variables = linen.init(jax.random.key(0), image)
    module = NNXWideResNet(10, 1, middles=(3, 4, 5), rngs=nnx.Rngs(0))
    blocks = {
        int(name.split("_")[1]) if name.startswith("block") else name: (
            variables["params"][name], variables["batch_stats"].get(name, {}),
        )
        for name in variables["params"]
    }  # fmt: skip

    def pour(layer, params, statistics):
        for name, value in {**params, **statistics}.items():
            if isinstance(value, dict):
                pour(getattr(layer, name), params.get(name, {}), statistics.get(name, {}))
            else:
                variable = getattr(layer, name)
                assert variable[...].shape == value.shape
                variable[...] = value

    for name, found in blocks.items():
        pour(module.blocks[name] if isinstance(name, int) else getattr(module, name), *found)
    module.eval()
    np.testing.assert_allclose(module(image), linen.apply(variables, image), rtol=1e-5, atol=1e-6)
    assert count(nnx.state(module, nnx.Param)) == count(variables["params"])


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (WideResNet(12), "depth 6n"),
        (WideResNet(10, 1, middles=(3, 4)), "3 middle widths"),
        (DenseNet(11), "depth 6n"),
        (DenseNet(10, middles=(0, 1, 1)), "middle widths >= 1"),
    ],
)
def test_what_cannot_be_built_is_refused(model, words):
    with pytest.raises(ValueError, match=words):
        shapes(model)
