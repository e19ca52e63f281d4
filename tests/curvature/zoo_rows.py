"""The rows of the zoo, and what its models are made with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

N, CLASSES = 4, 3
NHWC = ("NHWC", "HWIO", "NHWC")


class Net(NamedTuple):
    """`apply(params, inputs) -> logits [N, 3]`, and a batch with labels; all float64."""

    params: Any
    apply: Any
    batch: Any


class Row(NamedTuple):
    """A model of the zoo.

    Attributes:
      make: builds it; to be called with 64-bit types on.
      slow: names of the leaves in `fallback_paths`; None for all.
      hessian: is the Gauss-Newton diagonal said to be the Hessian's?
      differs: are the two known to differ?
    """

    make: Callable[[], Net]
    slow: tuple[str, ...] | None = ()
    hessian: bool = True
    differs: bool = False


ZOO: dict[str, Row] = {}
smooth = {"hessian": False, "differs": True}


def row(name: str, **columns: Any) -> Callable[[Any], Any]:
    def add(make: Callable[[], Net]) -> Callable[[], Net]:
        ZOO[name] = Row(make, **columns)
        return make

    return add


class Draw:
    def __init__(self, seed: int = 0):
        self.rng = np.random.default_rng(seed)

    def __call__(self, *shape: int) -> Any:
        return jnp.asarray(self.rng.normal(size=shape) * 0.7, jnp.float64)

    def integers(self, high: int, *shape: int) -> Any:
        return jnp.asarray(self.rng.integers(0, high, shape), jnp.int32)


def plain(shapes: dict[str, tuple[int, ...]], inputs: Any, apply: Any) -> Net:
    """A model over a dict of arrays; `inputs` is a shape, or the inputs themselves."""
    draw = Draw(len(shapes) + sum(map(len, shapes.values())))
    width = lambda shape: max(1, int(np.prod(shape[:-1]))) ** 0.5
    params = {name: draw(*shape) * 1.4 / width(shape) for name, shape in shapes.items()}
    x = draw(N, *inputs) if isinstance(inputs, tuple) else inputs
    return Net(params, apply, (x, draw.integers(CLASSES, N)))


def linen(module: nn.Module, inputs: Any, **options: Any) -> Net:
    """A Flax module; all its variables are the parameters."""
    draw = Draw(1)
    x = draw(N, *inputs) if isinstance(inputs, tuple) else inputs
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    fill = lambda v: draw(*v.shape) if len(v.shape) > 1 else 0.3 + jnp.abs(draw(*v.shape))
    variables = jax.tree.map(fill, shapes)  # vectors, variances among them, are positive

    def apply(variables: Any, x: Any) -> Any:
        out = module.apply(variables, x, **options)
        return out[0] if options else out

    return Net(variables, apply, (x, draw.integers(CLASSES, N)))


def flat(x: Any) -> Any:
    return x.reshape(x.shape[0], -1)


relu = jax.nn.relu

# Dense layers, and what a weight can go through before it enters one.
