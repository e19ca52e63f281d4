"""What arrays hold, without a model: zeros, whole zero slices, bytes, and the masks beside them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from jaxprune.reporting.array_records import ArrayReport, LeafCount, MaskCount
from jaxprune.reporting.storage import leaf_bytes

_MASKS = ("mask", "masks")
_AT_ONCE = 2**28  # bytes in memory; a call that reads takes milliseconds, however little it reads

Leaves = Mapping[str, Any]  # anything with shape, dtype and size


def array_report(
    leaves: Leaves,
    read: Callable[[Iterable[str]], Mapping[str, np.ndarray]],
    *,
    only: str = "*",
) -> ArrayReport:
    """Count zeros, zero slices and bytes of every leaf, a few leaves in memory at a time.

    Args:
      leaves: arrays, or their shapes, by name.
      read: gives the arrays of some names.
      only: a pattern that names must match; `*` stands for any text, `/` included.

    Raises:
      ValueError: the pattern matches nothing.

    Example:
      >>> arrays = {"net/w": np.array([[0.0, 2.0], [0.0, 1.0]]), "net/b": np.zeros(2)}
      >>> found = array_report(arrays, lambda names: {name: arrays[name] for name in names})
      >>> found.rows[0].nonzeros, found.rows[0].zero_slices, found.totals.nonzeros
      (2, (0, 1), 2)
    """
    chosen = [name for name in leaves if fnmatchcase(name, only)]
    if leaves and not chosen:
        some = ", ".join(map(repr, list(leaves)[:8]))
        more = f" and {len(leaves) - 8} more" if len(leaves) > 8 else ""
        raise ValueError(f"No leaf matches {only!r}. There are {some}{more}.")
    beside, rows = masks_beside(leaves), []
    for group in _groups(chosen, leaves, beside):
        arrays = read([name for leaf in group for name in (leaf, *beside[leaf])])
        rows += [_count(leaf, arrays, beside[leaf]) for leaf in group]
    return ArrayReport(tuple(rows))


def masks_beside(leaves: Leaves) -> dict[str, list[str]]:
    """The masks of every leaf, by name.

    A tree of bool leaves named `mask` or `masks` is the mask of every tree that has, under its
    names, other leaves of its shapes: the parameters, their averages, an optimizer's moments. PRNG
    keys are stored as integers, with one axis more than their mask.

    Example:
      >>> flags, count = np.ones(3, bool), np.ones(())
      >>> masks_beside({"params/w": np.ones(3), "state/mask/w": flags, "state/count": count})
      {'params/w': ['state/mask/w'], 'state/mask/w': [], 'state/count': []}
    """
    trees: dict[str, dict[str, str]] = defaultdict(dict)
    for name, leaf in leaves.items():
        parts = name.split("/")
        at = next((i for i, part in enumerate(parts) if part in _MASKS), None)
        if at is not None and _is_bool(leaf):
            trees["/".join(parts[:at])]["/".join(parts[at + 1 :])] = name
    found: dict[str, list[str]] = {name: [] for name in leaves}
    for masks in trees.values():
        for prefix in _prefixes(leaves, next(iter(masks))):
            under = {prefix + tail: mask for tail, mask in masks.items()}
            if all(_fits(leaves, name, leaves[mask]) for name, mask in under.items()):
                for name, mask in under.items():
                    found[name].append(mask)
    return found


def _prefixes(leaves: Leaves, tail: str) -> Iterator[str]:
    """What stands before `tail` in names that end with it as a path; all names where it is ""."""
    for name in leaves:
        if not tail or name == tail or name.endswith(f"/{tail}"):
            yield name.removesuffix(tail)


def _is_bool(leaf: Any) -> bool:
    return np.dtype(leaf.dtype) == np.dtype(bool)


def _fits(leaves: Leaves, name: str, mask: Any) -> bool:
    leaf = leaves.get(name)
    if leaf is None or _is_bool(leaf):
        return False
    is_key = np.dtype(leaf.dtype) == np.uint32 and leaf.shape[:-1] == mask.shape
    return leaf.shape == mask.shape or is_key


def _groups(
    names: Sequence[str], leaves: Leaves, beside: Mapping[str, Sequence[str]]
) -> Iterator[list[str]]:
    """The names in order, in groups that are read at once."""
    size_of = lambda name: leaves[name].size * np.dtype(leaves[name].dtype).itemsize
    group: list[str] = []
    total = 0
    for name in names:
        total += sum(map(size_of, (name, *beside[name])))
        if group and total > _AT_ONCE:
            yield group
            group, total = [], sum(map(size_of, (name, *beside[name])))
        group.append(name)
    if group:
        yield group


def _count(name: str, arrays: Mapping[str, np.ndarray], masks: Sequence[str]) -> LeafCount:
    array = arrays[name]
    nonzero = np.asarray(array != 0)
    count, axes = int(np.count_nonzero(nonzero)), range(array.ndim)
    used = [nonzero.any(axis=tuple(a for a in axes if a != axis)) for axis in axes]
    return LeafCount(
        name,
        array.shape,
        str(array.dtype),
        array.size,
        count,
        tuple(int(np.count_nonzero(~line)) if array.size else 0 for line in used),
        tuple(_mask_count(mask, arrays[mask], nonzero) for mask in masks),
        leaf_bytes(array.shape, count, array.dtype.itemsize),
    )


def _mask_count(name: str, mask: np.ndarray, nonzero: np.ndarray) -> MaskCount:
    pruned = ~mask.reshape(mask.shape + (1,) * (nonzero.ndim - mask.ndim))
    kept, not_zero = np.count_nonzero(mask), np.count_nonzero(nonzero & pruned)
    return MaskCount(name, mask.size, int(kept), int(not_zero))
