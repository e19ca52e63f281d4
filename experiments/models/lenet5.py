"""LeNet-5, in the form pruning papers use it: max-pooling and ReLU."""

import jax
from flax import linen as nn


class LeNet5(nn.Module):
    """Two 5 x 5 convolutions with max-pooling, then dense layers of 500 and `classes`.

    430,500 weights (431,080 parameters) on 28 x 28 x 1 inputs and 10 classes.

    Attributes:
      classes: number of logits.
    """

    classes: int = 10

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Logits [N, classes] from images [N, H, W, C]."""
        x = inputs
        for width in (20, 50):
            x = nn.relu(nn.Conv(width, (5, 5), padding="VALID")(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(500)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.classes)(x)
