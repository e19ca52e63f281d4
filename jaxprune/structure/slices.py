"""Slices taken out of arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

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
    sharding = _on_mesh(leaf)
    if sharding is not None:
        return _take_sharded(leaf, sharding, kept)
    for axis, where in kept:
        leaf = jnp.take(jnp.asarray(leaf), where, axis=axis)
    return leaf


def _on_mesh(leaf: Any) -> NamedSharding | None:
    """Where a concrete array lies on a mesh of several devices, or None."""
    if not isinstance(leaf, jax.Array) or trees.is_traced(leaf):
        return None
    sharding = leaf.sharding
    return sharding if isinstance(sharding, NamedSharding) and sharding.num_devices > 1 else None


def _take_sharded(
    leaf: jax.Array, sharding: NamedSharding, kept: Sequence[tuple[int, np.ndarray]]
) -> jax.Array:
    """The same on a mesh: an axis stays cut as it was if its new size can be, or is whole."""
    shape = list(leaf.shape)
    for axis, where in kept:
        shape[axis] = len(where)
    place = smaller_sharding(sharding, shape)
    auto = jax.sharding.Mesh(place.mesh.devices, place.mesh.axis_names)
    old, new = (NamedSharding(auto, s.spec) for s in (sharding, place))

    @jax.jit(out_shardings=new)
    def take(array: jax.Array) -> jax.Array:
        for axis, where in kept:
            array = jnp.take(array, where, axis=axis)
        return array

    return jax.device_put(take(jax.device_put(leaf, old)), place)


def smaller_sharding(sharding: NamedSharding, shape: Sequence[int]) -> NamedSharding:
    """A sharding for other sizes: without the mesh axes of an axis that they do not divide."""
    spec: list[Any] = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
    for axis, size in enumerate(shape):
        names = spec[axis] if isinstance(spec[axis], tuple) else (spec[axis],)
        if size % math.prod(sharding.mesh.shape[name] for name in names if name is not None):
            spec[axis] = None
    return NamedSharding(sharding.mesh, PartitionSpec(*spec), memory_kind=sharding.memory_kind)


def numbers(leaf: Any) -> np.ndarray:
    """A leaf in float64, a complex one in complex128; zeros for PRNG keys."""
    if jax.dtypes.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.extended):
        return np.zeros(np.shape(leaf))
    array = np.asarray(leaf)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)
