"""LeNet-5, in the form pruning papers use it: max-pooling and ReLU."""

from collections.abc import Sequence

import jax
from flax import linen as nn

from jaxprune import max_pool


class LeNet5(nn.Module):
    """Two 5 x 5 convolutions with max-pooling, then a dense hidden layer and `classes` logits.

    430,500 weights (431,080 parameters) on 28 x 28 x 1 inputs, 10 classes and the usual widths.

    Attributes:
      classes: number of logits.
      widths: of the two convolutions and of the hidden layer.
    """

    classes: int = 10
    widths: Sequence[int] = (20, 50, 500)

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Logits [N, classes] from images [N, H, W, C]."""
        x = inputs
        for width in self.widths[:2]:
            x = nn.relu(nn.Conv(width, (5, 5), padding="VALID")(x))
            x = max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(self.widths[2])(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.classes)(x)
