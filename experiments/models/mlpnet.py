"""MLPNet: the small network for MNIST on which second-order pruning methods are compared."""

import jax
from flax import linen as nn


class MLPNet(nn.Module):
    """784-40-20-10 with ReLU and without biases: 32,360 weights, named fc1, fc2 and fc3.

    Inputs of any shape are flattened.

    Attributes:
      classes: number of logits.
    """

    classes: int = 10

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Logits [N, classes] from inputs [N, ...]."""
        x = inputs.reshape(inputs.shape[0], -1)
        x = nn.relu(nn.Dense(40, use_bias=False, name="fc1")(x))
        x = nn.relu(nn.Dense(20, use_bias=False, name="fc2")(x))
        return nn.Dense(self.classes, use_bias=False, name="fc3")(x)
