"""Trees that travel with the variables, such as optimizer states: sliced as they are."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxprune import trees
from jaxprune.coupling.groups import Coupling
from jaxprune.structure.slices import take_slices
from jaxprune.types import PyTree


def carry_along(
    coupling: Coupling,
    flags: np.ndarray,
    variables: PyTree,
    small: PyTree,
    others: Sequence[PyTree],
    optimizer: Any,
) -> list[PyTree]:
    """Every leaf that is a copy of a variable's, by the end of its name and its shape, sliced.

    A leaf with the name of a variable and fewer axes (Adafactor's row and column statistics) is
    sliced along the axes it has; what then has another shape than the optimizer would give it is
    initialised anew, whatever its name. `{group: [units]}` (what `remove_units` has summed) loses
    the units.
    """
    ends = _ends(coupling)
    changed = [not flags[np.concatenate([*axes, [0]])].all() for axes in coupling.labels]
    sizes = _changed_sizes(coupling, flags)
    results = []
    for other in others:
        fresh = _fresh(other, optimizer, variables, small)
        other = _unit_values(coupling, flags, other)
        structure = jax.tree.structure(other)
        named = trees.named_leaves(other)
        new, renewed = [], []
        for place, (name, leaf) in enumerate(named):
            if isinstance(leaf, _Sliced):
                new.append(leaf.value)
                continue
            number = _variable(name, leaf, ends, coupling) if np.ndim(leaf) else None
            lost = trees.is_inexact(leaf) and sizes & set(np.shape(leaf))
            if number is None and fresh is None and lost:
                raise ValueError(
                    f"Cannot slice {trees.label(name)} of shape {np.shape(leaf)}: its name ends in "
                    "no variable's, and it is as long as one whose units are removed. Pass "
                    "`optimizer=` so that it can be initialised anew, or leave it out."
                )
            found = leaf
            if number is not None and changed[number]:
                found = _sliced(leaf, coupling.shapes[number], coupling.labels[number], flags)
            if found is None and fresh is not None and np.shape(leaf) == np.shape(fresh[place]):
                found = leaf  # a placeholder of Adafactor's, say
            if fresh is not None and (found is None or np.shape(found) != np.shape(fresh[place])):
                renewed.append(name)
                found = fresh[place]
            if found is None:
                assert number is not None, "only what belongs to a variable is sliced"
                raise ValueError(
                    f"Cannot slice {trees.label(name)} of shape {np.shape(leaf)}: it belongs to "
                    f"'{coupling.names[number]}' of shape {coupling.shapes[number]}, whose units "
                    "are removed. Pass `optimizer=` so that it can be initialised anew."
                )
            new.append(found)
        if renewed:
            warnings.warn(
                f"Initialised anew, because they cannot be sliced: {', '.join(renewed)}.",
                stacklevel=3,
            )
        results.append(jax.tree.unflatten(structure, new))
    return results


def _changed_sizes(coupling: Coupling, flags: np.ndarray) -> set[int]:
    """Lengths of axes that lose units, and the number of all entries, which a vector may hold."""
    axes = [ids for leaf in coupling.labels for ids in leaf]
    found = {len(ids) for ids in axes if not flags[ids].all()}
    return found | {coupling.parameters()} if found else found


class _Sliced:
    """A leaf that is done."""

    def __init__(self, value: Any):
        self.value = value


def _unit_values(coupling: Coupling, flags: np.ndarray, tree: PyTree) -> PyTree:
    """The tree, every `{group: [units]}` in it sliced, and marked as done.

    Where a group has the name of a variable, the values may be that variable's, and are left.
    """
    variables = set(_ends(coupling))
    kept = {name: np.flatnonzero(flags[group.ids]) for name, group in coupling.groups.items()}

    def is_units(node: Any) -> bool:
        return (
            isinstance(node, Mapping)
            and bool(node)
            and all(
                name in kept
                and name not in variables
                and np.shape(values) == (coupling.groups[name].units,)
                for name, values in node.items()
            )
        )

    def sliced(node: Any) -> Any:
        if not is_units(node):
            return node
        return {n: _Sliced(take_slices(values, [(0, kept[n])])) for n, values in node.items()}

    return jax.tree.map(sliced, tree, is_leaf=is_units)


def _fresh(other: PyTree, optimizer: Any, variables: PyTree, small: PyTree) -> list[Any] | None:
    """The leaves of a new optimizer state, if `other` is a state of that optimizer."""
    if optimizer is None:
        return None
    candidates = [(variables, small)]
    if isinstance(variables, dict) or hasattr(variables, "items"):
        candidates += [(variables[key], small[key]) for key in variables]
    for whole, part in candidates:
        try:
            same: Any = jax.tree.structure(jax.eval_shape(optimizer.init, whole))
        except (TypeError, ValueError, AttributeError, KeyError):
            continue
        if same == jax.tree.structure(other):
            return jax.tree.leaves(optimizer.init(part))
    return None


def _ends(coupling: Coupling) -> dict[str, list[tuple[int, int]]]:
    """(depth of the name, number of the leaf) by the name, whole and without its collection."""
    found: dict[str, list[tuple[int, int]]] = {}
    for number, name in enumerate(coupling.names):
        parts = name.split("/")
        for start in (0, 1) if len(parts) > 1 else (0,):
            end = "/".join(parts[start:])
            found.setdefault(end, []).append((len(parts) - start, number))
    return found


def _variable(
    name: str, leaf: Any, ends: dict[str, list[tuple[int, int]]], coupling: Coupling
) -> int | None:
    """The variable whose name ends this name: the longest one, of its shape if possible."""
    parts = name.split("/")
    found: list[tuple[int, int]] = []
    for start in range(len(parts) + 1):
        found += ends.get("/".join(parts[start:]), [])
    same = [(depth, n) for depth, n in found if coupling.shapes[n] == np.shape(leaf)]
    best = max(same or found, default=None, key=lambda pair: pair[0])
    if best is None:
        return None
    rivals = {n for depth, n in (same or found) if depth == best[0]}
    labels = [coupling.labels[n] for n in rivals]
    alike = all(len(a) == len(labels[0]) and all(map(np.array_equal, a, labels[0])) for a in labels)
    if not alike:
        raise ValueError(
            f"{trees.label(name)} could be a copy of any of "
            f"{sorted(coupling.names[n] for n in rivals)}. Shrink that tree by itself."
        )
    return best[1]


def _sliced(
    leaf: Any, shape: tuple[int, ...], axes: Sequence[np.ndarray], flags: np.ndarray
) -> Any:
    """The leaf without the removed slices; None if it is not clear which of its axes is which."""
    mine = np.shape(leaf)
    if mine == shape:
        match = list(range(len(shape)))
    else:
        ways = _subsequences(mine, shape)
        if len(ways) != 1:
            return None
        match = ways[0]
    keeps = [(axis, flags[axes[source]]) for axis, source in enumerate(match)]
    return take_slices(leaf, [(axis, np.flatnonzero(k)) for axis, k in keeps if not k.all()])


def _subsequences(short: tuple[int, ...], long: tuple[int, ...]) -> list[list[int]]:
    """All ways in which a shape is another one with axes left out."""
    if not short:
        return [[]]
    return [
        [i, *(i + 1 + j for j in rest)]
        for i, n in enumerate(long)
        if n == short[0]
        for rest in _subsequences(short[1:], long[i + 1 :])
    ]
