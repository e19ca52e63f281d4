"""What a network costs when some of its units are gone, and what one unit costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Cost(NamedTuple):
    """One matrix product or convolution: `flops` times the kept lengths of `axes`.

    Attributes:
      flops: FLOPs per index of all `axes`, repeats in loops included.
      axes: labels of the axes that can get shorter.
      size: bytes of its result per index of all `outputs`.
      outputs: labels of the axes of its result that can get shorter.
    """

    flops: int
    axes: tuple[np.ndarray, ...]
    size: int
    outputs: tuple[np.ndarray, ...]


def _kept(axes: Sequence[np.ndarray], flags: np.ndarray) -> int:
    return math.prod(int(np.count_nonzero(flags[ids])) for ids in axes)


def flops(products: Sequence[Cost], flags: np.ndarray) -> int:
    """FLOPs with the labels of `flags` kept."""
    return sum(product.flops * _kept(product.axes, flags) for product in products)


def activations(products: Sequence[Cost], flags: np.ndarray) -> int:
    """Bytes of all results with the labels of `flags` kept."""
    return sum(product.size * _kept(product.outputs, flags) for product in products)


def entries(coupling: Any, flags: np.ndarray, weights: Sequence[int] | None = None) -> int:
    """Entries of all leaves, each times its weight, with the labels of `flags` kept."""
    weights = weights or (1,) * len(coupling.labels)
    return sum(w * _kept(axes, flags) for w, axes in zip(weights, coupling.labels, strict=True))


def marginal(coupling: Any, what: str, labels: int) -> np.ndarray:
    """What removing the slices of each label alone saves, float64 [labels].

    Raises:
      ValueError: an unknown kind of cost.
    """
    parts: list[tuple[int, Sequence[np.ndarray]]]
    if what == "parameters":
        parts = [(1, axes) for axes in coupling.labels]
    elif what == "bytes":
        parts = list(zip(coupling.itemsizes, coupling.labels, strict=True))
    elif what == "flops":
        parts = [(product.flops, product.axes) for product in coupling.products]
    elif what == "activations":
        parts = [(product.size, product.outputs) for product in coupling.products]
    else:
        raise ValueError(
            f"A cost is 'parameters', 'bytes', 'flops' or 'activations', got {what!r}."
        )
    saved = np.zeros(labels)
    for factor, axes in parts:
        left = np.ones(labels)
        whole = float(factor)
        for ids in axes:
            whole *= len(ids)
            if ids.any():
                left *= 1 - np.bincount(ids, minlength=labels) / len(ids)
        saved += whole * (1 - left)
    saved[0] = 0
    return saved


def table(coupling: Any) -> str:
    """A line a group: units, slices, parameters and FLOPs a unit costs."""
    saved = coupling.unit_costs("parameters")
    work = coupling.unit_costs("flops")
    rows = [("group", "units", "slices of", "parameters / unit", "FLOPs / unit", "")]
    for name, group in coupling.groups.items():
        leaves = sorted({member.leaf for member in group.members})
        members = ", ".join(leaves[:3]) + (
            f" and {len(leaves) - 3} more" if len(leaves) > 3 else ""
        )
        rows.append(
            (
                name,
                str(group.units),
                members,
                _range(saved[name]),
                _range(work[name]),
                group.inexact and f"inexact: {group.inexact}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    lines.insert(1, "  ".join("-" * w for w in widths).rstrip())
    total = f"{coupling.units} units in {len(coupling.groups)} groups"
    lines.append(
        f"{total}; {coupling.parameters():,} parameters, {coupling.flops():,} FLOPs a call"
    )
    lines += [f"no rule for {text}: what it touches is pinned" for text in coupling.unknown]
    return "\n".join(lines)


def _range(numbers: np.ndarray) -> str:
    low, high = round(float(numbers.min())), round(float(numbers.max()))
    return f"{low:,}" if low == high else f"{low:,} .. {high:,}"
