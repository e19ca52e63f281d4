"""Feed-forward classifiers."""

from collections.abc import Sequence

import jax
from flax import linen as nn


class MLP(nn.Module):
    """Dense layers with ReLU between them; inputs of any shape are flattened.

    Attributes:
      hidden: widths of the hidden layers.
      classes: number of logits.
    """

    hidden: Sequence[int]
    classes: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Logits [N, classes] from inputs [N, ...]."""
        x = inputs.reshape(inputs.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.classes)(x)


def lenet_300_100(classes: int = 10) -> MLP:
    """LeNet-300-100 (LeCun et al. 1998): 266,610 parameters on 28 x 28 inputs and 10 classes."""
    return MLP((300, 100), classes)
