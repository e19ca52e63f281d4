"""What lives together, as data: units, groups of units, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.coupling import costs, reducing
from jaxprune.jaxpr.reading import Reading
from jaxprune.types import Mask, Params, Predicate, Scores

Kept = Mapping[str, Any]
"""`{group: bool[units]}`, True = kept; a group that is missing keeps all its units."""


class Member(NamedTuple):
    """The slices of one axis that belong to a group.

    Attributes:
      leaf: name of the leaf.
      axis: which axis of it.
      positions: int [units, slices per unit], where each unit sits on that axis.
    """

    leaf: str
    axis: int
    positions: np.ndarray


class Group(NamedTuple):
    """Units that are alike: each has the same kind of slices in the same leaves.

    Attributes:
      name: of the group, taken from the leaf that produces it.
      ids: int [units], the labels of its units.
      members: every slice of every unit.
      inexact: why removing one changes the function; empty if it does not.
    """

    name: str
    ids: np.ndarray
    members: tuple[Member, ...]
    inexact: str = ""

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Coupling:
    """Which slices of which leaves must be removed together. Made by `couple`.

    Attributes:
      names, shapes, itemsizes: of the leaves of the variables, in flattening order.
      labels: per leaf and axis, int [length]: the unit of every slice, 0 = never removed.
      groups: all removable units, by group name.
      pinned: by leaf and axis, why slices are never removed.
      unknown: primitives without a rule, with their place in the code, that pinned something.
      products: matrix products and convolutions, for FLOPs and activations.
      source: the model, for `shrink` and `gated`; None for a coupling that was loaded.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    itemsizes: tuple[int, ...]
    labels: tuple[tuple[np.ndarray, ...], ...]
    groups: dict[str, Group]
    pinned: dict[tuple[str, int], str]
    unknown: tuple[str, ...]
    products: tuple[costs.Cost, ...]
    source: Any = field(default=None, repr=False)

    @property
    def units(self) -> int:
        """Number of removable units."""
        return sum(group.units for group in self.groups.values())

    @cached_property
    def numbers(self) -> int:
        """How many labels of units there are, the 0 of what is never removed included."""
        named = [group.ids for group in self.groups.values()]
        axes = [ids for leaf in self.labels for ids in leaf]
        counted = [ids for p in self.products for ids in (*p.axes, *p.outputs)]
        return 1 + max((int(ids.max()) for ids in (*named, *axes, *counted) if len(ids)), default=0)

    def group(self, name: str) -> Group:
        """A group by its name.

        Raises:
          ValueError: there is none of that name; those there are are listed.
        """
        if name not in self.groups:
            why = "; ".join(f"{k[0]}[{k[1]}]: {v}" for k, v in self.pinned.items() if k[0] in name)
            raise ValueError(
                f"No group of units is called {name!r}; there are {sorted(self.groups)}."
                + (f" Pinned: {why}." if why else "")
            )
        return self.groups[name]

    def vector(self, kept: Kept) -> Any:
        """`kept` by label: bool [labels], the label 0 always True.

        Raises:
          ValueError: an unknown group, a wrong number of units, or a group left empty.
          TypeError: flags that are not bool.
        """
        traced = trees.is_traced(dict(kept))
        flags: Any = np.ones(self.numbers, bool)
        for name, keep in kept.items():
            group = self.group(name)
            keep = np.asarray(keep) if isinstance(keep, list | tuple) else keep
            if np.shape(keep) != (group.units,):
                raise ValueError(
                    f"The group {name!r} has {group.units} units, got flags of shape "
                    f"{np.shape(keep)}. Give one bool per unit, True = kept."
                )
            if trees.dtype_of(keep) != np.dtype(bool):
                raise TypeError(
                    f"The flags of {name!r} are bool, True = kept; got {trees.dtype_of(keep)}."
                )
            if not traced and not np.asarray(keep).any():
                raise ValueError(
                    f"All {group.units} units of the group {name!r} are removed, which leaves an "
                    "empty layer. Keep at least one."
                )
            if traced:
                flags = jnp.asarray(flags).at[_index(group.ids)].set(keep)
            else:
                flags[group.ids] = np.asarray(keep)
        return flags

    def mask(self, kept: Kept, variables: Params) -> Mask:
        """The unit mask: False on every slice of every removed unit.

        Args:
          kept: `{group: bool[units]}`.
          variables: the tree whose structure the mask takes.

        Raises:
          ValueError: see `vector`; or a tree that is not the one that was coupled.
        """
        self.check(variables)
        flags = self.vector(kept)
        masks = [outer(axes, flags) for axes in self.labels]
        if not trees.is_traced(flags):
            masks = jax.device_put(masks)
        return jax.tree.unflatten(jax.tree.structure(variables), masks)

    def kept(self, mask: Mask) -> dict[str, Any]:
        """Which units a mask keeps: a unit is removed if ALL its slices are pruned."""
        self.check(mask)
        alive: Any = np.zeros(self.numbers, bool)
        traced = trees.is_traced(mask)
        for leaf, axes in zip(jax.tree.leaves(mask), self.labels, strict=True):
            leaf = leaf if traced else np.asarray(leaf)
            for axis, ids in enumerate(axes):
                if ids.any():
                    slices = leaf.any(axis=tuple(a for a in range(leaf.ndim) if a != axis))
                    if traced:
                        alive = jnp.asarray(alive).at[_index(ids)].max(slices)
                    else:
                        alive[ids[slices]] = True
        return {name: alive[_index(group.ids)] for name, group in self.groups.items()}

    def reduce(
        self,
        scores: Scores,
        how: str | Callable[..., Any] = "sum",
        *,
        prunable: Predicate = trees.default_prunable,
    ) -> dict[str, jax.Array]:
        """Elementwise scores to one score a unit.

        Args:
          scores: a tree like the variables.
          how: "sum", "mean", "max", "norm" (the root of the sum of squares), or a function
            `(entries [units, n], axis=1) -> [units]`.
          prunable: which leaves count, by name and leaf; by default weights, not biases or
            statistics (and embeddings where a group has nothing else).

        Returns:
          `{group: [units]}`.

        Raises:
          ValueError: a group without a leaf that counts; other shapes; two leaves of one name.
        """
        self.check(scores)
        trees.check_names(self.names)
        leaves = dict(trees.named_leaves(scores))
        found = {}
        for name, group in self.groups.items():
            counted = [m for m in group.members if prunable(m.leaf, leaves[m.leaf])]
            if not counted and prunable is trees.default_prunable:  # embeddings: what else is there
                counted = [m for m in group.members if np.ndim(leaves[m.leaf]) > 1]
            if not counted:
                raise ValueError(
                    f"No leaf of the group {name!r} is prunable "
                    f"({sorted({m.leaf for m in group.members})}): give `prunable=`."
                )
            parts = [
                reducing.rows(leaves[m.leaf], m.axis, m.positions, group.units) for m in counted
            ]
            found[name] = reducing.reduced(parts, how)
        return found

    def part(self, take: Callable[[Any], Any], variables: Params) -> Coupling:
        """The same units in a part of the variables, such as what an optimizer trains.

        Flags of units, `{group: bool[units]}`, serve both. A part has no model.

        Args:
          take: from the variables to the part, such as `lambda variables: variables["params"]`.
          variables: the tree that was coupled.

        Raises:
          ValueError: another tree than the one that was coupled.

        Example:
          >>> from jaxprune.coupling import couple
          >>> v = {"params": [jnp.ones((1, 2)), jnp.ones((2, 1))], "seen": jnp.ones(2)}
          >>> apply = lambda v, x: (x @ v["params"][0] - v["seen"]) @ v["params"][1]
          >>> coupling = couple(apply, v, jnp.ones((1, 1))).part(lambda v: v["params"], v)
          >>> coupling.mask({"0": np.array([True, False])}, v["params"])[0]
          Array([[ True, False]], dtype=bool)
        """
        self.check(variables)
        numbers = jax.tree.unflatten(jax.tree.structure(variables), range(len(self.names)))
        named = trees.named_leaves(take(numbers))
        new = {self.names[number]: name for name, number in named}
        groups = {}
        for name, group in self.groups.items():
            own = [member._replace(leaf=new[member.leaf]) for member in group.members
                   if member.leaf in new]  # fmt: skip
            if own:
                groups[name] = group._replace(members=tuple(own))
        of = lambda values: tuple(values[number] for _, number in named)
        return replace(
            self, names=tuple(name for name, _ in named), shapes=of(self.shapes),
            itemsizes=of(self.itemsizes), labels=of(self.labels), groups=groups, source=None,
            pinned={(new[n], a): why for (n, a), why in self.pinned.items() if n in new},
        )  # fmt: skip

    def check(self, tree: Any) -> None:
        """Raise unless a tree has the leaves that were coupled.

        Raises:
          ValueError: names the first difference.
        """
        found = [(name, tuple(np.shape(leaf))) for name, leaf in trees.named_leaves(tree)]
        ours = list(zip(self.names, self.shapes, strict=True))
        for mine, theirs in zip(ours, found, strict=False):
            if mine != theirs:
                raise ValueError(
                    f"The tree differs from the one that was coupled: {trees.label(theirs[0])} of "
                    f"shape {theirs[1]} where {mine[0]!r} of shape {mine[1]} was. Couple the model "
                    "anew, or pass the whole tree that `apply` takes."
                )
        if len(ours) != len(found):
            apart = sorted(set(dict(ours)) ^ set(dict(found)))
            raise ValueError(
                f"The tree differs from the one that was coupled: it has {len(found)} leaves "
                f"instead of {len(ours)}; only in one of them: {apart}."
            )

    def units_of(self, reading: Reading) -> np.ndarray:
        """The unit of every class of another reading of the same model, 0 where there is none.

        Raises:
          ValueError: that reading couples other slices.
        """
        classes = reading.walk.classes
        units = np.zeros(len(classes), np.int64)
        pairs = [
            (classes.find(labels), ids)
            for leaf, mine in zip(reading.labels, self.labels, strict=True)
            for labels, ids in zip(leaf, mine, strict=True)
        ]
        for roots, ids in pairs:
            units[roots[ids > 0]] = ids[ids > 0]
        for roots, ids in pairs:
            if (units[roots] != ids).any() or classes.pinned(roots[ids > 0]).any():
                raise ValueError(
                    "For inputs of these shapes the model couples other slices than for those it "
                    "was coupled with. Couple it with inputs of these shapes."
                )
        return units

    def parameters(self, kept: Kept | None = None) -> int:
        """Entries of all leaves when only `kept` is left."""
        return costs.entries(self, self.vector(kept or {}))

    def bytes(self, kept: Kept | None = None) -> int:
        """Bytes of all leaves when only `kept` is left."""
        return costs.entries(self, self.vector(kept or {}), self.itemsizes)

    def flops(self, kept: Kept | None = None) -> int:
        """FLOPs (2 a multiply-add) of one call on the inputs that were coupled."""
        return costs.flops(self.products, self.vector(kept or {}))

    def activations(self, kept: Kept | None = None) -> int:
        """Bytes of the results of all matrix products and convolutions of one call."""
        return costs.activations(self.products, self.vector(kept or {}))

    def unit_costs(self, what: str = "parameters") -> dict[str, np.ndarray]:
        """What removing one unit, and no other, saves.

        Args:
          what: "parameters", "bytes", "flops" or "activations".

        Returns:
          `{group: [units]}`, float64.
        """
        per_label = costs.marginal(self, what, self.numbers)
        return {name: per_label[_index(group.ids)] for name, group in self.groups.items()}

    def __str__(self) -> str:
        return costs.table(self)


def outer(axes: Sequence[np.ndarray], flags: Any) -> Any:
    """The mask of a leaf, from the labels of its axes: an entry stays if all its slices do."""
    xp: Any = np if isinstance(flags, np.ndarray) else jnp
    leaf = xp.ones([len(ids) for ids in axes], bool)
    for axis, ids in enumerate(axes):
        if ids.any():
            shape = [-1 if a == axis else 1 for a in range(len(axes))]
            leaf = leaf & flags[_index(ids)].reshape(shape)
    return leaf


def _index(ids: np.ndarray) -> np.ndarray:
    """Labels as indices of one dtype, whatever the x64 flag was when a trace first met them."""
    return ids.astype(np.int32)
