"""Table 1 of the structure benchmark: how long it takes to find what lives together."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measuring  # isort: skip  # sets XLA's threads: before jax

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from benchmarks.structure_nets import COMMAND, DenseNet, ResNet, ViT, count, shapes_of

IMAGENET, CIFAR = (1, 224, 224, 3), (1, 32, 32, 3)
FULL: dict[str, tuple[Any, tuple[int, ...]]] = {
    "ResNet, 145 convolutions": (ResNet((3, 9, 31, 3), True, stem=(32, 32, 64)), IMAGENET),
    "ResNet-18": (ResNet((2, 2, 2, 2)), IMAGENET),
    "ResNet-50": (ResNet((3, 4, 6, 3), True), IMAGENET),
    "DenseNet-BC-100-12": (DenseNet(), CIFAR),
    "ViT-S/16": (ViT(), IMAGENET),
}
QUICK: dict[str, tuple[Any, tuple[int, ...]]] = {
    "ResNet, 6 convolutions": (ResNet((1, 1), width=4, stem=(4,), classes=3), (1, 16, 16, 3)),
    "ViT": (ViT(4, 8, 1, 2, 3), (1, 8, 8, 3)),
}


Call = tuple[Callable[[], Any], Callable[[Any], Any]]
"""What is done first, untimed, and what is timed: a function of the result of the first."""


def in_turns(calls: Sequence[Call], pairs: int) -> np.ndarray:
    """Seconds of calls that are timed one at a time, in turns: [pairs, calls].

    Args:
      calls: what is timed; the order inside a round alternates.
      pairs: number of rounds.
    """
    times = np.empty((pairs, len(calls)))
    places = list(range(len(calls)))
    for i in range(pairs):
        for j in places if i % 2 else places[::-1]:
            prepare, run = calls[j]
            prepared = prepare()
            start = measuring.clock()
            run(prepared)
            times[i, j] = measuring.clock() - start
    return times


def interval(ratios: np.ndarray) -> str:
    """The median of paired ratios with its 95 % interval."""
    ends = measuring.interval_told(measuring.interval_of(ratios), 2)
    return f"{np.median(ratios):.2f} ({ends})"


def trace(quick: bool) -> None:
    """Abstract shapes only. JAX's caches of traces are emptied before each call, as they are when a
    network is coupled for the first time; `warm` leaves them."""
    rows = []
    pairs = 3 if quick else 11
    empty = lambda: (jax.clear_caches(), gc.collect())
    for name, (module, shape) in (QUICK if quick else FULL).items():
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        variables = shapes_of(module, x)
        # A new function each time: JAX keeps a jaxpr by the function it is of.
        jaxpr = lambda _, m=module, v=variables, x=x: jax.make_jaxpr(partial(m.apply))(v, x)
        couple = lambda _, m=module, v=variables, x=x: jp.couple(partial(m.apply), v, x)
        found = couple(None)
        cold = in_turns([(empty, jaxpr), (empty, couple)], pairs)
        warm = in_turns([(gc.collect, jaxpr), (gc.collect, couple)], pairs)
        alone, whole = cold.T
        rows.append(
            [
                name,
                f"{count(variables):,}",
                f"{found.units:,}",
                f"{len(found.groups)}",
                f"{np.median(whole):.3f}",
                f"{whole.min():.3f} .. {whole.max():.3f}",
                f"{np.median(alone):.3f}",
                f"{np.median(whole - alone):.3f}",
                interval(whole / alone),
                str(pairs),
                " / ".join(f"{number:.3f}" for number in np.median(warm, axis=0)[::-1]),
            ]
        )
    header = ["network", "parameters", "units", "groups", "couple s", "range", "make_jaxpr s"]
    header += ["the rest s", "x make_jaxpr (95 %)", "pairs", "both s, warm"]
    measuring.publish("structure_trace", f"{COMMAND} --only trace", header, rows)
