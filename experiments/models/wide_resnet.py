"""Wide residual networks (Zagoruyko and Komodakis 2016), with every block's middle width free."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

STAGES = (16, 32, 64)


def wide_widths(depth: int, width: float) -> tuple[int, ...]:
    """The output width of every block of WRN-depth-width.

    Raises:
      ValueError: the depth is not 6n + 4.

    Example:
      >>> wide_widths(16, 2)
      (32, 32, 64, 64, 128, 128)
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"A wide ResNet of this kind has depth 6n + 4 >= 10, got {depth}.")
    return tuple(round(width * stage) for stage in STAGES for _ in range((depth - 4) // 6))


def middle_widths(outer: Sequence[int], z: float) -> tuple[int, ...]:
    """Middle widths with one multiplier: z times the output width, at least 1.

    Example:
      >>> middle_widths((32, 64), 0.5)
      (16, 32)
    """
    return tuple(max(round(z * width), 1) for width in outer)


class WideBlock(nn.Module):
    """Two 3 x 3 convolutions, each after BatchNorm and ReLU, and a shortcut.

    Attributes:
      width: channels that come out.
      middle: channels between the two convolutions.
      stride: of the first.
      dtype: of the arithmetic, by default that of the parameters.
    """

    width: int
    middle: int
    stride: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, C] to [N, H / stride, W / stride, width]."""
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype
        )  # fmt: skip
        x = nn.relu(norm(name="first_norm")(inputs))
        shortcut = inputs
        if inputs.shape[-1] != self.width or self.stride > 1:
            stride = (self.stride, self.stride)
            shortcut = conv(self.width, (1, 1), strides=stride, padding=0, name="shortcut")(x)
        x = conv(self.middle, (3, 3), strides=self.stride, padding=1, name="first")(x)
        x = nn.relu(norm(name="second_norm")(x))
        return shortcut + conv(self.width, (3, 3), padding=1, name="second")(x)


class WideResNet(nn.Module):
    """WRN-depth-width: WRN-40-2 has 2,243,546 parameters and 328.3 million multiply-adds.

    (327.6 million in products, the rest one for every number that BatchNorm puts out.)

    Attributes:
      depth: 6n + 4.
      width: times 16, 32 and 64 channels.
      classes: number of logits.
      z: the middle widths as a multiple of the output widths.
      middles: every block's middle width instead, such as a pruned network's.
      dtype: of the arithmetic, by default that of the parameters.
    """

    depth: int = 40
    width: float = 2
    classes: int = 10
    z: float = 1.0
    middles: tuple[int, ...] | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Logits [N, classes] from images [N, H, W, C]."""
        outer = wide_widths(self.depth, self.width)
        middles = self.middles or middle_widths(outer, self.z)
        check_middles(middles, len(outer))
        norm = partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype
        )  # fmt: skip
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        x = conv(STAGES[0], (3, 3), padding=1, name="stem")(inputs)
        each = len(outer) // 3
        for at, (wide, middle) in enumerate(zip(outer, middles, strict=True)):
            stride = 2 if at % each == 0 and at else 1
            x = WideBlock(wide, middle, stride, self.dtype, name=f"block_{at}")(x, train)
        x = nn.relu(norm(name="norm")(x))
        float_type = jnp.promote_types(x.dtype, jnp.float32)
        return nn.Dense(self.classes, name="head")(jnp.mean(x, axis=(1, 2), dtype=float_type))


def check_middles(middles: Sequence[int], blocks: int) -> None:
    """Raise unless there is a middle width for every block.

    Raises:
      ValueError: another number of widths, or one below 1.
    """
    if len(middles) != blocks or min(middles) < 1:
        raise ValueError(f"{blocks} blocks have {blocks} middle widths >= 1, got {list(middles)}.")
