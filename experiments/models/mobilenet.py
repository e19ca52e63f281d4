"""MobileNetV1 (Howard et al. 2017): depthwise convolutions, each before one of 1 x 1."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxprune.trees import default_prunable

WIDTHS = (32, 64, 128, 128, 256, 256, *(512,) * 6, 1024, 1024)
IMAGENET_STRIDES = (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
CIFAR_STRIDES = (1, *IMAGENET_STRIDES[1:])  # ends in 2 x 2 places


def prunable(name: str, leaf: Any) -> bool:
    """The weights that Zhu and Gupta 2017 prune: not the first convolution, no depthwise one.

    Example:
      >>> import numpy as np
      >>> [prunable(f"{layer}/kernel", np.ones((1, 1, 8, 8)))
      ...  for layer in ("stem", "separable_0/depthwise", "separable_0/pointwise", "logits")]
      [False, False, True, True]
    """
    spared = {"stem", "depthwise"} & set(name.split("/"))
    return default_prunable(name, leaf) and not spared


class Depthwise(nn.Module):
    """A 3 x 3 convolution of every channel by itself; kernel [3, 3, 1, C].

    On a CPU, XLA's grouped convolution is far slower than its nine shifted products, forwards and
    backwards.

    Attributes:
      stride: of the places.
      shifts: nine shifted products in place of a convolution; None: on a CPU.
    """

    stride: int = 1
    shifts: bool | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """[N, H, W, C] to [N, ceil(H / stride), ceil(W / stride), C]."""
        channels, stride = inputs.shape[-1], self.stride
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, 1, channels))
        shifts = jax.default_backend() == "cpu" if self.shifts is None else self.shifts
        if not shifts:
            layout = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(
                inputs, kernel, (stride, stride), "SAME",
                dimension_numbers=layout, feature_group_count=channels,
            )  # fmt: skip
        spans = [(-(-size // stride) - 1) * stride + 1 for size in inputs.shape[1:3]]
        missing = [
            max(span + 2 - size, 0) for span, size in zip(spans, inputs.shape[1:3], strict=True)
        ]
        sides = [(both // 2, both - both // 2) for both in missing]
        x = jnp.pad(inputs, ((0, 0), *sides, (0, 0)))
        rows, columns = spans
        shifted = [
            x[:, i : i + rows : stride, j : j + columns : stride] * kernel[i, j]
            for i in range(3)
            for j in range(3)
        ]
        return sum(shifted[1:], start=shifted[0])


class Separable(nn.Module):
    """A depthwise and a pointwise convolution, each with BatchNorm and ReLU.

    Attributes:
      width: channels.
      stride: of the depthwise convolution.
      shifts: how it is taken, see `Depthwise`.
    """

    width: int
    stride: int = 1
    shifts: bool | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, C] to [N, ceil(H / stride), ceil(W / stride), width]."""
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        x = Depthwise(self.stride, self.shifts, name="depthwise")(inputs)
        x = nn.relu(norm(name="depthwise_norm")(x))
        x = nn.Conv(self.width, (1, 1), use_bias=False, name="pointwise")(x)
        return nn.relu(norm(name="pointwise_norm")(x))


class MobileNetV1(nn.Module):
    """MobileNetV1: 4,231,976 parameters at width 1 and 1000 classes, BatchNorm's included.

    Attributes:
      classes: number of logits.
      width: multiplies the channels of every layer; none has fewer than 8.
      strides: of the first convolution and of the 13 pairs; `IMAGENET_STRIDES` for images of
        224 x 224, `CIFAR_STRIDES` for 32 x 32.
      shifts: how depthwise convolutions are taken, see `Depthwise`; changes no parameter.
    """

    classes: int = 1000
    width: float = 1.0
    strides: Sequence[int] = IMAGENET_STRIDES
    shifts: bool | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Logits [N, classes] from images [N, H, W, C]."""
        if len(self.strides) != len(WIDTHS):
            raise ValueError(f"{len(WIDTHS)} layers need as many strides, got {self.strides}.")
        widths = [max(8, int(width * self.width)) for width in WIDTHS]
        stem = nn.Conv(widths[0], (3, 3), self.strides[0], use_bias=False, name="stem")
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="stem_norm")
        x = nn.relu(norm(stem(inputs)))
        for i, (width, stride) in enumerate(zip(widths[1:], self.strides[1:], strict=True)):
            x = Separable(width, stride, self.shifts, name=f"separable_{i}")(x, train)
        return nn.Dense(self.classes, name="logits")(jnp.mean(x, axis=(1, 2)))


def mobilenet_cifar(width: float = 0.25, classes: int = 10) -> MobileNetV1:
    """MobileNetV1 for images of 32 x 32: its first convolution has no stride."""
    return MobileNetV1(classes, width, CIFAR_STRIDES)
