"""Widths as data: the profile of a pruned net, scaled to a family, and trained from scratch."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxprune.coupling.groups import Coupling, Kept
from jaxprune.jaxpr.equations import Equation
from jaxprune.jaxpr.labels import Frame
from jaxprune.structure.shrinking import shrink_units
from jaxprune.structure.ways import Wiring, wiring
from jaxprune.types import Params

Profile = Mapping[str, int]
"""`{group: units kept}`; a group that is missing keeps all its units. It survives json."""


def width_profile(coupling: Coupling, kept: Kept) -> dict[str, int]:
    """How many units every group keeps, as plain integers.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune.coupling import couple
      >>> w = [jnp.ones((3, 4)), jnp.ones((4, 2))]
      >>> coupling = couple(lambda w, x: x @ w[0] @ w[1], w, jnp.ones((1, 3)))
      >>> width_profile(coupling, {"0": np.array([True, False, True, True])})
      {'0': 3}
    """
    flags = coupling.vector(kept)
    return {name: int(np.count_nonzero(flags[g.ids])) for name, g in coupling.groups.items()}


def width_shares(coupling: Coupling, kept: Kept) -> dict[str, float]:
    """Which share of its units every group keeps, in (0, 1]."""
    widths = width_profile(coupling, kept)
    return {name: widths[name] / group.units for name, group in coupling.groups.items()}


def kept_of(coupling: Coupling, profile: Profile) -> dict[str, np.ndarray]:
    """A profile as flags: the first n units of every group are kept.

    Raises:
      ValueError: an unknown group; a width outside 1 .. units. TypeError: one that is no integer.
    """
    found = {}
    for name, n in profile.items():
        units = coupling.group(name).units
        if isinstance(n, bool) or not hasattr(n, "__index__"):
            raise TypeError(f"The width of {name!r} is a number of units, an integer; got {n!r}.")
        if not 1 <= operator.index(n) <= units:
            raise ValueError(f"The width of {name!r} must lie in 1 .. {units}, got {n}.")
        found[name] = np.arange(units) < operator.index(n)
    return found


def scaled_profile(
    coupling: Coupling,
    profile: Profile,
    factor: float | None = None,
    *,
    parameters: int | None = None,
    flops: int | None = None,
    multiple: int = 1,
) -> dict[str, int]:
    """A profile scaled: every width times one factor, the shape of the profile kept.

    A width n becomes `round(factor n)`, to the nearest multiple of `multiple` (halves up), at
    least one multiple, at most the group's units. Groups that the profile does not name count as
    whole. With a target, the factor is the largest that does not exceed it, found by bisection:
    costs never fall as the factor grows.

    Args:
      coupling: from `couple`.
      profile: `{group: units kept}`.
      factor: > 0; or one of
      parameters, flops: a target for `coupling.parameters` or `coupling.flops`.
      multiple: widths are multiples of this (a group with fewer units keeps them all).

    Returns:
      `{group: units kept}` for every group, plain integers.

    Raises:
      ValueError: not exactly one of factor, parameters, flops; a target below the least possible,
        or above the whole model's; a factor or a multiple that is not positive; an unknown group.
      TypeError: a width that is no integer.

    References:
      The copycat networks of Crowley, Turner, Storkey, O'Boyle 2018, Pruning neural networks: is
      it time to nip it in the bud?
    """
    if sum(given is not None for given in (factor, parameters, flops)) != 1:
        raise ValueError(
            "Give exactly one of `factor`, `parameters=` and `flops=`; got "
            f"factor={factor}, parameters={parameters}, flops={flops}."
        )
    if multiple < 1 or multiple != operator.index(multiple):
        raise ValueError(f"`multiple` is an integer >= 1, got {multiple}.")
    widths = width_profile(coupling, kept_of(coupling, profile))
    if factor is not None:
        if not factor > 0 or not math.isfinite(factor):
            raise ValueError(f"`factor` is a positive number, got {factor}.")
        return _scaled(coupling, widths, factor, multiple)
    what = "parameters" if parameters is not None else "flops"
    target = parameters if parameters is not None else flops
    cost = getattr(coupling, what)
    at = lambda scale: cost(kept_of(coupling, _scaled(coupling, widths, scale, multiple)))
    low, high = 0.0, max(coupling.groups[name].units / n for name, n in widths.items())
    high *= 1 + multiple  # rounding up to a whole group
    if not at(low) <= target <= cost():
        raise ValueError(
            f"The target of {target} {what} lies outside {at(low)} .. {cost()}: what the narrowest "
            "net of this kind costs, and the whole model."
        )
    if at(high) <= target:
        return _scaled(coupling, widths, high, multiple)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) <= target else (low, middle)
    return _scaled(coupling, widths, low, multiple)


def _scaled(
    coupling: Coupling, widths: Mapping[str, int], factor: float, multiple: int
) -> dict[str, int]:
    found = {}
    for name, n in widths.items():
        steps = max(math.floor(factor * n / multiple + 0.5), 1)
        found[name] = min(steps * multiple, coupling.groups[name].units)
    return found


def reinitialise(
    init: Callable[[Any], Params],
    kept: Kept,
    coupling: Coupling,
    key: Any,
    *,
    fan: str | None = "in",
) -> Params:
    """Fresh initial values at the pruned shapes, for training the pruned net from scratch.

    What `init(key)` gives for the whole model is sliced, and every leaf that enters a product is
    multiplied by `sqrt(fan of the whole leaf / fan of the slice)`. An initialiser of variance
    c / fan (He, LeCun: fan "in"; Glorot: "avg") then has the variance c / fan of the SMALL net.
    The fans are read off the products: of a dense layer the lengths that are contracted and that
    are not, of a convolution these times the kernel's positions; a leaf that several products read
    has those of the first, and leaves that are concatenated each have their own. Biases, norms,
    statistics and embeddings are sliced as they are, and a kernel that starts at zero stays zero.

    Args:
      init: `key -> variables`, of the model that was coupled; or of a small model, whose shapes are
        the pruned ones: then its values are returned as they are.
      kept: `{group: bool[units]}`.
      coupling: from `couple`.
      key: for `init`.
      fan: "in", "out", "avg" (their mean), or None: no rescaling.

    Returns:
      Variables of the shapes that `shrink_units` gives.

    Raises:
      ValueError: an unknown fan; `init` gives neither the whole shapes nor the pruned ones.

    References:
      Crowley et al. 2018 train pruned architectures from scratch. Fans: Glorot and Bengio 2010,
      He et al. 2015.
    """
    if fan not in ("in", "out", "avg", None):
        raise ValueError(f"`fan` is 'in', 'out', 'avg' or None, got {fan!r}.")
    fresh = init(key)
    flags = coupling.vector(kept)
    shapes = [tuple(int(flags[ids].sum()) for ids in axes) for axes in coupling.labels]
    leaves, structure = jax.tree.flatten(fresh)
    if [np.shape(leaf) for leaf in leaves] == shapes:
        return fresh
    coupling.check(fresh)
    if fan is not None:
        for number, (whole, small) in _fans(wiring(coupling), flags).items():
            ratio = _fan(whole, fan) / _fan(small, fan)
            leaf = leaves[number]
            leaves[number] = leaf if ratio == 1 else (leaf * math.sqrt(ratio)).astype(leaf.dtype)
    return shrink_units(jax.tree.unflatten(structure, leaves), kept, coupling)


_Fans = tuple[int, int]  # (in, out)
_Axes = tuple[tuple[int, ...], tuple[int, ...]]


def _fan(fans: _Fans, kind: str) -> float:
    return {"in": fans[0], "out": fans[1], "avg": sum(fans) / 2}[kind]


def _fans(wired: Wiring, flags: np.ndarray) -> dict[int, tuple[_Fans, _Fans]]:
    """By leaf, its fans in the first product that it enters: whole, and with `flags` kept."""
    found: dict[int, tuple[_Fans, _Fans]] = {}
    for frame, equation in _products(wired.frame):
        values = [frame.value(operand) for operand in equation.operands]
        for side, value in enumerate(values):
            axes = _fan_axes(equation, side, len(value.labels))
            if axes is None or value.varies or not values[1 - side].varies:
                continue
            for leaf, labels in _leaves(wired, value.labels).items():
                whole = [len(ids) for ids in labels]
                small = [int(flags[wired.ids(ids)].sum()) for ids in labels]
                found.setdefault(leaf, (_sizes(whole, axes), _sizes(small, axes)))
    return found


def _sizes(shape: list[int], axes: _Axes) -> _Fans:
    return math.prod(shape[a] for a in axes[0]), math.prod(shape[a] for a in axes[1])


def _products(frame: Frame) -> Iterator[tuple[Frame, Equation]]:
    """The products of a program and of those it calls, in order."""
    for index, equation in enumerate(frame.program.equations):
        if equation.name in ("dot_general", "conv_general_dilated"):
            yield frame, equation
        for called in frame.inner.get(index, []):
            yield from _products(called)


def _fan_axes(equation: Equation, side: int, rank: int) -> _Axes | None:
    """The axes of a weight whose lengths make its fans; None if it cannot be one there."""
    numbers = equation.params["dimension_numbers"]
    if equation.name == "conv_general_dilated":
        out, channels, *space = numbers.rhs_spec
        return ((channels, *space), (out, *space)) if side == 1 else None
    ended, shared = (tuple(axes[side]) for axes in numbers)
    return ended, tuple(a for a in range(rank) if a not in (*ended, *shared))


def _leaves(wired: Wiring, labels: tuple[np.ndarray, ...]) -> dict[int, tuple[np.ndarray, ...]]:
    """The leaf whose own labels an operand's axes bear, or those that are concatenated there.

    With each go the labels of the axes, of an axis along which it is concatenated only its own.
    """
    first: dict[int, tuple[np.ndarray, ...]] = {}
    parts: dict[int, tuple[np.ndarray, ...]] = {}
    for number, axes in enumerate(wired.reading.labels):
        mine = np.concatenate([np.zeros(0, np.int64), *(ids for ids in axes if len(ids) > 1)])
        own = [np.isin(ids, mine) & (len(ids) > 1) for ids in labels]
        if any(where.any() and not where.all() for where in own):
            pairs = zip(labels, own, strict=True)
            parts[number] = tuple(ids[where] if where.any() else ids for ids, where in pairs)
        elif not first and any(where.size and where.all() for where in own):
            first[number] = labels
    return first | parts
