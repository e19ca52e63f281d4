"""Which units a mask has killed, and the constants they leave behind.

A unit is dead if at every place where it ends (a contraction, a sum) it contributes nothing, or a
constant that a bias downstream can take. The places come from reading the model again with what
the masked parameters hold: a slice that is pruned whole holds zeros, a slice that is one number
holds that number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.coupling.groups import Coupling, outer
from jaxprune.coupling.models import check_concrete
from jaxprune.jaxpr import equations
from jaxprune.jaxpr.labels import Emits, Event
from jaxprune.jaxpr.reading import Reading, read_program
from jaxprune.structure.folding import Fold, fold
from jaxprune.structure.slices import numbers
from jaxprune.types import Mask, Params


class Dead(NamedTuple):
    """What a mask has killed.

    Attributes:
      kept: `{group: bool[units]}`.
      folds: what removed units leave behind, by number of the leaf; float64, of the leaf's shape.
      stuck: why units that emit a constant were not removed, by group.
    """

    kept: dict[str, np.ndarray]
    folds: dict[int, np.ndarray]
    stuck: dict[str, str]


def dead_units(variables: Params, mask: Mask, coupling: Coupling) -> Dead:
    """Read off a mask which units can be removed.

    Units whose slices are all pruned can be. Others, with some slices pruned whole, can be if what
    they emit is contracted with zeros, or is a constant that a bias can take.

    Raises:
      ValueError: a group would be left empty.
      TypeError: the mask is traced; or the variables are, and a constant depends on them.
    """
    check_concrete(mask, "the mask")
    kept = coupling.kept(mask)
    flags = coupling.vector(kept)
    masks = [np.asarray(leaf) for leaf in jax.tree.leaves(mask)]
    if coupling.source is None or not (_touched(coupling, masks, len(flags)) & flags).any():
        return Dead(kept, {}, {})
    source = coupling.source
    check_concrete(variables, "the constants that units pruned on one side leave behind")
    program, _ = equations.trace(source.apply, source.variables, *source.inputs)
    values = [numbers(leaf) for leaf in jax.tree.leaves(variables)]
    folds: dict[int, np.ndarray] = {}
    while True:
        masks = [m & outer(axes, flags) for m, axes in zip(masks, coupling.labels, strict=True)]
        held = [
            np.where(m, v, 0) + folds.get(number, 0)
            for number, (m, v) in enumerate(zip(masks, values, strict=True))
        ]
        facts = [_facts(v, m) for v, m in zip(held, masks, strict=True)]
        reading = read_program(program, coupling.shapes, "allow", source.choices, facts)
        candidates = _touched(coupling, masks, len(flags)) & flags
        gone, new, stuck = _dead(reading, coupling, candidates, held, masks)
        if not gone.any():
            return Dead({name: flags[g.ids] for name, g in coupling.groups.items()}, folds, stuck)
        flags = flags & ~gone
        for number, amount in new:
            folds[number] = folds.get(number, 0) + amount
        for name, group in coupling.groups.items():
            if not flags[group.ids].any():
                raise ValueError(
                    f"The mask prunes all {group.units} units of the group {name!r}, or all that "
                    "they feed: nothing would be left of the layer. Keep at least one (a floor in "
                    "the selection), or leave the group out."
                )


def _touched(coupling: Coupling, masks: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Units with a slice that is pruned whole."""
    found = np.zeros(size, bool)
    for leaf, axes in zip(masks, coupling.labels, strict=True):
        for axis, ids in enumerate(axes):
            if ids.any():
                found[ids[~_any(leaf, axis)]] = True
    found[0] = False
    return found


def _any(leaf: np.ndarray, axis: int) -> Any:
    return leaf.any(axis=tuple(a for a in range(leaf.ndim) if a != axis))


def _facts(values: np.ndarray, mask: np.ndarray) -> tuple[Emits, ...]:
    """Per axis: 0 where a slice is pruned whole and took no constant over, its number where it is
    a single real number."""
    live = mask | (values != 0)
    return tuple(
        np.where(values.imag == 0, values.real, np.nan).reshape(-1)
        if math.prod(values.shape) == n
        else np.where(_any(live, axis), np.nan, 0.0)
        for axis, n in enumerate(values.shape)
    )


def _dead(
    reading: Reading,
    coupling: Coupling,
    candidates: np.ndarray,
    values: list[np.ndarray],
    masks: list[np.ndarray],
) -> tuple[np.ndarray, list[Fold], dict[str, str]]:
    """Units that can go now: those that leave nothing behind; if none does, those that fold."""
    units = coupling.units_of(reading)
    exact, constant = candidates.copy(), candidates.copy()
    ends = []
    for event in reading.walk.events:
        ids = units[reading.walk.classes.find(event.labels)]
        ends.append((event, ids))
        holds = np.full(len(ids), np.nan) if event.emits is None else event.emits
        exact[ids[~event.exact]] = False
        constant[ids[~event.exact & ~np.isfinite(holds)]] = False
    if exact.any() or not constant.any():
        return exact, [], {}
    folds: list[Fold] = []
    stuck: dict[int, str] = _one_axis_each(ends, constant)
    while constant.any():
        folds = []
        refused: dict[int, str] = {}
        for event, ids in ends:
            where = constant[ids] & ~event.exact
            if where.any():
                found = fold(reading.frame, event, where, values)
                if not isinstance(found, str) and (found.amount[~masks[found.leaf]] != 0).any():
                    name = coupling.names[found.leaf]
                    found = f"entries of {name!r} that would take the constant are pruned"
                if isinstance(found, str):
                    refused.update(dict.fromkeys(ids[where].tolist(), found))
                else:
                    folds.append(found)
        if not refused:
            break
        stuck.update(refused)
        constant[list(refused)] = False
    names = {
        name: stuck[unit]
        for name, group in coupling.groups.items()
        for unit in group.ids.tolist()
        if unit in stuck
    }
    return constant, folds, names


def _one_axis_each(
    ends: Sequence[tuple[Event, np.ndarray]], constant: np.ndarray
) -> dict[int, str]:
    """Of a product contracted along several axes, leave the constants of the first for now.

    Where two axes meet, an entry would be counted twice; the next turn finds the first cut short.
    """
    first: dict[tuple[int, int], tuple[Event, np.ndarray]] = {}
    stuck = {}
    for event, ids in ends:
        units = ids[constant[ids] & ~event.exact]
        if not units.size:
            continue
        seen, taken = first.setdefault((id(event.frame), event.at), (event, units))
        if seen is not event:
            constant[units] = False
            for unit in np.intersect1d(units, taken).tolist():
                stuck[unit] = "it is contracted along two axes of one product, which meet"
    return stuck
