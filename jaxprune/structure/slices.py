"""Slices taken out of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees


def cut(leaf: Any, axes: Sequence[np.ndarray], flags: np.ndarray) -> Any:
    """A leaf without the slices whose flag is False; of an abstract leaf, the shape."""
    kept = [(axis, np.flatnonzero(flags[ids])) for axis, ids in enumerate(axes)]
    kept = [(axis, where) for axis, where in kept if len(where) < len(axes[axis])]
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(tuple(int(flags[ids].sum()) for ids in axes), leaf.dtype)
    return take_slices(leaf, kept)


def take_slices(leaf: Any, kept: Sequence[tuple[int, np.ndarray]]) -> Any:
    """Slices of an array along some of its axes.

    In an ordinary CPU array by NumPy: XLA would compile a program for every shape.
    """
    if not kept:
        return leaf
    if isinstance(leaf, jax.Array) and not trees.is_traced(leaf) and _on_host(leaf):
        for axis, where in kept:
            leaf = np.take(np.asarray(leaf), where, axis=axis)
        return jnp.asarray(leaf)
    for axis, where in kept:
        leaf = jnp.take(jnp.asarray(leaf), where, axis=axis)
    return leaf


def _on_host(leaf: jax.Array) -> bool:
    plain = not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)
    return plain and leaf.devices() == {jax.devices("cpu")[0]} == {jax.devices()[0]}
