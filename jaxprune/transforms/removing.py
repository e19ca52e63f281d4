"""Whole units removed while the model trains, by what its own train steps say of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune import trees
from jaxprune.coupling.groups import Coupling
from jaxprune.saliency.gates import check_units
from jaxprune.saliency.units import per_cost
from jaxprune.select.checks import check_floor, whole
from jaxprune.select.ranking import rank_leaves
from jaxprune.transforms.mask_state import (
    MaskState,
    initial_state,
    is_empty,
    masked_updates,
    need_params,
)
from jaxprune.types import Batch, Params, PyTree, ScoreFunction

Units = dict[str, jax.Array]
"""`{group: [units]}`."""


class RemovalState(NamedTuple):
    """The state of `remove_units`; `jp.mask_of` reads its mask.

    Attributes:
      masking: the mask of the parameters, steps seen, removals refused.
      kept: which units are left, `{group: bool[units]}`.
      sums: the signal since the last removal, summed over examples.
      examples: how many those are, float32 scalar.
    """

    masking: MaskState
    kept: Units
    sums: Units
    examples: jax.Array


def fisher_signal(slopes: jax.Array) -> jax.Array:
    """`sum_n s_n^2 / 2`, s_n the derivative of example n's loss in a gate; [N, units] to [units].

    References:
      Theis et al. 2018, Faster gaze prediction with dense networks and Fisher pruning; Crowley et
      al. 2018, Pruning neural networks: is it time to nip it in the bud?
    """
    return jnp.sum(jnp.square(slopes), axis=0) / 2


def taylor_signal(slopes: jax.Array) -> jax.Array:
    """`sum_n s_n`; the score is its absolute value, first-order Taylor (Molchanov et al. 2019)."""
    return jnp.sum(slopes, axis=0)


SIGNALS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "fisher": fisher_signal,
    "taylor": taylor_signal,
}


def remove_units(
    coupling: Coupling,
    *,
    every: int,
    each: int = 1,
    stop: int | None = None,
    signal: Literal["fisher", "taylor"] | ScoreFunction = "fisher",
    cost: str | Mapping[str, Any] | None = None,
    groups: Collection[str] | None = None,
    floor: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """Remove the least important units while the model is fine-tuned: put it LAST in the chain.

    The signal costs no pass of its own: differentiate the train step's loss in gates of single
    examples besides the parameters, and pass those derivatives on.

        apply = jp.coupling.gated_apply(coupling, train, has_aux=True)
        gates = jp.coupling.ones(coupling, groups=inner, examples=batch)

        def objective(params, gates, stats, x, y):
            logits, stats = apply({"params": params, "batch_stats": stats}, gates, x)
            return jnp.mean(loss(logits, y)), stats

        (_, stats), (grads, slopes) = jax.value_and_grad(objective, (0, 1), has_aux=True)(...)
        updates, state = tx.update(grads, state, params, gates=slopes)

    After every `every` steps the `each` units of the lowest score over the examples since go, in
    one ranking over all groups, and what belongs to them stays exactly 0. A removal is refused,
    and `MaskState.refused` counts it, if a score is NaN or infinite.

    Shapes stay, so nothing is compiled again. Now and then the network can really be made smaller,
    at any step, and the path goes on as if it had not been:

        variables, state = jp.shrink(variables, coupling.mask(kept, variables), coupling, state)

    with `kept` of the `RemovalState`; then couple the smaller model, with `remove_units` of that
    and the `stop` that is left.

    Args:
      coupling: whose variables are what the chain trains; of more variables than that (statistics)
        take `coupling.part(lambda v: v["params"], variables)`.
      every: steps between removals.
      each: units that go at once.
      stop: units that go in all, at most; by default all but the floors.
      signal: "fisher", `mean_n s_n^2 / 2`, or "taylor", `|mean_n s_n|`, with s_n the derivative of
        example n's loss in the unit's gate; or a function `(params, batch) -> {group: [units]}`,
        such as `jp.saliency.unit_magnitude(coupling)`, that is called when units go. Scores of
        entries are summed over each unit's, as in `jp.select.lowest_units`.
      cost: scores are divided by what a unit costs in the whole network, see
        `jp.saliency.per_cost`; by default they are not.
      groups: names of those that lose units; by default all.
      floor: units that every group keeps.

    Returns:
      A gradient transformation; `update` needs `params`, and `gates=`, the gradient of the MEAN
      loss in the gates, `{group: [N, units]}`; for a function as the signal, `batch=` if it reads
      one instead.

    Raises:
      ValueError: no units, an unknown group, signal or cost, numbers below 1; at the first
        `update`, no `params`, or `gates` that are missing or of other groups or shapes.

    References:
      Theis et al. 2018; Crowley et al. 2018 (every=100, each=1, groups between a block's two
      convolutions).

    Example:
      >>> from jaxprune.coupling import couple, gated_apply, ones
      >>> w = [jnp.array([[1.0, 2.0]]), jnp.array([[3.0], [0.5]])]
      >>> x = jnp.array([[1.0], [2.0]])
      >>> coupling = couple(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], w, x)
      >>> apply = gated_apply(coupling)
      >>> mean_loss = lambda w, gates: jnp.mean((apply(w, gates, x) - x) ** 2)
      >>> gradient, slopes = jax.grad(mean_loss, (0, 1))(w, ones(coupling, examples=2))
      >>> tx = optax.chain(optax.sgd(0.01), remove_units(coupling, every=1))
      >>> updates, state = tx.update(gradient, tx.init(w), w, gates=slopes)
      >>> bool(state[1].kept["0"][0]), bool(state[1].kept["0"][1])
      (True, False)
    """
    some = _some(coupling, groups)
    if not callable(signal) and signal not in SIGNALS:
        raise ValueError(f"Unknown signal {signal!r}. Known: {list(SIGNALS)}, or a function.")
    floor = check_floor(floor)
    every, each = whole(every, 1, "`every` is"), whole(each, 1, "`each` is")
    stop = stop if stop is None else whole(stop, 1, "`stop` is")
    most = sum(max(group.units - floor, 0) for group in some.groups.values())
    most = most if stop is None else min(stop, most)
    removal = _Removal(coupling, some, every, each, most, signal, cost, floor)
    return optax.GradientTransformationExtraArgs(removal.init, removal.update)


@dataclass(frozen=True, eq=False)
class _Removal:
    """What `remove_units` was asked for, checked; `some` has the groups that lose units."""

    coupling: Coupling
    some: Coupling
    every: int
    each: int
    most: int
    signal: str | ScoreFunction
    cost: str | Mapping[str, Any] | None
    floor: int

    @property
    def sizes(self) -> dict[str, int]:
        return {name: group.units for name, group in self.some.groups.items()}

    def nothing(self) -> Units:
        sizes = {} if callable(self.signal) else self.sizes
        return {name: jnp.zeros(units, jnp.float32) for name, units in sizes.items()}

    def init(self, params: Params) -> RemovalState:
        if not is_empty(params):
            self.coupling.check(params)
        kept = {name: jnp.ones(units, bool) for name, units in self.sizes.items()}
        masking = initial_state(trees.full_mask(params), params)
        return RemovalState(masking, kept, self.nothing(), jnp.float32(0))

    def update(
        self,
        updates: PyTree,
        state: RemovalState,
        params: Params | None = None,
        *,
        gates: Mapping[str, Any] | None = None,
        batch: Batch = None,
        **extra: Any,
    ) -> tuple[PyTree, RemovalState]:
        params = need_params(params)
        slopes = {} if callable(self.signal) else _checked(gates, self.sizes)
        state = self.refresh(state, params, slopes, batch)
        return masked_updates(updates, state.masking.mask, params), state

    @partial(jax.jit, static_argnums=0, inline=True)  # `cond` would compile at every eager call
    def refresh(
        self, state: RemovalState, params: Params, slopes: Units, batch: Batch
    ) -> RemovalState:
        step = optax.safe_increment(state.masking.step)
        state = state._replace(masking=state.masking._replace(step=step))
        if not callable(self.signal):
            signal, examples = SIGNALS[self.signal], next(iter(slopes.values())).shape[0]
            add = lambda total, g: total + signal(g.astype(jnp.float32) * examples)
            sums = {name: add(total, slopes[name]) for name, total in state.sums.items()}
            state = state._replace(sums=sums, examples=state.examples + examples)
        remove = lambda state: self.remove(state, params, batch)
        return jax.lax.cond(step % self.every == 0, remove, lambda state: state, state)

    def remove(self, state: RemovalState, params: Params, batch: Batch) -> RemovalState:
        scores, total = self.scores(state, params, batch), self.some.units
        left = sum(jnp.sum(keep) for keep in state.kept.values())
        goes = jnp.minimum(total - left + self.each, self.most)
        names = list(state.kept)
        shown = [jnp.where(state.kept[name], scores[name], -jnp.inf) for name in names]
        drawn = rank_leaves(names, shown, goes / total, "global", self.floor)
        fits = [jnp.all(jnp.isfinite(scores[name]) | ~state.kept[name]) for name in names]
        fine = jnp.all(jnp.stack(fits))
        pairs = zip(names, drawn, strict=True)
        kept = {name: state.kept[name] & (new | ~fine) for name, new in pairs}
        whole_units, given = self.coupling.mask(kept, params), state.masking.mask
        masking = state.masking._replace(
            mask=jax.tree.map(jnp.logical_and, given, whole_units),
            reached=jnp.float32(1 - sum(jnp.sum(keep) for keep in kept.values()) / total),
            refused=state.masking.refused + (~fine).astype(jnp.int32),
        )
        return RemovalState(masking, kept, self.nothing(), jnp.float32(0))

    def scores(self, state: RemovalState, params: Params, batch: Batch) -> Units:
        if callable(self.signal):
            found = self.by_unit(self.signal(params, batch))
            scores = {name: jnp.asarray(found[name], jnp.float32) for name in self.sizes}
        else:
            scores = {name: jnp.abs(sums / state.examples) for name, sums in state.sums.items()}
        return scores if self.cost is None else per_cost(scores, self.some, self.cost)

    def by_unit(self, scores: Any) -> Mapping[str, Any]:
        """Scores by unit as they are; of entries, summed over each unit's."""
        given = scores if isinstance(scores, Mapping) else {}
        shapes = {name: np.shape(given[name]) for name in self.sizes if name in given}
        if shapes == {name: (units,) for name, units in self.sizes.items()}:
            return given
        return self.coupling.reduce(scores)


def _some(coupling: Coupling, groups: Collection[str] | None) -> Coupling:
    """The coupling with only some of its groups."""
    check_units(coupling)
    names = coupling.groups if groups is None else groups
    return dataclasses.replace(coupling, groups={name: coupling.group(name) for name in names})


def _checked(gates: Mapping[str, Any] | None, sizes: Mapping[str, int]) -> Units:
    if gates is None:
        raise ValueError(
            "Units are removed by what the train step says of them, and that was not passed: call "
            "`tx.update(grads, state, params, gates=slopes)`, see `jp.remove_units`."
        )
    for name, units in sizes.items():
        shape = np.shape(gates[name]) if name in gates else None
        if shape is None or len(shape) != 2 or shape[1] != units:
            raise ValueError(
                f"`gates` has {'nothing' if shape is None else f'shape {shape}'} for the group "
                f"{name!r}, expected a derivative for every example and unit, [N, {units}]."
            )
    return {name: jnp.asarray(gates[name]) for name in sizes}
