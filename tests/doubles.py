"""Selections again, in plain numpy: stable sorts and loops, as slow and as plain as can be.

Every function takes the scores of the prunable leaves, in order, and returns their masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

Arrays = list[np.ndarray]


def flushed(x: np.ndarray) -> np.ndarray:
    """XLA on CPU compares subnormal numbers as zero."""
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, x.dtype.type(0), x)


def lose(scores: np.ndarray, k: int) -> np.ndarray:
    """Mask of one part: its k lowest go, ties by position; -inf is never kept."""
    mask = np.ones(scores.size, bool)
    mask[np.argsort(scores.ravel(), kind="stable")[:k]] = False
    return mask.reshape(scores.shape) & (scores > -np.inf)


def one_ranking(scores: Arrays, sparsity: float, floor: int = 1) -> Arrays:
    """Each leaf's `floor` best leave first; the rest is one ranking, in tree order."""
    masks = [np.ones(s.size, bool) for s in scores]
    rest = []
    for i, s in enumerate(scores):
        order = np.argsort(s.ravel(), kind="stable")
        alive = int((s > -np.inf).sum())
        open_ = np.sort(order[: s.size - min(floor, alive)])
        rest += [(s.ravel()[j], i, j) for j in open_]
    goes = round(sparsity * sum(s.size for s in scores))
    for index in np.argsort([value for value, _, _ in rest], kind="stable")[:goes]:
        _, i, j = rest[index]
        masks[i][j] = False
    return [m.reshape(s.shape) & (s > -np.inf) for m, s in zip(masks, scores, strict=True)]


def by_leaf(scores: Arrays, sparsities: list[float]) -> Arrays:
    return [lose(s, round(p * s.size)) for s, p in zip(scores, sparsities, strict=True)]


def by_output(scores: Arrays, sparsity: float, axis: int = -1) -> Arrays:
    masks = []
    for s in scores:
        mask = np.ones(s.shape, bool)
        for unit in range(s.shape[axis]):
            where = [slice(None)] * s.ndim
            where[axis] = unit
            part = s[tuple(where)]
            mask[tuple(where)] = lose(part, round(sparsity * part.size))
        masks.append(mask)
    return masks


def erk_sparsities(shapes: list[tuple[int, ...]], sparsity: float) -> list[float]:
    """By bisection of the one unknown, the scale."""
    sizes = [math.prod(shape) for shape in shapes]
    raw = [(sum(shape) or 1) / size for shape, size in zip(shapes, sizes, strict=True)]
    density = lambda e: sum(min(1.0, e * r) * n for r, n in zip(raw, sizes, strict=True))
    low, high = 0.0, 1 / min(raw)
    for _ in range(200):
        middle = (low + high) / 2
        if density(middle) < (1 - sparsity) * sum(sizes):
            low = middle
        else:
            high = middle
    return [1 - min(1.0, high * r) for r in raw]


def erk(scores: Arrays, sparsity: float) -> Arrays:
    spread = iter(erk_sparsities([s.shape for s in scores if s.size], sparsity))
    return by_leaf(scores, [next(spread) if s.size else 0.0 for s in scores])


def mapped(names: list[str], scores: Arrays, sparsity: float, own: Mapping[str, Any]) -> Arrays:
    of = lambda name: own.get(name, sparsity)
    values = [of(n)(sparsity) if callable(of(n)) else of(n) for n in names]
    return by_leaf(scores, values)


def n_of_m(scores: Arrays, n: int, m: int, axis: int) -> Arrays:
    masks = []
    for s in scores:
        moved = np.moveaxis(s, axis, -1)
        mask = np.ones(moved.shape, bool)
        for where in np.ndindex(*moved.shape[:-1]):
            for start in range(0, moved.shape[-1], m):
                group = (*where, slice(start, start + m))
                mask[group] = lose(moved[group], m - n)
        masks.append(np.moveaxis(mask, -1, axis))
    return masks


def _tiles(shape: tuple[int, ...], rows: int, columns: int) -> Iterator[tuple[Any, ...]]:
    for where in np.ndindex(*shape[:-2]):
        for i in range(0, shape[-2], rows):
            for j in range(0, shape[-1], columns):
                yield (*where, slice(i, i + rows), slice(j, j + columns))


def blocks(scores: Arrays, rows: int, columns: int, choose: Callable[[Arrays], Arrays]) -> Arrays:
    """`choose` decides between block scores: sums, as float32 adds them up pairwise or not."""
    pooled = []
    for s in scores:
        tiles = list(_tiles(s.shape, rows, columns))
        sums = [s[t][s[t] > -np.inf].sum(dtype=s.dtype) for t in tiles]
        dead = [bool((s[t] == -np.inf).all()) for t in tiles]
        grid = (*s.shape[:-2], s.shape[-2] // rows, s.shape[-1] // columns)
        pooled.append(np.where(dead, -np.inf, sums).astype(s.dtype).reshape(grid))
    masks = []
    for s, kept in zip(scores, choose(pooled), strict=True):
        mask = np.ones(s.shape, bool)
        for t, keep in zip(_tiles(s.shape, rows, columns), kept.ravel(), strict=True):
            mask[t] = keep
        masks.append(mask & (s > -np.inf))
    return masks
