"""An Inception network for small images, of the blocks of Inception-v3 (Szegedy et al. 2016)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxprune import max_pool


class Unit(nn.Module):
    """A convolution without bias, BatchNorm, ReLU.

    Attributes:
      width: channels.
      size: of the kernel.
    """

    width: int
    size: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, C] to [N, H, W, width]."""
        x = nn.Conv(self.width, self.size, padding="SAME", use_bias=False, name="conv")(inputs)
        return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x))


# Every branch: its units (width, size); those of the branch "pool" follow a 3 x 3 average.
Branches = dict[str, tuple[tuple[int, tuple[int, int]], ...]]
BLOCKS: tuple[Branches, ...] = (
    {  # figure 5: 5 x 5 as two 3 x 3
        "one": ((16, (1, 1)),),
        "three": ((12, (1, 1)), (16, (3, 3))),
        "five": ((16, (1, 1)), (24, (3, 3)), (24, (3, 3))),
        "pool": ((8, (1, 1)),),
    },
    {  # figure 6: 7 x 7 as 1 x 7 and 7 x 1
        "one": ((48, (1, 1)),),
        "seven": ((32, (1, 1)), (32, (1, 7)), (48, (7, 1))),
        "sevens": ((32, (1, 1)), (32, (7, 1)), (32, (1, 7)), (48, (7, 1))),
        "pool": ((48, (1, 1)),),
    },
    {  # figure 6 with 3 x 3, wider
        "one": ((80, (1, 1)),),
        "three": ((64, (1, 1)), (64, (1, 3)), (96, (3, 1))),
        "threes": ((64, (1, 1)), (64, (3, 3)), (64, (1, 3)), (96, (3, 1))),
        "pool": ((48, (1, 1)),),
    },
)
STEM = 32


class InceptionBlock(nn.Module):
    """Branches beside each other, concatenated.

    Attributes:
      branches: a row of `BLOCKS`, in items.
      width: multiplies the channels of every unit.
    """

    branches: tuple[tuple[str, tuple[tuple[int, tuple[int, int]], ...]], ...]
    width: float = 1.0

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, C] to [N, H, W, sum of the last widths]."""
        ends = []
        for branch, units in self.branches:
            x = inputs
            if branch == "pool":
                x = nn.avg_pool(x, (3, 3), padding="SAME")
            for i, (width, size) in enumerate(units):
                x = Unit(scaled(width, self.width), size, name=f"{branch}_{i}")(x, train)
            ends.append(x)
        return jnp.concatenate(ends, axis=-1)


def scaled(channels: int, width: float) -> int:
    """So many channels at a width multiplier, at least 1."""
    return max(1, round(channels * width))


class SmallInception(nn.Module):
    """A stem and three Inception blocks at 16 x 16, 8 x 8 and 4 x 4 places of a 32 x 32 image.

    Attributes:
      classes: number of logits.
      width: multiplies the channels of every layer.
    """

    classes: int = 10
    width: float = 1.0

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Logits [N, classes] from images [N, H, W, C], H and W at least 8."""
        halved = partial(max_pool, window_shape=(2, 2), strides=(2, 2))
        x = Unit(scaled(STEM, self.width), (3, 3), name="stem")(inputs, train)
        for i, branches in enumerate(BLOCKS):
            block = InceptionBlock(tuple(branches.items()), self.width, name=f"block_{i}")
            x = block(halved(x), train)
        return nn.Dense(self.classes, name="logits")(jnp.mean(x, axis=(1, 2)))
