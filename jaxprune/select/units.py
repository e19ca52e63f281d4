"""Prune whole units: channels, heads, neurons, whatever lives together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.coupling.groups import Coupling, Kept
from jaxprune.select import checks, counts, ranking
from jaxprune.types import Mask, Params, Predicate, Scores, Selection

Flags = dict[str, Any]
"""`{group: bool[units]}`, with every group."""
COSTS = ("parameters", "bytes", "flops", "activations")


class Budget(NamedTuple):
    """What the network may cost; give one of the two bounds.

    Attributes:
      what: "parameters", "bytes", "flops", "activations" (see `Coupling`), or a function
        `kept -> number`, such as measured milliseconds. `kept` has every group, protected ones
        too, also where nothing is removed.
      fraction: at most this share of the dense network's cost.
      at_most: at most this much.
    """

    what: str | Callable[[Kept], float]
    fraction: float | None = None
    at_most: float | None = None


def lowest_units(
    coupling: Coupling,
    *,
    reduce: str | Callable[..., Any] = "sum",
    scope: str | Mapping[str, Any] = "global",
    budget: Budget | None = None,
    floor: int = 1,
    round_to: int = 1,
    protected: Collection[str] = (),
    prunable: Predicate = trees.default_prunable,
) -> Selection:
    """Keep the units with the highest scores: whole units, so that `shrink` can remove them.

    The sparsity is the fraction of prunable UNITS: exactly `round(sparsity * n)` of n go, ties by
    index, unless `round_to` moves a group's count to a multiple.

    Args:
      coupling: from `couple`.
      reduce: how elementwise scores become a unit's, see `Coupling.reduce`. Unit scores,
        `{group: [units]}`, are taken as they are.
      scope: "global", one ranking over all units; "group", every group loses the same share (down
        to its floor); or a mapping from group names to their own sparsities, others as called.
      budget: instead of a sparsity, the fewest units go that bring the cost down to the budget.
      floor: units that every group keeps, its best ones; at least one under a budget.
      round_to: kept units of a group are a multiple of this, the nearest one that is not below the
        floor (a group without such a multiple keeps all its units): widths that hardware likes.
      protected: names of groups that lose nothing.
      prunable: which leaves count when elementwise scores are reduced.

    Returns:
      A `Selection` whose mask is False on every slice of a removed unit, biases and statistics
      included.

    Raises:
      ValueError: an unknown scope, group or cost; a bound that cannot be met (the least possible
        cost is told); when called, both a budget and a sparsity, NaN scores, or a sparsity below
        the one already reached.
      TypeError: a budget that is no `Budget`.

    Example:
      >>> from jaxprune.coupling import couple
      >>> apply = lambda w, x: jax.nn.relu(x @ w[0]) @ w[1]
      >>> w = [jnp.array([[3.0, 1.0, 2.0]]), jnp.ones((3, 2))]
      >>> select = lowest_units(couple(apply, w, jnp.ones((4, 1))))
      >>> select(w, w, sparsity=1 / 3)[1]
      Array([[ True,  True],
             [False, False],
             [ True,  True]], dtype=bool)
    """
    if not coupling.groups:
        raise ValueError(
            "The coupling has no group of removable units. Print `coupling.pinned` for the reasons."
        )
    for name in (*protected, *(scope if isinstance(scope, Mapping) else ())):
        coupling.group(name)
    if not isinstance(scope, Mapping) and scope not in ("global", "group"):
        raise ValueError(f"The scope of units is 'global', 'group' or a mapping, got {scope!r}.")
    floor = checks.check_floor(floor)
    round_to = checks.whole(round_to, 1, "`round_to` is a number of units,")
    if budget is not None:
        _check_budget(budget)
        floor = max(floor, 1)  # an empty layer has no cost
    names = [name for name in coupling.groups if name not in set(protected)]
    if not names:
        raise ValueError("All groups are protected: nothing can be pruned.")

    def read(scores: Scores) -> dict[str, jax.Array]:
        if not is_unit_scores(coupling, scores):
            return coupling.reduce(scores, reduce, prunable=prunable)
        for name, score in scores.items():
            if np.shape(score) != (coupling.group(name).units,):
                raise ValueError(
                    f"The scores of {name!r} have shape {np.shape(score)}, the group has "
                    f"{coupling.group(name).units} units."
                )
        return {name: jnp.asarray(score) for name, score in scores.items()}

    rounding = round_to - 1  # so many more units of a group may go than a sparsity asks for

    def at(scores: dict[str, jax.Array], sparsity: Any, slack: int = rounding) -> Flags:
        leaves = [scores[name].astype(trees.score_dtype(scores[name])) for name in names]
        if scope == "global":
            masks = ranking.rank_leaves(
                names, leaves, sparsity, "global", floor, -1, checks.UNITS, slack * len(names)
            )
        else:
            shares = scope if isinstance(scope, Mapping) else {}
            masks = [
                _best(name, s, _share(shares.get(name, sparsity), sparsity), floor, slack)
                for name, s in zip(names, leaves, strict=True)
            ]
        if round_to > 1:
            masks = [_rounded(s, m, round_to, floor) for s, m in zip(leaves, masks, strict=True)]
        left = {name: _left(s) for name, s in scores.items() if name not in names}
        return left | dict(zip(names, masks, strict=True))

    def choose(params: Params, scores: Scores, sparsity: Any) -> Mask:
        units = read(scores)
        checks.numbers(names, [units[name] for name in names], checks.UNITS)
        if budget is None:
            if sparsity is None:
                raise ValueError("Give `sparsity=`, the fraction of units, or a `budget`.")
            return _laid(coupling.mask(at(units, sparsity), params), params)
        if sparsity is not None:
            raise ValueError("A budget says how many units go: pass no sparsity besides.")
        if trees.is_traced(units):
            raise ValueError("A budget is met by search, which cannot be done inside jit.")
        total = sum(coupling.group(name).units for name in names)
        most = total - 1  # shares of each group, which its floor ends
        if scope == "global":
            gone = [int(np.sum(~_left(units[name]))) for name in names]
            free = [max(coupling.group(name).units - floor, 0) for name in names]
            most = min(sum(map(max, free, gone)), total - 1)
        kept = _within(coupling, budget, lambda goes: at(units, goes / total, total), most)
        return _laid(coupling.mask(kept, params), params)

    by_budget = budget is not None
    return Selection(prunable, choose, coupling, read, groups=tuple(names), by_budget=by_budget)


def _laid(mask: Mask, params: Params) -> Mask:
    """The mask, laid on devices as the parameters are; of units alone it would lie whole."""
    if trees.is_traced(mask, params):
        return jax.tree.map(lambda keep, leaf: keep & trees.kept_whole(leaf), mask, params)
    return jax.tree.map(trees.beside, mask, params)


def is_unit_scores(coupling: Coupling, scores: Any) -> bool:
    """True for `{group: [units]}` with exactly the groups of a coupling."""
    return isinstance(scores, Mapping) and set(scores) == set(coupling.groups)


def _check_budget(budget: Any) -> None:
    if not isinstance(budget, Budget):
        raise TypeError(
            "A budget is a `jp.select.Budget`, such as Budget('flops', fraction=0.5); got "
            f"{budget!r}."
        )
    bound = budget.at_most if budget.fraction is None else budget.fraction
    if isinstance(bound, str | bytes | bool) or (bound is not None and np.ndim(bound)):
        raise TypeError(f"The bound of a budget is a number, got {bound!r}.")
    if not callable(budget.what) and budget.what not in COSTS:
        raise ValueError(
            f"A budget is in one of {', '.join(COSTS)}, or given by a function; got "
            f"{budget.what!r}."
        )
    if (budget.fraction is None) == (budget.at_most is None):
        raise ValueError("Give a budget either `fraction=` of the dense cost, or `at_most=`.")
    if budget.fraction is not None and not 0 < budget.fraction <= 1:
        raise ValueError(f"The fraction of the dense cost is in (0, 1], got {budget.fraction}.")


def _share(own: Any, sparsity: Any) -> Any:
    """A group's sparsity: a number, or a function of the call's."""
    return own(sparsity) if callable(own) else own


def _left(scores: Any) -> Any:
    """Which units are not pruned already; NaN is no `-inf`."""
    if trees.is_traced(scores):
        return scores != -jnp.inf
    return np.asarray(scores) != -np.inf


def _best(name: str, scores: jax.Array, sparsity: Any, floor: int, slack: int) -> jax.Array:
    """The best units of one group, `round(sparsity * n)` fewer than n, but at least the floor."""
    n = len(scores)
    goes, most = counts.pruned_count(sparsity, n), max(n - floor, 0)
    if trees.is_traced((scores, goes)):
        return _first(scores, n - jnp.minimum(goes, most))
    gone = int(np.sum(~_left(scores)))
    checks.reached(checks.UNITS.part(name), gone, goes, checks.UNITS, slack)
    return _first(scores, n - min(goes, most))


def _first(scores: jax.Array, wanted: Any) -> jax.Array:
    """The `wanted` highest scores, ties by index (the later one stays); never -inf."""
    if not trees.is_traced((scores, wanted)):  # XLA would compile a sort for every width
        last = np.argsort(np.asarray(scores), kind="stable")[len(scores) - int(wanted) :]
        kept = np.zeros(len(scores), bool)
        kept[last] = True
        return jnp.asarray(kept & (np.asarray(scores) > -np.inf))
    order = jnp.argsort(scores, stable=True)
    rank = jnp.zeros(len(scores), jnp.int32).at[order].set(jnp.arange(len(scores)))
    return (rank >= len(scores) - wanted) & (scores > -jnp.inf)


def _rounded(scores: jax.Array, mask: jax.Array, multiple: int, floor: int) -> jax.Array:
    """The mask with its count moved to the nearest multiple, still the best units."""
    least = -(-max(floor, 1) // multiple) * multiple
    if len(scores) < least:
        return _left(scores)
    nearest = jnp.round(jnp.sum(mask) / multiple).astype(jnp.int32) * multiple
    whole = jnp.sum(_left(scores)) // multiple * multiple
    return _first(scores, jnp.clip(nearest, least, jnp.maximum(whole, least)))


def _within(
    coupling: Coupling,
    budget: Budget,
    keep: Callable[[int], Flags],
    most: int,
) -> dict[str, np.ndarray]:
    """The fewest units removed that cost no more than the budget, by bisection."""
    cost = budget.what if callable(budget.what) else getattr(coupling, budget.what)
    flags = lambda goes: {name: np.asarray(mask) for name, mask in keep(goes).items()}
    dense = {name: np.ones(group.units, bool) for name, group in coupling.groups.items()}
    limit = budget.at_most if budget.fraction is None else budget.fraction * cost(dense)
    assert limit is not None, "checked where the budget was given"
    low, high = 0, most
    if cost(flags(low)) <= limit:
        return flags(low)
    if cost(flags(high)) > limit:
        raise ValueError(
            f"The budget of {limit:g} {budget.what if isinstance(budget.what, str) else ''} cannot "
            f"be met: with every group down to its floor, or to a number of its own in `scope`, "
            f"the network still costs {cost(flags(high)):g}. Lower the floor, protect fewer "
            "groups, or allow more."
        )
    while high - low > 1:
        middle = (low + high) // 2
        if cost(flags(middle)) <= limit:
            high = middle
        else:
            low = middle
    return flags(high)
