"""Units merged into similar ones: what reads the unit that stays makes up for the one that goes.

Run before `shrink_units`, on whole variables and on a host: nothing here is jitted.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.coupling.groups import Coupling, Group, Kept, Member
from jaxprune.structure.folding import fold
from jaxprune.structure.incoming import Incoming, Source, incoming, slices
from jaxprune.structure.slices import numbers
from jaxprune.structure.ways import (
    MOVES,
    PASSES,
    Ways,
    Wiring,
    in_flow,
    ways_of,
    wiring,
)
from jaxprune.types import Params


class Merged(NamedTuple):
    """What merging did.

    Attributes:
      variables: as whole as before, with other outgoing weights; give them to `shrink_units`.
      kept: `{group: bool[units]}`.
      into: `{group: int[units]}`, the unit each one went into: itself if it is kept, -1 if it is
        dropped without a merge.
      scales: `{group: [units]}`, the factor S of its outgoing weights there, 0 without a merge.
      offsets: `{group: [units]}`, |B|: by how much the unit's value before the nonlinearity is
        off what S times the other's is, where their norms differ and no bias took it over. Of two
        parallel units, `|a(o_i) - a(S o_k)| <= |B|` for a 1-Lipschitz activation a.
    """

    variables: Params
    kept: dict[str, np.ndarray]
    into: dict[str, np.ndarray]
    scales: dict[str, np.ndarray]
    offsets: dict[str, np.ndarray]


def merge_similar(
    variables: Params, kept: Kept, coupling: Coupling, *, threshold: float = 0.45
) -> Merged:
    """Merge every dropped unit into the most similar kept one: neuron merging.

    A dropped unit i goes to the kept unit k of its group with the largest cosine of the incoming
    weights and biases v = [w, b], if that cosine is at least the threshold:

        W_next[:, k] += S W_next[:, i],    S = |v_i| / |v_k|

    Where the product is followed by a BatchNorm (sums and products with parameters, slope
    gamma / sigma), v is the weights times that slope, and what the biases do not share is left:

        o_i = S o_k + B,    S = s (gamma_i / gamma_k) (sigma_k / sigma_i),    s = |w_i| / |w_k|
        B = (gamma_i / sigma_i) (s (mu_k - sigma_k beta_k / gamma_k) - mu_i) + beta_i

    B is added to the next bias if nothing nonlinear lies between and there is one; otherwise it
    is an error, whose size is returned. Units with several incoming kernels (a residual stream)
    are compared by all of them. Exact if v_i = S v_k, S > 0, B = 0 and all that lies between is
    positively homogeneous: ReLU, leaky ReLU, pooling, zero padding. Groups are merged in the order
    in which the model reads them, each with the weights that merges before it left.

    Args:
      variables: what was coupled; concrete arrays.
      kept: `{group: bool[units]}`, True = kept; a group that is missing keeps all.
      coupling: from `couple`.
      threshold: the least cosine, in [-1, 1].

    Returns:
      A `Merged`; the dropped units themselves are untouched, `shrink_units` removes them.

    Raises:
      ValueError: a group whose outgoing weights cannot be identified (it is summed, multiplied
        with another activation, or read in a loop), or whose units go through parameters of their
        own that no product of theirs absorbs (a depthwise kernel, a norm after a sum); a threshold
        outside [-1, 1]; `kept` of another model; a coupling without a model.

    References:
      Kim, Kim, Park, Hwang 2020, Neuron Merging: Compensating for Pruned Neurons. With a negative
      gamma we compare the normalised kernels, so that S > 0 always; they compare the raw ones.

    Example:
      >>> from jaxprune.coupling import couple
      >>> apply = lambda w, x: jax.nn.relu(x @ w[0]) @ w[1]
      >>> w = [jnp.array([[1.0, 2.0], [3.0, 6.0]]), jnp.array([[1.0], [1.0]])]
      >>> coupling = couple(apply, w, jnp.ones((1, 2)))
      >>> merged = merge_similar(w, {"0": np.array([True, False])}, coupling)
      >>> merged.variables[1].tolist(), merged.into["0"].tolist()
      ([[3.0], [1.0]], [0, 0])
    """
    if not -1 <= threshold <= 1:
        raise ValueError(f"The threshold is a cosine in [-1, 1], got {threshold!r}.")
    flags = coupling.vector(kept)
    work = _Work(variables, coupling)
    chosen = {name: np.asarray(flags[coupling.group(name).ids]) for name in kept}
    for name in in_flow(work.wired, [n for n, keep in chosen.items() if not keep.all()]):
        group, keep = coupling.group(name), chosen[name]
        ways = work.ways(group)
        made = incoming(work.wired, group, ways, work.left())
        if made.other:
            raise ValueError(
                f"Cannot merge units of the group {name!r} by scale: they go through "
                f"{sorted(made.other)}, which no product of theirs absorbs. Leave the group out, "
                "or use `reconstruct`."
            )
        if made.products:
            raise ValueError(
                f"Cannot merge units of the group {name!r} by scale: what makes them is multiplied "
                f"with each other at {', '.join(made.products)}. Leave the group out, or use "
                "`merge_pairs` or `reconstruct`."
            )
        into, scales = _most_similar(made, keep, threshold)
        offsets = _offsets(made, into, scales, keep)
        work.pour(group, ways, into, scales)
        offsets = work.into_bias(group, made.sources, offsets)
        work.done(group, keep, into, scales, np.abs(offsets))
    return work.merged(chosen)


def merge_pairs(variables: Params, coupling: Coupling, keep: Mapping[str, int]) -> Merged:
    """Merge pairs of similar units, the least costly pair first, until so many are left.

    Of all ordered pairs (i stays, j goes) that with the least

        <a_j^2> |w_i - w_j|^2,    then a_i += a_j

    with w the incoming weights and biases (a BatchNorm folded in), a the outgoing weights and
    <a^2> their mean square; <a_i^2> is computed anew after each merge. It selects as it merges,
    and needs no data. Exact for identical units, whatever the activation.

    Args:
      variables: what was coupled; concrete arrays.
      coupling: from `couple`.
      keep: `{group: n}`, how many units to keep, 1 <= n <= units.

    Returns:
      A `Merged`: its `kept` are the units that stayed, its `offsets` 0.

    Raises:
      ValueError: a group whose outgoing weights cannot be identified; a number of units outside
        1 .. units; an unknown group; a coupling without a model.
      TypeError: a number that is not an integer.

    References:
      Srinivas and Babu 2015, Data-free Parameter Pruning for Deep Neural Networks.

    Example:
      >>> from jaxprune.coupling import couple
      >>> apply = lambda w, x: jnp.tanh(x @ w[0]) @ w[1]
      >>> w = [jnp.array([[1.0, 5.0, 1.0]]), jnp.array([[1.0], [1.0], [2.0]])]
      >>> merged = merge_pairs(w, couple(apply, w, jnp.ones((1, 1))), {"0": 2})
      >>> merged.kept["0"].tolist(), merged.variables[1].tolist()
      ([False, True, True], [[1.0], [1.0], [3.0]])
    """
    for name, n in keep.items():
        units = coupling.group(name).units
        if isinstance(n, bool) or not hasattr(n, "__index__"):
            raise TypeError(f"`keep` of {name!r} is a number of units, an integer; got {n!r}.")
        if not 1 <= n <= units:
            raise ValueError(f"`keep` of {name!r} must lie in 1 .. {units}, got {n}.")
    work = _Work(variables, coupling)
    chosen = {name: np.ones(coupling.group(name).units, bool) for name in keep}
    for name in in_flow(work.wired, [n for n in keep if keep[n] < len(chosen[n])]):
        group = coupling.group(name)
        ways = work.ways(group)
        made = incoming(work.wired, group, ways, work.left())
        parts = [s.weights for s in made.sources] + [s.offsets for s in made.sources]
        into = _pair_off(
            np.concatenate([*parts, made.rest], axis=1),
            np.concatenate([work.rows(m).reshape(group.units, -1) for m in ways.outs], axis=1),
            operator.index(keep[name]),
        )
        chosen[name] = into == np.arange(group.units)
        work.pour(group, ways, into, np.ones(group.units))
        work.done(group, chosen[name], into, np.ones(group.units), np.zeros(group.units))
    return work.merged(chosen)


class _Work:
    """Leaves in float64 while groups are merged one after the other."""

    def __init__(self, variables: Params, coupling: Coupling) -> None:
        coupling.check(variables)
        self.variables, self.coupling = variables, coupling
        self.wired: Wiring = wiring(coupling)
        self.values = [numbers(leaf) for leaf in jax.tree.leaves(variables)]
        self.changed: set[int] = set()
        self.flags = coupling.vector({})
        self.found: dict[str, tuple[np.ndarray, ...]] = {}

    def ways(self, group: Group) -> Ways:
        """The ways of a group, all of its ways out known."""
        ways = ways_of(self.wired, group)
        names = [m.leaf for m in group.members]
        pairs = zip(self.coupling.names, self.values, strict=True)
        if found := [n for n, v in pairs if n in names and np.iscomplexobj(v)]:
            raise ValueError(f"Units of {group.name!r} are complex ({found}): leave the group out.")
        if ways.why or not ways.outs:
            raise ValueError(
                f"Cannot merge units of the group {group.name!r}, whose outgoing weights are not "
                f"all known: {ways.why or 'nothing reads it'}. Leave the group out."
            )
        return ways

    def left(self) -> list[np.ndarray]:
        """The leaves, 0 where units of groups that are done were dropped."""
        found = []
        for values, axes in zip(self.values, self.coupling.labels, strict=True):
            for axis, ids in enumerate(axes):
                if not self.flags[ids].all():
                    shape = [-1 if a == axis else 1 for a in range(values.ndim)]
                    values = np.where(self.flags[ids].reshape(shape), values, 0)
            found.append(values)
        return found

    def rows(self, member: Member) -> np.ndarray:
        """The outgoing weights of every unit, [units, slices, entries]."""
        return slices(self.left()[self.coupling.names.index(member.leaf)], member)

    def pour(self, group: Group, ways: Ways, into: np.ndarray, scales: np.ndarray) -> None:
        """`W[:, into[i]] += scales[i] W[:, i]` in everything that reads the group."""
        gone = np.flatnonzero((into >= 0) & (into != np.arange(group.units)))
        for member in ways.outs:
            number = self.coupling.names.index(member.leaf)
            moved = np.moveaxis(self.values[number].copy(), member.axis, 0)
            shape = (-1, *(1,) * moved.ndim)
            rows = moved[member.positions]
            np.add.at(moved, member.positions[into[gone]], scales[gone].reshape(shape) * rows[gone])
            self.values[number] = np.moveaxis(moved, 0, member.axis)
            self.changed.add(number)

    def into_bias(
        self, group: Group, sources: tuple[Source, ...], offsets: np.ndarray
    ) -> np.ndarray:
        """Move the offsets into the next bias; what is left of them."""
        events = self.wired.events(group)
        if not offsets.any() or len(events) != 1 or [s.offsets.shape[1] for s in sources] != [1]:
            return offsets
        event, end = events[0], sources[0].end
        frame = self.wired.frame
        while True:
            readers = frame.consumers(end)
            if len(readers) != 1 or end in frame.program.outputs:
                return offsets
            reader = frame.program.equations[readers[0]]
            if reader.name not in (*MOVES, *PASSES):
                break
            end = reader.results[0]
        if readers[0] != event.at or reader.operands[event.operand] != end:
            return offsets
        places = self.wired.places(group, event.labels)
        emits = np.zeros(len(event.labels))
        emits[places] = offsets[:, None]
        where = np.zeros(len(event.labels), bool)
        where[places] = (offsets != 0)[:, None]
        found = fold(frame, event._replace(emits=emits), where, self.values)
        if isinstance(found, str):
            return offsets
        self.values[found.leaf] = self.values[found.leaf] + found.amount
        self.changed.add(found.leaf)
        return np.zeros(group.units)

    def done(self, group: Group, keep: np.ndarray, *found: np.ndarray) -> None:
        """The group is merged; what the groups after it see is without its dropped units."""
        self.flags[group.ids] = keep
        self.found[group.name] = found

    def merged(self, kept: dict[str, np.ndarray]) -> Merged:
        """The variables in their own dtypes, and what was done."""
        leaves, structure = jax.tree.flatten(self.variables)
        for number in self.changed:
            leaves[number] = jnp.asarray(self.values[number], leaves[number].dtype)
        for name in kept:
            n = len(kept[name])
            self.found.setdefault(name, (np.arange(n), np.ones(n), np.zeros(n)))
        into, scales, offsets = ({n: self.found[n][i] for n in kept} for i in range(3))
        return Merged(jax.tree.unflatten(structure, leaves), kept, into, scales, offsets)


def _most_similar(
    made: Incoming, keep: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """(the kept unit that each unit goes into or -1, the ratio of their norms)."""
    biases = [s.offsets for s in made.sources if not s.scaled]
    vectors = np.concatenate([*(s.weights for s in made.sources), *biases, made.rest], axis=1)
    norms = np.linalg.norm(vectors, axis=1)
    able = keep & (norms > 0)
    into = np.where(keep, np.arange(len(keep)), -1)
    scales = keep.astype(np.float64)
    gone = np.flatnonzero(~keep & (norms > 0))
    if not able.any() or not gone.size:
        return into, scales
    unit = vectors / np.where(norms > 0, norms, 1)[:, None]
    cosines = unit[gone] @ unit[able].T
    best = np.flatnonzero(able)[cosines.argmax(axis=1)]
    similar = cosines.max(axis=1) >= min(threshold, 1 - 1e-6)  # rounding may hide a cosine of 1
    into[gone[similar]] = best[similar]
    scales[gone[similar]] = (norms[gone] / norms[best])[similar]
    return into, scales


def _offsets(made: Incoming, into: np.ndarray, scales: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """B, the root of the sum of squares where a unit has several."""
    parts = [
        np.where((keep | (into < 0))[:, None], 0, s.offsets - scales[:, None] * s.offsets[into])
        for s in made.sources
        if s.scaled
    ]
    if not parts:
        return np.zeros(len(into))
    every = np.concatenate(parts, axis=1)
    return every[:, 0] if every.shape[1] == 1 else np.linalg.norm(every, axis=1)


def _pair_off(incoming: np.ndarray, outgoing: np.ndarray, n: int) -> np.ndarray:
    """Which of the n units that are left each unit goes into."""
    units = len(incoming)
    into, alive = np.arange(units), np.ones(units, bool)
    squares = (incoming**2).sum(axis=1)
    apart = np.maximum(squares[:, None] + squares - 2 * incoming @ incoming.T, 0)
    np.fill_diagonal(apart, np.inf)
    nearest, least = apart.argmin(axis=0), apart.min(axis=0)
    power = (outgoing**2).mean(axis=1)
    outgoing = outgoing.copy()
    for _ in range(units - n):
        gone = int(np.where(alive, power * least, np.inf).argmin())
        stays = int(nearest[gone])
        into[gone], alive[gone] = stays, False
        outgoing[stays] += outgoing[gone]
        power[stays] = (outgoing[stays] ** 2).mean()
        apart[gone] = np.inf
        again = np.flatnonzero(alive & (nearest == gone))
        nearest[again], least[again] = apart[:, again].argmin(axis=0), apart[:, again].min(axis=0)
    while (into != into[into]).any():
        into = into[into]
    return into
