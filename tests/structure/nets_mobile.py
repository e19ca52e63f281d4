"""Networks whose convolutions are grouped or depthwise, and the gates they come with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from tests.structure.nets_kit import (
    Parts,
    abstract,
    conv,
    floats,
    full,
    linen,
    net,
    norm,
    pooled,
    relu,
    shape,
)


def depthwise(x: Any, stride: int = 1, size: int = 3) -> Any:
    return conv(x.shape[-1], size, stride, groups=x.shape[-1])(x)


class MobileNetV1(nn.Module):
    """Pairs of a width and a stride: a depthwise convolution, then one of single places."""

    stem: int
    layers: tuple[tuple[int, int], ...]
    classes: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = relu(norm()(conv(self.stem, stride=2)(x)))
        for width, stride in self.layers:
            x = relu(norm()(depthwise(x, stride)))
            x = relu(norm()(conv(width, 1)(x)))
        return nn.Dense(self.classes)(pooled(x))


@net("mobilenet_v1", 5, 7, 9, 11)
def _() -> Parts:
    return linen(MobileNetV1(5, ((7, 1), (9, 2), (11, 1)), 4), floats(2, 12, 12, 3))


V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5)
V1 = (*V1, (1024, 2), (1024, 1))


@full("mobilenet_v1", 32, *(width for width, _ in V1))
def _() -> Parts:
    return abstract(MobileNetV1(32, V1, 1000), shape(2, 224, 224, 3))


class Inverted(nn.Module):
    """Blocks (inner width, output, stride, squeezed); an inner width of 0 expands nothing."""

    stem: int
    blocks: tuple[tuple[int, int, int, int], ...]
    last: int
    classes: int
    bend: Callable[[Any], Any] = nn.relu6
    size: int = 3

    @nn.compact
    def __call__(self, x: Any) -> Any:
        bend = self.bend
        x = bend(norm()(conv(self.stem, stride=2)(x)))
        for inner, width, stride, squeezed in self.blocks:
            h = bend(norm()(conv(inner, 1)(x))) if inner else x
            h = bend(norm()(depthwise(h, stride, self.size)))
            if squeezed:
                gate = bend(nn.Conv(squeezed, (1, 1))(h.mean((1, 2), keepdims=True)))
                h = h * nn.sigmoid(nn.Conv(h.shape[-1], (1, 1))(gate))
            h = norm()(conv(width, 1)(h))
            x = x + h if x.shape == h.shape else h
        x = bend(norm()(conv(self.last, 1)(x)))
        return nn.Dense(self.classes)(pooled(x))


# The stem of 5, a block without expansion to 4, one to 6 that the next one adds to.
@net("mobilenet_v2", 5, 4, *(10, 6, 12), *(13, 7), 15)
def _() -> Parts:
    blocks = ((0, 4, 1, 0), (10, 6, 2, 0), (12, 6, 1, 0), (13, 7, 1, 0))
    return linen(Inverted(5, blocks, 15, 4), floats(2, 12, 12, 3))


@net("efficientnet", *(5, 2, 4), *(10, 3, 6), *(12, 8), *(13, 9, 7), 15)
def _() -> Parts:
    blocks = ((0, 4, 1, 2), (10, 6, 2, 3), (12, 6, 1, 8), (13, 7, 1, 9))
    return linen(Inverted(5, blocks, 15, 4, nn.swish, 5), floats(2, 12, 12, 3))


V2 = ((6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def inverted_v2() -> Any:
    blocks: list[tuple[int, int, int, int]] = [(0, 16, 1, 0)]
    groups = [32, 16]
    for factor, width, depth, stride in V2:
        groups.append(width)
        for place in range(depth):
            inner = factor * blocks[-1][1]
            blocks.append((inner, width, 1 if place else stride, 0))
            groups.append(inner)
    return tuple(blocks), (*groups, 1280)


@full("mobilenet_v2", *inverted_v2()[1])
def _() -> Parts:
    return abstract(Inverted(32, inverted_v2()[0], 1280, 1000), shape(2, 224, 224, 3))


def shuffled(x: Any, groups: int) -> Any:
    x = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    return jnp.swapaxes(x, -1, -2).reshape(*x.shape[:-2], -1)


# Both layers of the first grouped convolution go by its 2 groups, however shuffled after it.
@net("shuffled_groups", 2, 9)
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = relu(norm()(conv(8)(x)))
            x = shuffled(relu(norm()(conv(6, 1, groups=2)(x))), 2)
            x = norm()(depthwise(x))
            return nn.Dense(4)(pooled(relu(norm()(conv(9, 1)(x)))))

    return linen(Model(), floats(2, 6, 6, 3))


# Unit a of 3 reads channels 4a.. of the stream and, shuffled, meets groups a, a + 1 of the next:
# all 12 channels of the stream and the 6 inside are one unit.
@net("shufflenet_v1", 1, 7)
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = relu(norm()(conv(12)(x)))
            h = shuffled(relu(norm()(conv(6, 1, groups=3)(x))), 3)
            h = norm()(conv(12, 1, groups=3)(norm()(depthwise(h))))
            return nn.Dense(4)(pooled(relu(norm()(conv(7, 1)(relu(x + h))))))

    return linen(Model(), floats(2, 6, 6, 3))


# A shuffle needs a full [2, 4], so each row of it is one unit, as heads are: the 4 channels the
# first unit keeps with the 4 it makes, since both are in the second shuffle's first row; and the 4
# the second unit makes. Left are the other 4 of the stem, 5 and 6 inside the units, 9.
# By columns there would be 2 units, 2 units, 4, 5, 6, 9; were no rectangle needed,
# 2, 2, 2, 2, 4, 4, 5, 6, 9.
@net("shufflenet_v2", 1, 1, 4, 5, 6, 9)
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = relu(norm()(conv(8)(x)))
            for inner in (5, 6):
                kept, h = jnp.split(x, 2, -1)
                h = relu(norm()(conv(inner, 1)(h)))
                h = norm()(depthwise(h))
                h = relu(norm()(conv(4, 1)(h)))
                x = shuffled(jnp.concatenate([kept, h], -1), 2)
            return nn.Dense(4)(pooled(relu(norm()(conv(9, 1)(x)))))

    return linen(Model(), floats(2, 6, 6, 3))


# Groups of 2 and of 3 among the same 12 channels: two units of 6. Then 9 ungrouped.
@net("grouped_conv_overlap", 2, 9)
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = relu(nn.Conv(12, (3, 3))(x))
            x = relu(nn.Conv(12, (3, 3), feature_group_count=4)(x))
            x = relu(nn.Conv(18, (3, 3), feature_group_count=6)(x))
            return nn.Dense(4)(pooled(relu(nn.Conv(9, (1, 1))(x))))

    return linen(Model(), floats(2, 6, 6, 3))


# A depthwise convolution with 2 outputs for each of 5 channels: a unit has both.
@net("depth_multiplier", 5, 7)
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = relu(nn.Conv(5, (3, 3))(x))
            x = relu(nn.Conv(10, (3, 3), feature_group_count=5)(x))
            return nn.Dense(4)(pooled(relu(nn.Conv(7, (3, 3))(x))))

    return linen(Model(), floats(2, 6, 6, 3))
