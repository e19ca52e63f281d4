"""`couple`: from a model to groups of units."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxprune import trees
from jaxprune.coupling.costs import Cost
from jaxprune.coupling.groups import Coupling, Group, Member
from jaxprune.jaxpr import equations
from jaxprune.jaxpr.reading import Reading, abstract, read
from jaxprune.types import PyTree


class Source(NamedTuple):
    """The model that was coupled.

    Attributes:
      apply: `apply(variables, *inputs) -> outputs`.
      variables, inputs: shapes and dtypes.
      inexact, choices: how it was read.
    """

    apply: Callable[..., Any]
    variables: PyTree
    inputs: tuple[PyTree, ...]
    inexact: str
    choices: dict[tuple[int, ...], int]


def couple(
    apply: Callable[..., Any], variables: PyTree, *inputs: PyTree, inexact: str = "pin"
) -> Coupling:
    """Find which slices of which parameters must be removed together, for any JAX function.

    Every index of every axis of every leaf gets a label, and the jaxpr is interpreted with labels:
    what is added, multiplied or contracted index by index is united; inputs, outputs and what a
    primitive without a rule touches are pinned (and listed, with the line of the code). No layer
    needs to be known: a residual stream, the four gates of an LSTM, a flattened image or tied
    embeddings come out as one group because of what the code does with them.

    A group's unit can be removed exactly if all its slices are zero: where it then emits something
    else than zero (sigmoid(0) = .5) into a sum, or an axis is compared with others (max, softmax,
    a mean, a variance), it cannot. `inexact="pin"` pins such units, "allow" leaves them removable
    and says why they are not exact.

    Args:
      apply: `apply(variables, *inputs) -> outputs`, as at inference. What it returns is pinned: do
        not return updated statistics.
      variables: all that can be removed: parameters AND statistics, arrays or shapes.
      *inputs: pytrees of arrays, or of `jax.ShapeDtypeStruct`; any batch size.
      inexact: "pin" or "allow".

    Returns:
      A `Coupling`; print it for a table of groups.

    Raises:
      ValueError: an unknown `inexact`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def apply(weights, x):
      ...     hidden = jax.nn.relu(x @ weights[0])
      ...     return (hidden + jnp.tanh(x @ weights[1])) @ weights[2]
      >>> weights = [jnp.ones((5, 8)), jnp.ones((5, 8)), jnp.ones((8, 2))]
      >>> coupling = couple(apply, weights, jnp.ones((4, 5)))
      >>> [(group.units, [(m.leaf, m.axis) for m in group.members])
      ...  for group in coupling.groups.values()]
      [(8, [('0', 1), ('1', 1), ('2', 0)])]
      >>> coupling.pinned["2", 1]
      'an output of the model'
    """
    if inexact not in ("pin", "allow"):
        raise ValueError(f"`inexact` is 'pin' or 'allow', got {inexact!r}.")
    reading = read(apply, variables, inputs, inexact=inexact)
    walk = reading.walk
    source = Source(apply, abstract(variables), abstract(tuple(inputs)), inexact, walk.choices)
    named = trees.named_leaves(source.variables)
    names = [name for name, _ in named]
    labels, count = _compact(reading)
    unknown = [f"'{e.name}' at {equations.line_of(e)}" for e in walk.unknown]
    return Coupling(
        names=tuple(names),
        shapes=tuple(tuple(leaf.shape) for _, leaf in named),
        itemsizes=tuple(int(leaf.dtype.itemsize) for _, leaf in named),
        labels=labels.leaves,
        groups=_groups(
            names, labels.leaves, count, _inexact(reading, labels), _order(reading, names)
        ),
        pinned=_pinned(reading, names),
        unknown=tuple(dict.fromkeys(unknown)),
        products=tuple(_cost(product, labels) for product in walk.products),
        source=source,
    )


class _Labels(NamedTuple):
    leaves: tuple[tuple[np.ndarray, ...], ...]
    of: Callable[[np.ndarray], np.ndarray]  # the walk's labels -> units, 0 = never removed


def _compact(reading: Reading) -> tuple[_Labels, int]:
    """Units numbered from 1 in the order of the leaves; everything pinned is 0."""
    classes = reading.walk.classes
    every = [axis for leaf in reading.labels for axis in leaf]
    flat = np.concatenate([*every, np.zeros(1, np.int64)])
    roots = classes.find(flat)[~classes.pinned(flat)]
    units = np.unique(roots)  # roots are the smallest label of a class: in the order of the leaves

    def of(labels: np.ndarray) -> np.ndarray:
        found = classes.find(labels)
        where = np.searchsorted(units, found)
        where = np.minimum(where, max(len(units) - 1, 0))
        same = units[where] == found if len(units) else np.zeros(len(found), bool)
        return np.where(same, where + 1, 0)

    return _Labels(tuple(tuple(of(a) for a in leaf) for leaf in reading.labels), of), len(units)


def _cost(product: Any, labels: _Labels) -> Cost:
    def parts(axes: tuple[np.ndarray, ...]) -> tuple[int, tuple[np.ndarray, ...]]:
        units = [labels.of(axis) for axis in axes]
        rest = math.prod(len(axis) for axis in units if not axis.any())
        return rest, tuple(axis for axis in units if axis.any())

    times, axes = parts(product.axes)
    size, outputs = parts(product.outputs)
    each = product.flops * product.repeats * times
    return Cost(each, axes, product.itemsize * product.repeats * size, outputs)


def _order(reading: Reading, names: list[str]) -> dict[str, int]:
    """When the model first reads each leaf."""
    arguments = reading.frame.program.arguments[: len(names)]
    last = len(reading.frame.program.equations)
    readers = [reading.frame.consumers(variable) for variable in arguments]
    return {n: found[0] if found else last for n, found in zip(names, readers, strict=True)}


def _inexact(reading: Reading, labels: _Labels) -> dict[int, str]:
    """Why removing a unit is not exact, by unit; empty unless that was allowed."""
    found: dict[int, str] = {}
    for event in reading.walk.events:
        units = labels.of(event.labels)
        for unit in np.unique(units[~event.exact & (units > 0)]).tolist():
            found.setdefault(unit, str(reading.walk.reasons[event.reason]))
    return found


def _pinned(reading: Reading, names: list[str]) -> dict[tuple[str, int], str]:
    """Why an axis, or the first pinned slice of it, is never removed."""
    found = {}
    for name, axes in zip(names, reading.labels, strict=True):
        for axis, ids in enumerate(axes):
            reasons = reading.walk.classes.reasons(ids)
            numbers = reasons[reading.walk.classes.pinned(ids)]
            if numbers.size:
                number = int(numbers[0])
                found[name, axis] = (
                    "of length 1" if number < 0 else str(reading.walk.reasons[number])
                )
    return found


def _groups(
    names: list[str],
    labels: tuple[tuple[np.ndarray, ...], ...],
    count: int,
    inexact: dict[int, str],
    order: dict[str, int],
) -> dict[str, Group]:
    """Units with the same number of slices on the same axes are a group."""
    signature = np.zeros(count + 1, np.uint64)
    random = np.random.default_rng(0)  # a hash of (leaf, axis, number of slices)
    for axes in labels:
        for ids in axes:
            code = random.integers(1, 2**63, dtype=np.uint64)
            times = np.bincount(ids, minlength=count + 1).astype(np.uint64)
            signature = signature * np.uint64(1000003) + code * times * (times + np.uint64(7))
    texts = sorted(set(inexact.values()))
    why = np.zeros(count + 1, np.uint64)
    for unit, text in inexact.items():
        why[unit] = texts.index(text) + 1
    _, inverse = np.unique(np.stack([signature[1:], why[1:]]), axis=1, return_inverse=True)
    group_of = np.concatenate([[-1], inverse.ravel()])
    members = _members(names, labels, group_of)
    named = sorted((_producer(found, order), n) for n, found in enumerate(members))
    groups: dict[str, Group] = {}
    for (_, leaf), number in named:
        ids = np.flatnonzero(group_of == number)
        name = _name(leaf, groups)
        groups[name] = Group(name, ids, tuple(members[number]), inexact.get(int(ids[0]), ""))
    return groups


def _members(
    names: list[str], labels: tuple[tuple[np.ndarray, ...], ...], group_of: np.ndarray
) -> list[list[Member]]:
    """The slices of every group; `group_of` gives a unit's group, -1 for the unit 0."""
    found: list[list[Member]] = [[] for _ in range(int(group_of.max()) + 1)]
    sizes = np.bincount(group_of[1:], minlength=len(found))
    for name, axes in zip(names, labels, strict=True):
        for axis, units in enumerate(axes):
            groups = group_of[units]
            for group in np.unique(groups[groups >= 0]).tolist():
                here = np.flatnonzero(groups == group)
                here = here[np.argsort(units[here], kind="stable")]
                found[group].append(Member(name, axis, here.reshape(sizes[group], -1)))
    return found


def _producer(members: Sequence[Member], order: dict[str, int]) -> tuple[int, str]:
    """The leaf that produces the units: the first one read by the model of which they are the
    last axis, if there is a matrix or a kernel among them."""
    last: dict[str, int] = {}
    for member in members:
        last[member.leaf] = max(last.get(member.leaf, 0), member.axis)
    kernels = [m for m in members if m.axis == last[m.leaf] and m.axis > 0]
    return min((order[member.leaf], member.leaf) for member in (kernels or members))


def _name(leaf: str, taken: dict[str, Group]) -> str:
    """A group's name: that of its leaf without what all kernels' names have in common."""
    short = leaf.removesuffix("/kernel").removeprefix("params/") or "units"
    name, number = short, 2
    while name in taken:
        name, number = f"{short}#{number}", number + 1
    return name
