"""A coupling as text: what lives together, without the model's code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from jaxprune.coupling.costs import Cost
from jaxprune.coupling.finding import couple
from jaxprune.coupling.groups import Coupling, Group, Member
from jaxprune.types import PyTree

_FORMAT = "jaxprune coupling 1"


def to_json(coupling: Coupling) -> str:
    """A coupling as JSON: groups, labels, costs and reasons, but not the model.

    Args:
      coupling: from `couple`.

    Returns:
      Text for `from_json`; arrays are written as runs, so it stays short.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> w = [jnp.ones((3, 4)), jnp.ones((4, 2))]
      >>> coupling = couple(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], w, jnp.ones((1, 3)))
      >>> print(from_json(to_json(coupling)))
      group  units  slices of  parameters / unit  FLOPs / unit
      -----  -----  ---------  -----------------  ------------
      0      4      0, 1       5                  10
      4 units in 1 groups; 20 parameters, 40 FLOPs a call
    """
    fields = {
        "format": _FORMAT,
        "names": coupling.names,
        "shapes": coupling.shapes,
        "itemsizes": coupling.itemsizes,
        "labels": [[_runs(axis) for axis in leaf] for leaf in coupling.labels],
        "groups": [
            {
                "name": name,
                "ids": _runs(group.ids),
                "members": [[m.leaf, m.axis, _runs(m.positions)] for m in group.members],
                "inexact": group.inexact,
            }
            for name, group in coupling.groups.items()
        ],
        "pinned": [[leaf, axis, why] for (leaf, axis), why in coupling.pinned.items()],
        "unknown": coupling.unknown,
        "products": [
            [p.flops, [_runs(a) for a in p.axes], p.size, [_runs(a) for a in p.outputs]]
            for p in coupling.products
        ],
    }
    return json.dumps(fields, allow_nan=False)


def from_json(text: str) -> Coupling:
    """The coupling that `to_json` wrote, its groups and labels exactly.

    It knows no model: masks, `shrink` and costs work, `shrunk_apply` and `gated` need one, see
    `with_model`. Without one `shrink` finds only the units whose slices are all pruned.

    Args:
      text: from `to_json`.

    Raises:
      ValueError: the text is cut off, or something else.

    Example:
      >>> import jax.numpy as jnp
      >>> from_json(to_json(couple(lambda w, x: x @ w, jnp.ones((3, 4)), jnp.ones((1, 3))))).names
      ('',)
    """
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"This is no coupling that `to_json` wrote, or only a part of one: {error}."
        ) from None
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        kind = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise ValueError(
            f"This is no coupling of the format {_FORMAT!r}, but {kind!r}. Give `from_json` what "
            "`to_json` of this version returned, or couple the model anew."
        )
    try:
        return _coupling(found)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"This coupling was damaged after `to_json` wrote it: {type(error).__name__} {error}. "
            "Take another copy, or couple the model anew."
        ) from error


def with_model(
    coupling: Coupling, apply: Callable[..., Any], variables: PyTree, *inputs: PyTree
) -> Coupling:
    """A loaded coupling with its model: that model is coupled, and must couple the same slices.

    Args:
      coupling: from `from_json`.
      apply: the model, `apply(variables, *inputs) -> outputs`, with its dense widths.
      variables: as for `couple`, with the dense shapes; shapes are enough.
      *inputs: as for `couple`; costs are then those of a call on these.

    Returns:
      A coupling with the groups and names of the loaded one.

    Raises:
      ValueError: the model has other leaves or couples other slices; names the first leaf that
        differs.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> apply = lambda w, x: jax.nn.relu(x @ w[0]) @ w[1]
      >>> w = [jnp.ones((3, 4)), jnp.ones((4, 2))]
      >>> loaded = from_json(to_json(couple(apply, w, jnp.ones((1, 3)))))
      >>> with_model(loaded, apply, w, jnp.ones((8, 3))).flops()
      320
    """
    coupling.check(variables)
    allowed = any(group.inexact for group in coupling.groups.values())
    fresh = couple(apply, variables, *inputs, inexact="allow" if allowed else "pin")
    for name, mine, theirs in zip(coupling.names, coupling.labels, fresh.labels, strict=True):
        for axis, (ids, now) in enumerate(zip(mine, theirs, strict=True)):
            if not np.array_equal(ids, now):
                first = int(np.flatnonzero(ids != now)[0])
                raise ValueError(
                    f"This model is not the one that was coupled: on axis {axis} of the leaf "
                    f"'{name}' the slice {first} belongs to {_unit(fresh, now[first])}, in the "
                    f"loaded coupling to {_unit(coupling, ids[first])}. Give the code, and inputs "
                    "of the shapes, that it was made with, or couple the model anew."
                )
    return replace(
        coupling, source=fresh.source, products=fresh.products, itemsizes=fresh.itemsizes
    )


def _unit(coupling: Coupling, label: int) -> str:
    """A unit in words."""
    for name, group in coupling.groups.items():
        found = np.flatnonzero(group.ids == label)
        if found.size:
            return f"unit {int(found[0])} of '{name}'"
    return "no unit (it is never removed)"


def _coupling(found: dict[str, Any]) -> Coupling:
    groups = {}
    for group in found["groups"]:
        members = tuple(Member(leaf, axis, _array(at)) for leaf, axis, at in group["members"])
        groups[group["name"]] = Group(
            group["name"], _array(group["ids"]), members, group["inexact"]
        )
    shapes = tuple(tuple(shape) for shape in found["shapes"])
    labels = tuple(tuple(_array(axis) for axis in leaf) for leaf in found["labels"])
    if [tuple(map(len, axes)) for axes in labels] != list(shapes):
        raise ValueError("labels and shapes do not fit")
    if not len(found["names"]) == len(shapes) == len(found["itemsizes"]):
        raise ValueError("names and shapes do not fit")
    return Coupling(
        names=tuple(found["names"]),
        shapes=shapes,
        itemsizes=tuple(found["itemsizes"]),
        labels=labels,
        groups=groups,
        pinned={(leaf, axis): why for leaf, axis, why in found["pinned"]},
        unknown=tuple(found["unknown"]),
        products=tuple(
            Cost(flops, tuple(map(_array, axes)), size, tuple(map(_array, outputs)))
            for flops, axes, size, outputs in found["products"]
        ),
    )


def _runs(array: np.ndarray) -> list[Any]:
    """An integer array as its shape and its runs of equal steps: [start, step, length] each."""
    flat = np.asarray(array).reshape(-1)
    runs, at = [], 0
    steps = np.diff(flat)
    ends = np.flatnonzero(np.diff(steps)) + 2  # where a run with the step before it ends
    while at < len(flat):
        later = ends[np.searchsorted(ends, at + 2) :]
        end = int(later[0]) if len(later) else len(flat)
        step = int(steps[at]) if end - at > 1 else 0
        runs.append([int(flat[at]), step, end - at])
        at = end
    return [list(np.shape(array)), runs]


def _array(packed: list[Any]) -> np.ndarray:
    """What `_runs` packed."""
    shape, runs = packed
    parts = [start + step * np.arange(length, dtype=np.int64) for start, step, length in runs]
    return np.concatenate([*parts, np.zeros(0, np.int64)]).reshape(shape)
