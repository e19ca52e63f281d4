"""DenseNet-BC (Huang et al. 2017) for small images, with every layer's bottleneck width free."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.models.wide_resnet import check_middles


class DenseLayer(nn.Module):
    """A 1 x 1 and a 3 x 3 convolution, each after BatchNorm and ReLU; its outputs are appended.

    Attributes:
      growth: channels that are appended.
      middle: channels between the two convolutions.
      dtype: of the arithmetic, by default that of the parameters.
    """

    growth: int
    middle: int
    dtype: Any = None

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, C] to [N, H, W, C + growth]."""
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype
        )  # fmt: skip
        x = nn.relu(norm(name="first_norm")(inputs))
        x = conv(self.middle, (1, 1), name="first")(x)
        x = nn.relu(norm(name="second_norm")(x))
        x = conv(self.growth, (3, 3), padding=1, name="second")(x)
        return jnp.concatenate([inputs, x], axis=-1)


class DenseNet(nn.Module):
    """DenseNet-BC-depth: depth 100 and growth 12 have 769,162 parameters.

    Attributes:
      depth: 6n + 4; three blocks of n layers.
      growth: channels that every layer appends.
      classes: number of logits.
      bottleneck: the layers' middle width, in growths.
      middles: every layer's middle width instead, such as a pruned network's.
      dtype: of the arithmetic, by default that of the parameters.
    """

    depth: int = 100
    growth: int = 12
    classes: int = 10
    bottleneck: float = 4
    middles: tuple[int, ...] | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Logits [N, classes] from images [N, H, W, C]."""
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"A DenseNet-BC of three blocks has depth 6n + 4, got {self.depth}.")
        each = (self.depth - 4) // 6
        middles = self.middles or (max(round(self.bottleneck * self.growth), 1),) * (3 * each)
        check_middles(middles, 3 * each)
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype
        )  # fmt: skip
        x = conv(2 * self.growth, (3, 3), padding=1, name="stem")(inputs)
        for at, middle in enumerate(middles):
            if at and at % each == 0:
                name = f"transition_{at // each - 1}"
                x = nn.relu(norm(name=f"{name}_norm")(x))
                x = conv(x.shape[-1] // 2, (1, 1), name=name)(x)
                x = nn.avg_pool(x, (2, 2), (2, 2))
            x = DenseLayer(self.growth, middle, self.dtype, name=f"layer_{at}")(x, train)
        x = nn.relu(norm(name="norm")(x))
        float_type = jnp.promote_types(x.dtype, jnp.float32)
        return nn.Dense(self.classes, name="head")(jnp.mean(x, axis=(1, 2), dtype=float_type))
