"""What a selection allows whatever the scores say, found by asking it.

A selection is a function from scores to masks and says nothing about itself. A surgeon that decides
while it eliminates has to know more: how many entries a leaf or an output loses, and in which
groups of M. So the selection is shown scores that tell the patterns apart, and its masks are
counted. The pattern is then written down in one place, the selection, and no second argument can
contradict it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.surgeon.layers.calibration import Weight
from jaxprune.types import Mask, Params, Selection

Groups = list[np.ndarray]
"""For every part of a weight the group of each input, int [i]."""


class Limits(NamedTuple):
    """What one weight loses, entries pruned before included.

    Attributes:
      total: how many entries.
      rows: how many each output loses, int [b, o] for every part; None if outputs compete.
      groups: the groups that a row's inputs are pruned in; None without an N:M pattern.
      goes: how many of each group go, M - N.
    """

    total: int
    rows: list[np.ndarray] | None = None
    groups: Groups | None = None
    goes: int = 0


class Choice:
    """A selection on one tree, asked leaf by leaf."""

    def __init__(self, select: Selection, params: Params, mask: Mask | None, sparsity: Any) -> None:
        self.select, self.params, self.sparsity = select, params, sparsity
        self.flags = trees.prunable_flags(params, select.prunable)
        self.old = [
            np.asarray(m)
            for m in jax.tree.leaves(trees.full_mask(params) if mask is None else mask)
        ]

    def __call__(
        self, weights: Sequence[Weight], scores: Sequence[Any], *, hide: bool = True
    ) -> list[np.ndarray]:
        """The masks of some weights from their scores; every other leaf scores 0.

        Args:
          weights: which.
          scores: like the parameters.
          hide: score `-inf` what is pruned already.
        """
        given = {w.leaf: np.asarray(s) for w, s in zip(weights, scores, strict=True)}
        shown = []
        for i, (leaf, flag) in enumerate(
            zip(jax.tree.leaves(self.params), self.flags, strict=True)
        ):
            if flag:
                own = given.get(i, np.zeros(np.shape(leaf)))
                own = np.where(self.old[i], own, -np.inf) if hide else own
                shown.append(jnp.asarray(own, trees.score_dtype(leaf)))
        zeros = lambda leaf: np.zeros(np.shape(leaf), trees.score_dtype(leaf))
        tree = trees.replace_leaves(self.params, self.flags, shown, zeros)
        chosen = jax.tree.leaves(self.select.choose(self.params, tree, self.sparsity))
        return [np.asarray(chosen[w.leaf]) & (self.old[w.leaf] | (not hide)) for w in weights]


def limits_of(choice: Choice, weights: Sequence[Weight]) -> list[Limits] | None:
    """What every weight loses; None if leaves compete with each other.

    Raises:
      ValueError: as the selection, or groups of M along the outputs of a layer.
    """
    rng = np.random.default_rng(0)
    # What nothing reads costs nothing, here as later.
    noise = [np.where(w.read(), rng.random(w.shape, np.float32), 0) for w in weights]
    last = len(weights)
    # Each leaf the worst of all, then the best: what it loses must not depend on it.
    up = choice(weights, [u + k for k, u in enumerate(noise)])
    down = choice(weights, [u + last - k for k, u in enumerate(noise)])
    patterns = _patterns(choice, weights, noise)
    if any((~a).sum() != (~b).sum() for a, b in zip(up, down, strict=True)):
        return None
    by_row = choice(weights, [_row_numbers(w) for w in weights])
    found = []
    for k, weight in enumerate(weights):
        rows, others = _lost(weight, up[k]), _lost(weight, by_row[k])
        same = all(np.array_equal(a, b) for a, b in zip(rows, others, strict=True))
        groups, goes = patterns[k] or (None, 0)
        found.append(Limits(int((~up[k]).sum()), rows if same else None, groups, goes))
    return found


def _lost(weight: Weight, mask: np.ndarray) -> list[np.ndarray]:
    """How many entries every row loses, [b, o] for each part."""
    return [x.sum(axis=1) for x in weight.split(~mask)]


def _row_numbers(weight: Weight) -> np.ndarray:
    """Scores in which whole rows (b, o) follow each other."""
    arrays, start = [], 1
    for part in weight.parts:
        b, i, o = part.places.shape
        order = start + np.arange(b * o * i, dtype=np.float32).reshape(b, o, i)
        arrays.append(order.transpose(0, 2, 1))
        start += b * o * i
    return weight.gather(arrays)


def _patterns(
    choice: Choice, weights: Sequence[Weight], noise: list[np.ndarray]
) -> list[tuple[Groups, int] | None]:
    """The N:M groups of every weight, and how many of each group go."""
    plain = choice(weights, noise, hide=False)
    found: list[tuple[Groups, int] | None] = [None] * len(weights)
    for axis in range(max((len(w.shape) for w in weights), default=0)):
        # Lines along the axis follow each other: only a selection inside lines cuts all of them.
        lines = choice(weights, [_lines(w.shape, axis) for w in weights], hide=False)
        for k, weight in enumerate(weights):
            if axis < len(weight.shape) and found[k] is None:
                group = _group(~lines[k], ~plain[k], noise[k], axis)
                if group is not None:
                    found[k] = _as_rows(weight, axis, *group)
    return found


def _lines(shape: tuple[int, ...], axis: int) -> np.ndarray:
    if axis >= len(shape):
        return np.zeros(shape)
    moved = (*shape[:axis], *shape[axis + 1 :], shape[axis])
    order = np.arange(np.prod(shape), dtype=np.float32).reshape(moved)
    return np.moveaxis(order, -1, axis)


def _group(
    lines: np.ndarray, plain: np.ndarray, noise: np.ndarray, axis: int
) -> tuple[int, int] | None:
    """(M, M - N) if exactly M - N of every M entries along an axis go, the lowest of them."""
    size = lines.shape[axis]
    along = lambda x: np.moveaxis(x, axis, -1).reshape(-1)
    for m in (m for m in range(2, size + 1) if size % m == 0):
        counts = along(lines).reshape(-1, m).sum(axis=1)
        goes = int(counts[0])
        if 0 < goes < m and (counts == goes).all():
            ranks = np.argsort(np.argsort(along(noise).reshape(-1, m), kind="stable"))
            if np.array_equal(ranks < goes, along(plain).reshape(-1, m)):
                return m, goes
    return None


def _as_rows(weight: Weight, axis: int, m: int, goes: int) -> tuple[Groups, int] | None:
    """The groups among the inputs of a row; None where a group is a whole row.

    Raises:
      ValueError: a group of several rows.
    """
    shape = weight.shape
    lines = np.arange(np.prod(shape) // m).reshape(
        *shape[:axis], *shape[axis + 1 :], shape[axis] // m
    )
    ids = np.moveaxis(np.repeat(lines, m, axis=-1), -1, axis)
    found = []
    for rows in weight.split(ids):
        _, first, groups, sizes = np.unique(
            rows[0, :, 0], return_index=True, return_inverse=True, return_counts=True
        )
        if (sizes != m).any() or (rows != rows[:, first[groups]]).any():
            if m == shape[axis]:
                return None  # not N:M: every index of another axis loses the same share
            raise ValueError(
                f"{goes} of every {m} entries along axis {axis} of {trees.label(weight.name)} "
                f"(shape {shape}) are to go, and its layer does not sum over that axis: outputs "
                "are pruned one by one, so groups must run along the inputs. Name their axis in "
                "`n_of_m(axis=...)`, or exclude the leaf in `prunable`."
            )
        found.append(np.argsort(np.argsort(first))[groups])  # numbered as they lie
    return None if all(groups.max() == 0 for groups in found) else (found, goes)
