"""The entries of a unit as one number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees


def _norm(xp: Any) -> Callable[..., Any]:
    return lambda x, axis: xp.sqrt(xp.sum(xp.square(x), axis=axis))


REDUCTIONS: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "sum": lambda xp: xp.sum,
    "mean": lambda xp: xp.mean,
    "max": lambda xp: xp.max,
    "norm": _norm,
}
"""By name, `numpy or jax.numpy -> (entries [units, n], axis) -> [units]`."""


def rows(leaf: Any, axis: int, positions: np.ndarray, units: int) -> Any:
    """A leaf's slices along an axis, those of one unit in one row: [units, n]."""
    xp: Any = jnp if trees.is_traced(leaf) else np  # jnp compiles leaf by leaf
    return xp.moveaxis(xp.asarray(leaf), axis, 0)[positions].reshape(units, -1)


def reduced(parts: Sequence[Any], how: str | Callable[..., Any]) -> jax.Array:
    """Rows of several leaves, put beside each other and reduced to one number a row."""
    traced = trees.is_traced(list(parts))
    entries: Any = (jnp if traced else np).concatenate(parts, axis=1)
    if not isinstance(how, str):
        return how(jnp.asarray(entries), axis=1)
    # NumPy adds narrow numbers up in their own precision.
    wide = not traced and entries.dtype in (np.float32, np.float64)
    found = REDUCTIONS[how](np if wide else jnp)(entries, axis=1)
    return jax.device_put(found) if wide else found
