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
    """Slices of an array along some of its axes."""
    if not kept:
        return leaf
    if trees.on_host(leaf):
        array = np.asarray(leaf)
        for axis, where in kept:
            array = np.take(array, where, axis=axis)
        return trees.from_host(array, leaf)
    for axis, where in kept:
        leaf = jnp.take(jnp.asarray(leaf), where, axis=axis)
    return leaf


def numbers(leaf: Any) -> np.ndarray:
    """A leaf in float64; zeros for PRNG keys."""
    if jax.dtypes.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.extended):
        return np.zeros(np.shape(leaf))
    return np.asarray(leaf).astype(np.float64)
