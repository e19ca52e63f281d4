"""Networks, batches and calls of the curvature benchmark."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measuring  # isort: skip  # sets XLA's threads: before jax

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import jaxprune as jp
from experiments.models import MLP, LeNet5, ResNet, lenet_300_100

COMMAND = "python benchmarks/curvature.py"
INTERVAL = ["95 %", "pairs"]
Function = Callable[..., Any]

loss = optax.softmax_cross_entropy_with_integer_labels
mean_only: dict[str, Any] = {"second_moment": False}
root: dict[str, Any] = {"root": jp.curvature.softmax_root}


class TanhMLP(nn.Module):
    """Dense layers with tanh between them."""

    hidden: tuple[int, ...]
    classes: int = 10

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        x = inputs.reshape(inputs.shape[0], -1)
        for width in self.hidden:
            x = nn.tanh(nn.Dense(width)(x))
        return nn.Dense(self.classes)(x)


class Case(NamedTuple):
    """What is measured, and how often.

    Attributes:
      model: in Flax.
      shape: of one input.
      batch: number of examples.
      pairs: of measurements.
      per_example: gradients of all examples fit in memory, for `vmap(grad)`.
    """

    model: Any
    shape: tuple[int, ...]
    batch: int = 128
    pairs: int = 30
    per_example: bool = True


IMAGE = (28, 28, 1)
FULL = {
    "LeNet-300-100": Case(lenet_300_100(), IMAGE),
    "LeNet-5": Case(LeNet5(), IMAGE, pairs=15),
    "ResNet-20": Case(ResNet(depth=20), (32, 32, 3), pairs=9, per_example=False),
    "tanh MLP, 2 hidden": Case(TanhMLP((300, 100)), IMAGE),
    "tanh MLP, 4 hidden": Case(TanhMLP((100, 100, 100, 100)), IMAGE),
}
QUICK = {
    "LeNet-300-100": Case(MLP((12, 10), 10), (4, 4, 1), 16, 3),
    "LeNet-5": Case(LeNet5(), IMAGE, 4, 3),
    "ResNet-20": Case(ResNet(depth=8), (8, 8, 3), 4, 3, per_example=False),
    "tanh MLP, 2 hidden": Case(TanhMLP((12, 10)), (4, 4, 1), 16, 3),
    "tanh MLP, 4 hidden": Case(TanhMLP((8, 8, 8, 8)), (4, 4, 1), 16, 3),
}
QUICK_SPEED = ("LeNet-300-100", "tanh MLP, 2 hidden")  # the rest take long to compile


class Problem(NamedTuple):
    """A network at some weights, and a batch; `fixed` holds the statistics of BatchNorm."""

    apply: Function
    params: Any
    fixed: Any
    batch: tuple[jax.Array, jax.Array]


def problem(case: Case) -> Problem:
    """Fresh weights and random inputs; BatchNorm is frozen at the statistics of the batch."""
    inputs = jax.random.normal(jax.random.key(0), (case.batch, *case.shape))
    variables = jax.jit(case.model.init)(jax.random.key(1), inputs)
    params, fixed = variables["params"], {}
    if "batch_stats" in variables:
        step = partial(case.model.apply, train=True, mutable=["batch_stats"])
        moved = jax.jit(step)(variables, inputs)[1]["batch_stats"]
        undo = lambda new, old: (new - 0.9 * old) / 0.1  # the running average has a momentum of 0.9
        fixed = {"batch_stats": jax.tree.map(undo, moved, variables["batch_stats"])}
    apply = lambda params, inputs: case.model.apply({"params": params, **fixed}, inputs)
    return Problem(apply, params, fixed, (inputs, jnp.arange(case.batch) % 10))


def exact(apply: Function) -> Function:
    return jp.curvature.exact_diagonal(apply, loss, **root, **mean_only)


def gauss_newton(apply: Function) -> Function:
    return jp.curvature.gauss_newton_diagonal(apply, loss, **root, **mean_only)


def fisher(apply: Function) -> Function:
    return jp.curvature.fisher_diagonal(apply, loss, **mean_only)


def hutchinson(apply: Function, probes: int) -> Function:
    key = jax.random.key(2)
    return jp.curvature.hutchinson_diagonal(apply, loss, key=key, probes=probes)


def gradient(apply: Function) -> Function:
    """The unit: one jitted gradient of the mean loss."""
    mean_loss = lambda params, batch: jnp.mean(loss(apply(params, batch[0]), batch[1]))
    return jax.jit(jax.grad(mean_loss))


def squared_gradients(apply: Function) -> Function:
    """Squares of gradients as one writes them without a library."""
    alone = lambda params, x, t: loss(apply(params, x[None]), t[None])[0]
    each = jax.vmap(jax.grad(alone), (None, 0, 0))
    squares = lambda params, batch: each(params, *batch)
    return jax.jit(lambda p, b: jax.tree.map(lambda g: jnp.mean(g * g, axis=0), squares(p, b)))


def along_params(product: Function, params: Any, batch: Any) -> Any:
    return product(params, batch, params)


def waiting(function: Function, *args: Any) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(function(*args))


def compared(one: Callable[[], Any], other: Callable[[], Any], most: int) -> measuring.Ratio:
    """`most` pairs, or as many as fit 20 seconds; 6 at least, or `most`."""
    times = []
    for call in (one, other):
        call()
        start = measuring.clock()
        call()
        times.append(max(measuring.clock() - start, 1e-6))
    fit = 20 / (max(1, 0.05 / times[0]) * sum(times))  # a measurement is of 0.05 s at least
    return measuring.paired(one, other, min(most, max(6, int(fit))))
