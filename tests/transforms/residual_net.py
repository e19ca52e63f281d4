"""A small residual network whose units go while it trains, and what it is trained on."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import jaxprune as jp

N = 6


class Net(nn.Module):
    """A stem, two residual blocks with BatchNorm, a head."""

    widths: tuple[int, int] = (5, 6)

    @nn.compact
    def __call__(self, x, train=False):
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        x = nn.Conv(4, (3, 3), name="stem")(x)
        for block, width in enumerate(self.widths):
            hidden = nn.Conv(width, (3, 3), use_bias=False, name=f"first_{block}")(x)
            hidden = nn.relu(norm(name=f"norm_{block}")(hidden))
            x = nn.relu(x + nn.Conv(4, (3, 3), name=f"second_{block}")(hidden))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


MODEL = Net()
TRAIN = partial(MODEL.apply, train=True, mutable=["batch_stats"])
INNER = ("first_0", "first_1")


def drawn(*shape, seed=0):
    """Normal numbers."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def problem():
    """Variables in float64, their coupling, examples and classes."""
    with jax.enable_x64(True):
        x, y = drawn(N, 5, 5, 2), jnp.arange(N) % 3
        variables = MODEL.init(jax.random.key(0), x)
        variables = jax.tree.map(lambda leaf: leaf + 0.1 * drawn(*leaf.shape, seed=9), variables)
        coupling = jp.couple(MODEL.apply, variables, x)
        return variables, coupling, x, y


def light(problem):
    """The same in float32."""
    narrow = lambda leaf: leaf.astype(jnp.float32)
    variables, coupling, x, y = problem
    return jax.tree.map(narrow, variables), coupling, narrow(x), y


def losses(logits, y):
    """The loss of every example."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)
