"""Equations evaluated so that a CPU takes their derivative faster: max-pooling, broadcasting."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.jaxpr import equations
from jaxprune.jaxpr.equations import Equation
from jaxprune.pooling import Window, pool

_WIDTH = 256  # entries of a row that is worth adding up as a whole
_OPERATIONS = ("add", "sub", "mul", "div")


def faster(equation: Equation, operands: list[Any]) -> list[Any] | None:
    """The results of an equation that has a faster way, or None."""
    return _pooled(equation, operands) or _spread_out(equation, operands)


def _pooled(equation: Equation, operands: list[Any]) -> list[Any] | None:
    """Max-pooling with our own gradient; None for anything else."""
    p = equation.params
    if equation.name != "reduce_window_max" or {*p["base_dilation"], *p["window_dilation"]} != {1}:
        return None
    if not jnp.issubdtype(operands[0].dtype, jnp.floating):
        return None
    window = Window(p["window_dimensions"], p["window_strides"], tuple(map(tuple, p["padding"])))
    return [pool(window, operands[0])]


def _spread_out(equation: Equation, operands: list[Any]) -> list[Any] | None:
    """A sum or product with a vector of channels, the vector spread explicitly; or None."""
    if equation.name not in _OPERATIONS or len(operands) != 2:
        return None
    shapes = [np.shape(x) for x in operands]
    for small, large in ((0, 1), (1, 0)):
        channels = shapes[small][-1:]
        fits = len(shapes[small]) == len(shapes[large]) and channels == shapes[large][-1:]
        positions = math.prod(shapes[large][:-1])
        if fits and math.prod(shapes[small][:-1]) == 1 and positions >= 64:
            if not all(jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in operands):
                return None
            operands = list(operands)
            operands[small] = _spread(operands[small], shapes[large][:-1])
            return equations.apply(equation, operands)
    return None


def _spread(x: jax.Array, front: tuple[int, ...]) -> jax.Array:
    """x [1, ..., 1, c] as [*front, c]; its transpose adds long rows before it adds short ones."""
    shape = (*front, x.shape[-1])

    def back(cotangent: jax.Array) -> jax.Array:
        channels, positions = shape[-1], math.prod(front)
        together = math.gcd(positions, 1 << max(0, (_WIDTH // channels).bit_length()))
        rows = cotangent.reshape(positions // together, together * channels)
        return jnp.sum(jnp.sum(rows, axis=0).reshape(together, channels), axis=0).reshape(x.shape)

    spread = jax.custom_vjp(lambda x: jnp.broadcast_to(x, shape))
    spread.defvjp(lambda x: (jnp.broadcast_to(x, shape), None), lambda _, c: (back(c),))
    return spread(x)
