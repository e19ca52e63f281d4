"""Residual networks: ResNet, option A, WRN, ResNeXt, DenseNet."""

from __future__ import annotations

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

Stages = tuple[tuple[int, tuple[tuple[int, ...], ...]], ...]


class ResNet(nn.Module):
    """Each stage is its stream's width, and for each block its inner widths.

    (a,) is a basic block, (a, b) a bottleneck, (a, b, groups) one of ResNeXt.
    """

    stem: tuple[int, ...]
    stages: Stages
    classes: int
    large: bool = False
    padded: bool = False

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for place, width in enumerate(self.stem):
            large = self.large and len(self.stem) == 1
            x = conv(width, 7 if large else 3, 2 if self.large and place == 0 else 1)(x)
            x = relu(norm()(x))
        if self.large:
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, (width, blocks) in enumerate(self.stages):
            for place, inner in enumerate(blocks):
                x = self.block(x, width, inner, 2 if stage and not place else 1)
        return nn.Dense(self.classes)(pooled(x))

    def block(self, x: Any, width: int, inner: tuple[int, ...], stride: int) -> Any:
        if len(inner) == 1:
            h = relu(norm()(conv(inner[0], 3, stride)(x)))
            h = norm()(conv(width)(h))
        else:
            h = relu(norm()(conv(inner[0], 1)(x)))
            h = relu(norm()(conv(inner[1], 3, stride, *inner[2:])(h)))
            h = norm()(conv(width, 1)(h))
        if x.shape == h.shape:
            return relu(h + x)
        if not self.padded:
            return relu(h + norm()(conv(width, 1, stride)(x)))
        more = width - x.shape[-1]  # option A: zeros on both sides of the channels
        sides = ((0, 0), (0, 0), (0, 0), (more // 2, more - more // 2))
        return relu(h + jnp.pad(x[:, ::stride, ::stride], sides))


def units(stem: tuple[int, ...], stages: Stages) -> tuple[int, ...]:
    """The groups where shortcuts are projections: a stem that is the first stream is not one."""
    early = stem[:-1] if stem[-1] == stages[0][0] else stem
    return early + tuple(
        n for width, blocks in stages for n in (width, *(n for block in blocks for n in block))
    )


REDUCED_18: Stages = (
    (6, ((5,), (7,))),
    (8, ((9,), (10,))),
    (11, ((4,), (12,))),
    (13, ((14,), (3,))),
)


@net("resnet18", *(6, 5, 7), *(8, 9, 10), *(11, 4, 12), *(13, 14, 3))
def _() -> Parts:
    return linen(ResNet((6,), REDUCED_18, 5), floats(2, 8, 8, 3))


RESNET18: Stages = tuple((n, ((n,),) * 2) for n in (64, 128, 256, 512))


@full("resnet18", *units((64,), RESNET18))
def _() -> Parts:
    return abstract(ResNet((64,), RESNET18, 1000, large=True), shape(2, 224, 224, 3))


@net("resnet50", 6, *(10, 4, 5, 3, 7), *(12, 8, 9), *(14, 11, 13))
def _() -> Parts:
    stages = ((10, ((4, 5), (3, 7))), (12, ((8, 9),)), (14, ((11, 13),)))
    return linen(ResNet((6,), stages, 5, large=True), floats(2, 16, 16, 3))


def bottlenecks(*depths: int) -> Stages:
    widths = (64, 128, 256, 512)
    return tuple((4 * n, ((n, n),) * depth) for n, depth in zip(widths, depths, strict=True))


@full("resnet50", *units((64,), bottlenecks(3, 4, 6, 3)))
def _() -> Parts:
    stages = bottlenecks(3, 4, 6, 3)
    return abstract(ResNet((64,), stages, 1000, large=True), shape(2, 224, 224, 3))


@full("resnet_145_convs", *units((32, 32, 64), bottlenecks(3, 9, 31, 3)))  # 25,600 units
def _() -> Parts:
    stages = bottlenecks(3, 9, 31, 3)
    return abstract(ResNet((32, 32, 64), stages, 1000, large=True), shape(2, 224, 224, 3))


@net("resnet_deep_stem", 3, 4, 6, *(9, 5, 7), *(12, 8, 10))
def _() -> Parts:
    stages = ((9, ((5, 7),)), (12, ((8, 10),)))
    return linen(ResNet((3, 4, 6), stages, 5, large=True), floats(2, 16, 16, 3))


# Streams of 5, 8, 12, where the first 5 live on in all three: 5, 8 - 5 and 12 - 8 units.
@net("resnet_option_a", 5, 8 - 5, 12 - 8, 11, *(6, 7), *(9, 10))
def _() -> Parts:
    stages = ((5, ((11,),)), (8, ((6,), (7,))), (12, ((9,), (10,))))
    return linen(ResNet((5,), stages, 4, padded=True), floats(2, 8, 8, 3))


# Grouped: 8 channels in 4 groups, then 12 becoming 6 in 3; a unit is a group of both layers.
@net("resnext", 5, 9, 4, 3)
def _() -> Parts:
    stages = ((9, ((8, 8, 4), (12, 6, 3))),)
    return linen(ResNet((5,), stages, 4), floats(2, 8, 8, 3))


class WideResNet(nn.Module):
    """Norm and relu before each convolution; the shortcut is taken after the first of them."""

    stem: int
    stages: tuple[tuple[int, tuple[int, ...]], ...]
    classes: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = conv(self.stem)(x)
        for stage, (width, blocks) in enumerate(self.stages):
            for place, inner in enumerate(blocks):
                stride = 2 if stage and not place else 1
                h = relu(norm()(x))
                if x.shape[-1] != width:
                    x = conv(width, 1, stride)(h)
                h = relu(norm()(conv(inner, 3, stride)(h)))
                x = x + conv(width)(h)
        return nn.Dense(self.classes)(pooled(relu(norm()(x))))


@net("wide_resnet", 4, *(6, 5, 7), *(9, 8, 10), *(13, 11, 12))
def _() -> Parts:
    stages = ((6, (5, 7)), (9, (8, 10)), (13, (11, 12)))
    return linen(WideResNet(4, stages, 5), floats(2, 8, 8, 3))


def wide(depth: int, factor: int) -> Any:
    blocks = (depth - 4) // 6
    stages = tuple((n * factor, (n * factor,) * blocks) for n in (16, 32, 64))
    groups = (16, *(n for width, inner in stages for n in (width, *inner)))
    return stages, groups


@full("wrn_16_4", *wide(16, 4)[1])
def _() -> Parts:
    return abstract(WideResNet(16, wide(16, 4)[0], 10), shape(2, 32, 32, 3))


@full("wrn_40_2", *wide(40, 2)[1])
def _() -> Parts:
    return abstract(WideResNet(16, wide(40, 2)[0], 10), shape(2, 32, 32, 3))


class DenseNet(nn.Module):
    """Each block is pairs (bottleneck, growth); between two of them stands a transition."""

    stem: int
    blocks: tuple[tuple[tuple[int, int], ...], ...]
    transitions: tuple[int, ...]
    classes: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = conv(self.stem)(x)
        for block, width in zip(self.blocks, (*self.transitions, 0), strict=True):
            for inner, growth in block:
                h = conv(inner, 1)(relu(norm()(x)))
                h = conv(growth)(relu(norm()(h)))
                x = jnp.concatenate([x, h], -1)
            x = relu(norm()(x))
            if width:
                x = nn.avg_pool(conv(width, 1)(x), (2, 2), (2, 2))
        return nn.Dense(self.classes)(pooled(x))


@net("densenet_bc", 6, *(7, 3, 8, 4), 5, *(9, 2, 10, 11))
def _() -> Parts:
    blocks = (((7, 3), (8, 4)), ((9, 2), (10, 11)))
    return linen(DenseNet(6, blocks, (5,), 4), floats(2, 8, 8, 3))


def dense(depth: int, growth: int) -> Any:
    layers = (depth - 4) // 6
    blocks = (((4 * growth, growth),) * layers,) * 3
    first = (2 * growth + layers * growth) // 2
    transitions = (first, (first + layers * growth) // 2)
    groups = (2 * growth, *transitions, *(n for b in blocks for pair in b for n in pair))
    return (2 * growth, blocks, transitions), groups


@full("densenet_bc_100_12", *dense(100, 12)[1])
def _() -> Parts:
    return abstract(DenseNet(*dense(100, 12)[0], 10), shape(2, 32, 32, 3))
