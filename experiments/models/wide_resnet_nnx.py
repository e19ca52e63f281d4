"""The wide residual network of `wide_resnet.py` in Flax NNX: the same layers, names and numbers."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.wide_resnet import STAGES, check_middles, middle_widths, wide_widths


class NNXWideBlock(nnx.Module):
    """Two 3 x 3 convolutions, each after BatchNorm and ReLU, and a shortcut.

    Args:
      inputs: channels that go in.
      width: channels that come out.
      middle: channels between the two convolutions.
      stride: of the first.
      rngs: for first weights.
    """

    def __init__(self, inputs: int, width: int, middle: int, stride: int, rngs: nnx.Rngs):
        conv = partial(nnx.Conv, use_bias=False, rngs=rngs)
        self.first_norm = nnx.BatchNorm(inputs, momentum=0.9, rngs=rngs)
        self.first = conv(inputs, middle, (3, 3), strides=stride, padding=1)
        self.second_norm = nnx.BatchNorm(middle, momentum=0.9, rngs=rngs)
        self.second = conv(middle, width, (3, 3), padding=1)
        self.has_shortcut = inputs != width or stride > 1
        if self.has_shortcut:
            self.shortcut = conv(inputs, width, (1, 1), strides=stride, padding=0)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """[N, H, W, C] to [N, H / stride, W / stride, width]."""
        x = nnx.relu(self.first_norm(inputs))
        shortcut = self.shortcut(x) if self.has_shortcut else inputs
        x = nnx.relu(self.second_norm(self.first(x)))
        return shortcut + self.second(x)


class NNXWideResNet(nnx.Module):
    """WRN-depth-width, see `WideResNet`; `train()` and `eval()` switch its BatchNorms.

    Args:
      depth: 6n + 4.
      width: times 16, 32 and 64 channels.
      classes: number of logits.
      z: the middle widths as a multiple of the output widths.
      middles: every block's middle width instead.
      channels: of the images.
      rngs: for first weights.
    """

    def __init__(
        self,
        depth: int = 40,
        width: float = 2,
        classes: int = 10,
        z: float = 1.0,
        middles: tuple[int, ...] | None = None,
        channels: int = 3,
        *,
        rngs: nnx.Rngs,
    ):
        outer = wide_widths(depth, width)
        middles = middles or middle_widths(outer, z)
        check_middles(middles, len(outer))
        each, before = len(outer) // 3, STAGES[0]
        self.stem = nnx.Conv(channels, before, (3, 3), padding=1, use_bias=False, rngs=rngs)
        blocks = []
        for at, (wide, middle) in enumerate(zip(outer, middles, strict=True)):
            stride = 2 if at % each == 0 and at else 1
            blocks.append(NNXWideBlock(before, wide, middle, stride, rngs))
            before = wide
        self.blocks = nnx.List(blocks)
        self.norm = nnx.BatchNorm(before, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(before, classes, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Logits [N, classes] from images [N, H, W, C]."""
        x = self.stem(inputs)
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(nnx.relu(self.norm(x)), axis=(1, 2)))
