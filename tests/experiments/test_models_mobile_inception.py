"""MobileNetV1 and the small Inception network: counts, published or closed, and pruning."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from experiments.models import MobileNetV1, SmallInception, mobilenet_cifar
from experiments.models import mobilenet as mobile
from experiments.models.inception import BLOCKS, STEM, scaled
from jaxprune.trees import count, default_prunable, prunable_flags, select_leaves

IMAGE = jnp.zeros((1, 32, 32, 3))


def shapes(model, image=IMAGE):
    return jax.eval_shape(model.init, jax.random.key(0), image)


def drawn(tree, seed=0):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), jnp.float32), tree)


def mobilenet_parameters(alpha, classes):
    widths = [int(width * alpha) for width in mobile.WIDTHS]
    kernels = 27 * widths[0] + sum(a * (9 + b) for a, b in pairwise(widths))
    norms = 2 * widths[0] + 2 * sum(a + b for a, b in pairwise(widths))
    return kernels + classes * (widths[-1] + 1), norms


@pytest.mark.parametrize(
    ("width", "nonzeros"), [(0.25, 0.46), (0.5, 1.32), (0.75, 2.57), (1.0, 4.21)]
)
def test_mobilenet_has_the_published_number_of_parameters(width, nonzeros):
    params = shapes(MobileNetV1(width=width))["params"]
    weights, norms = mobilenet_parameters(width, 1000)
    assert count(params) == weights + norms
    assert round(weights / 1e6, 2) == nonzeros  # what Zhu and Gupta count: no BatchNorm
    if width == 1:
        assert count(params) == 4_231_976


@pytest.mark.parametrize(
    ("sparsity", "nonzeros"), [(0.5, 2.13), (0.75, 1.09), (0.9, 0.46), (0.95, 0.25)]
)
def test_sparing_the_stem_and_depthwise_kernels_gives_the_published_nonzeros(sparsity, nonzeros):
    params = shapes(MobileNetV1())["params"]
    pruned = count(select_leaves(params, prunable_flags(params, mobile.prunable)))
    weights, _ = mobilenet_parameters(1, 1000)
    assert round((weights - sparsity * pruned) / 1e6, 2) == nonzeros


def test_small_images_change_no_parameter_of_mobilenet_and_are_seen_longer():
    large, small = MobileNetV1(10, 0.25), mobilenet_cifar()
    assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, shapes(large), shapes(small)))
    run = partial(jax.eval_shape, partial(small.apply, capture_intermediates=True))
    found = run(shapes(small), jnp.zeros((2, 32, 32, 3)))[1]["intermediates"]
    assert found["stem"]["__call__"][0].shape == (2, 32, 32, 8)
    assert found["separable_12"]["__call__"][0].shape == (2, 2, 2, 256)
    assert found["__call__"][0].shape == (2, 10)


def test_a_wrong_number_of_strides_is_refused():
    with pytest.raises(ValueError, match="14 layers"):
        shapes(MobileNetV1(strides=(1, 2)))


@pytest.mark.parametrize(("stride", "size"), [(1, (5, 4)), (2, (7, 6))])
def test_shifted_products_are_the_depthwise_convolution_and_its_gradient(stride, size):
    params = {"params": {"kernel": drawn(jnp.zeros((3, 3, 1, 2)))}}
    inputs = drawn(jnp.zeros((2, *size, 2)), 1)

    def both(shifts):
        layer = mobile.Depthwise(stride, shifts)
        total = lambda p, x: (jnp.sum(jnp.sin(y := layer.apply(p, x))), y)
        return jax.jit(jax.grad(total, (0, 1), has_aux=True))(params, inputs)

    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), both(True), both(False))


def inception_parameters(width, classes):
    total, channels = 29 * scaled(STEM, width), scaled(STEM, width)
    for block in BLOCKS:
        ends = 0
        for units in block.values():
            into = channels
            for wide, (high, long) in units:
                out = scaled(wide, width)
                total += (into * high * long + 2) * out
                into = out
            ends += into
        channels = ends
    return total + (channels + 1) * classes


@pytest.mark.parametrize("width", [0.25, 1.0, 2.0])
def test_inception_has_the_parameters_of_its_branches(width):
    assert count(shapes(SmallInception(7, width))["params"]) == inception_parameters(width, 7)


def test_inception_halves_the_image_before_every_block_and_joins_its_branches():
    model = SmallInception(10, 1.0)
    run = partial(jax.eval_shape, partial(model.apply, capture_intermediates=True))
    found = run(shapes(model), jnp.zeros((2, 32, 32, 3)))[1]["intermediates"]
    ends = [found[f"block_{i}"]["__call__"][0].shape for i in range(3)]
    assert ends == [(2, 16, 16, 64), (2, 8, 8, 192), (2, 4, 4, 320)]


@pytest.mark.parametrize("model", [mobilenet_cifar(0.25), SmallInception(10, 0.1)])
def test_training_updates_the_running_statistics_and_inference_only_reads_them(model):
    variables = shapes(model)
    train = partial(model.apply, train=True, mutable=["batch_stats"])
    logits, updated = jax.eval_shape(train, variables, jnp.zeros((2, 32, 32, 3)))
    assert logits.shape == jax.eval_shape(model.apply, variables, jnp.zeros((2, 32, 32, 3))).shape
    stats = variables["batch_stats"]
    assert jax.tree.structure(updated["batch_stats"]) == jax.tree.structure(stats)


@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("model", "prunable", "parts"),
    [
        (mobilenet_cifar(0.25), mobile.prunable, ("stem", "separable_0")),
        (SmallInception(10, 0.25), default_prunable, ("logits",)),
        pytest.param(mobilenet_cifar(0.25), mobile.prunable, None, marks=pytest.mark.slow),
        pytest.param(SmallInception(10, 0.25), default_prunable, None, marks=pytest.mark.slow),
    ],
)
def test_what_is_prunable_gets_exactly_its_sparsity_and_nothing_else_is_touched(
    model, prunable, parts
):
    params = drawn(shapes(model)["params"])
    params = {name: params[name] for name in parts or params}  # a compilation a shape
    prune = jp.one_shot(jp.saliency.magnitude(), jp.select.lowest(prunable=prunable))
    pruned = prune(params, sparsity=0.9)
    flags = prunable_flags(params, prunable)
    entries = count(select_leaves(params, flags))
    assert pruned.info["kept"] == entries - round(0.9 * entries)
    spared = select_leaves(pruned.mask, [not flag for flag in flags])
    assert all(bool(kept.all()) for kept in spared)


@pytest.mark.parametrize("shifts", [True, False])
def test_couple_finds_a_group_for_every_width_of_mobilenet(shifts):
    model = MobileNetV1(10, 0.25, mobile.CIFAR_STRIDES, shifts)
    coupling = jp.couple(model.apply, shapes(model), IMAGE)
    assert [group.units for group in coupling.groups.values()] == [w // 4 for w in mobile.WIDTHS]


def test_couple_finds_a_group_for_every_unit_of_inception():
    model = SmallInception(10, 0.25)
    coupling = jp.couple(model.apply, shapes(model), IMAGE)
    widths = [w for block in BLOCKS for units in block.values() for w, _ in units]
    assert [g.units for g in coupling.groups.values()] == [scaled(w, 0.25) for w in (STEM, *widths)]
