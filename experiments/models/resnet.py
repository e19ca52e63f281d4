"""ResNets for small images (He et al. 2016, section 4.2): depth 6n + 2, widths 16, 32, 64."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut without parameters.

    Attributes:
      width: channels.
      stride: of the first convolution.
    """

    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, C] to [N, H / stride, W / stride, width]."""
        conv = partial(nn.Conv, self.width, (3, 3), padding="SAME", use_bias=False)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        x = nn.relu(norm()(conv(strides=self.stride)(inputs)))
        x = norm()(conv()(x))
        shortcut = inputs[:, :: self.stride, :: self.stride]
        missing = self.width - shortcut.shape[-1]
        shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, missing)))
        return nn.relu(x + shortcut)


class ResNet(nn.Module):
    """ResNet-(6n + 2): ResNet-20 has n = 3, and 0.27 million parameters on CIFAR-10.

    Attributes:
      depth: 6n + 2.
      classes: number of logits.
    """

    depth: int = 20
    classes: int = 10

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Logits [N, classes] from images [N, H, W, C]."""
        if self.depth < 8 or (self.depth - 2) % 6:
            raise ValueError(f"A ResNet of this kind has depth 6n + 2 >= 8, got {self.depth}.")
        x = nn.Conv(16, (3, 3), padding="SAME", use_bias=False)(inputs)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        for stage, width in enumerate((16, 32, 64)):
            for block in range((self.depth - 2) // 6):
                x = Block(width, 2 if stage and not block else 1)(x, train)
        return nn.Dense(self.classes)(jnp.mean(x, axis=(1, 2)))
