"""Comparisons whose tolerance is a count of roundings, and a counter of compilations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, _, **__: _COMPILED.append(name) if name.endswith("backend_compile_duration") else 0
)


def assert_near(actual: Any, desired: Any, dtype: Any, roundings: float = 100) -> None:
    """`|actual - desired| <= roundings * eps * max|desired|`, eps that of the dtype computed in."""
    actual, desired = np.asarray(actual, np.float64), np.asarray(desired, np.float64)
    assert actual.shape == desired.shape
    assert np.isfinite(actual).all()
    scale = np.max(np.abs(desired), initial=0)
    allowed = roundings * float(jnp.finfo(dtype).eps) * scale
    worst = np.max(np.abs(actual - desired), initial=0)
    assert worst <= allowed, f"off by {worst:.3g}, {allowed:.3g} allowed at scale {scale:.3g}"


def assert_trees_equal(actual: Any, desired: Any) -> None:
    """The same structure, shapes, dtypes and bits (PRNG keys by their data)."""
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        if jnp.issubdtype(jnp.asarray(b).dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.tobytes() == b.tobytes()


@contextlib.contextmanager
def no_compilation() -> Iterator[None]:
    """Fail if XLA compiles anything inside."""
    before = len(_COMPILED)
    yield
    assert len(_COMPILED) == before, f"{len(_COMPILED) - before} compilations"
