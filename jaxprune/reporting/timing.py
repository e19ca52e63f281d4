"""Milliseconds of a call, measured as JAX must be measured: compiled, warmed up, waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Latency(NamedTuple):
    """How long one call takes.

    Attributes:
      median_ms: median over the repeats, milliseconds.
      lower_ms: lower quartile.
      upper_ms: upper quartile.
      repeats: number of timed calls.
      device: what ran it, such as "cpu" or "4 x NVIDIA A100-SXM4-40GB".
    """

    median_ms: float
    lower_ms: float
    upper_ms: float
    repeats: int
    device: str


def latency(
    function: Callable[..., Any], *args: Any, repeats: int = 20, warmup: int = 3
) -> Latency:
    """Time `jax.jit(function)(*args)`; compilation and warm-up are not counted.

    Args:
      function: traceable; already jitted functions are fine.
      *args: pytrees of concrete arrays; NumPy arrays are put on the device first.
      repeats: timed calls, at least 1, each waited for (`jax.block_until_ready`).
      warmup: calls before the first timed one, at least 1 (it compiles).

    Raises:
      ValueError: `repeats` or `warmup` below 1. TypeError: an argument holds no values to run on.

    Example:
      >>> measured = latency(jax.numpy.sin, 1.0, repeats=5)
      >>> measured.repeats, measured.lower_ms <= measured.median_ms <= measured.upper_ms
      (5, True)
    """
    return latencies([(function, args)], repeats=repeats, warmup=warmup)[0]


def latencies(
    calls: list[tuple[Callable[..., Any], tuple[Any, ...]]], *, repeats: int = 20, warmup: int = 3
) -> list[Latency]:
    """Several calls timed side by side, in turns, so that a busy machine slows all of them alike.

    Args:
      calls: `(function, args)` pairs.
      repeats: timed calls of each, at least 1.
      warmup: calls of each before the first timed one, at least 1.

    Example:
      >>> one, two = latencies([(jax.numpy.sin, (1.0,)), (jax.numpy.cos, (1.0,))], repeats=2)
    """
    _check(calls, repeats, warmup)
    compiled: dict[Any, Any] = {}  # one compilation for calls of the same function
    ready = [
        (compiled.setdefault(function, jax.jit(function)), jax.device_put(args))
        for function, args in calls
    ]
    for function, args in ready * warmup:
        outputs = jax.block_until_ready(function(*args))
    device = _device(outputs)
    times = np.array([[_milliseconds(*call) for call in ready] for _ in range(repeats)])
    quartiles = np.percentile(times, (50, 25, 75), axis=0).T.tolist()
    return [Latency(median, low, high, repeats, device) for median, low, high in quartiles]


def _milliseconds(function: Callable[..., Any], args: tuple[Any, ...]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    return 1e3 * (time.perf_counter() - start)


def _check(calls: list[Any], repeats: int, warmup: int) -> None:
    for name, value in (("repeats", repeats), ("warmup", warmup)):
        if value < 1:
            raise ValueError(f"`{name}` is {value}; at least 1 is needed (warm-up compiles).")
    for leaf in jax.tree.leaves([args for _, args in calls]):
        if isinstance(leaf, jax.ShapeDtypeStruct | jax.core.Tracer):
            raise TypeError(
                f"Cannot time a call on {type(leaf).__name__} of shape {leaf.shape}: it has no "
                "values. Pass concrete arrays, outside jit."
            )


def _device(outputs: Any) -> str:
    arrays = [x for x in jax.tree.leaves(outputs) if isinstance(x, jax.Array)]
    devices = list(arrays[0].devices()) if arrays else jax.devices()[:1]
    kind = devices[0].device_kind
    return kind if len(devices) == 1 else f"{len(devices)} x {kind}"
