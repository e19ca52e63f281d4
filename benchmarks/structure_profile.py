"""Where a compiled network spends its time: in products, and in which kernels.

XLA has two kinds on a CPU: a convolution or matrix product by itself, and a fusion that holds
products and what surrounds them.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measuring  # isort: skip  # sets XLA's threads: before jax  # noqa: F401

import jax

PRODUCT = re.compile(r"[ )](convolution|dot)\(")
HEAD = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = ")
CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.-]+)")


class Profile(NamedTuple):
    """Shares of the time of all kernels.

    Attributes:
      alone: of kernels that are one convolution or matrix product.
      fused: of kernels with products in them and what surrounds these.
    """

    alone: float
    fused: float

    @property
    def products(self) -> float:
        """Of all kernels with a product."""
        return self.alone + self.fused


def kinds(hlo: str) -> dict[str, str]:
    """Of a compiled program's instructions with products: "alone" or "fused"."""
    holds: set[str] = set()  # computations with a product
    calls: dict[str, set[str]] = {}
    found: dict[str, str] = {}
    inside = ""
    for line in hlo.splitlines():
        if head := HEAD.match(line):
            inside = head[1]
        elif here := INSTRUCTION.match(line):
            if PRODUCT.search(line):
                holds.add(inside)
                found[here[1]] = "alone"
            for called in CALLED.findall(line):
                calls.setdefault(called, set()).add(here[1])
    for computation in holds:
        found |= dict.fromkeys(calls.get(computation, ()), "fused")
    return found


def profile(compiled: Any, *args: Any, times: int = 3) -> Profile:
    """Run a compiled function under JAX's profiler and sort the time of its kernels."""
    hlo = compiled.as_text()
    sort = kinds(hlo)
    kernels = {found[1] for line in hlo.splitlines() if (found := INSTRUCTION.match(line))}
    spent = {"alone": 0.0, "fused": 0.0, "rest": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(times):
                jax.block_until_ready(compiled(*args))
        (path,) = Path(folder).rglob("*.xplane.pb")
        for event in events(path):
            if event.name in kernels:
                spent[sort.get(event.name, "rest")] += event.duration_ns
    total = sum(spent.values()) or float("nan")  # a network of a few units has no events
    return Profile(spent["alone"] / total, spent["fused"] / total)


def events(path: Path) -> Any:
    """All events of all threads."""
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            yield from line.events


def compiled(function: Callable[..., Any], *args: Any) -> Any:
    return jax.jit(function).lower(*args).compile()
