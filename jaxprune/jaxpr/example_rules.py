"""Where the examples of a batch lie in the results of primitives: one rule a primitive."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxprune.jaxpr import primitives


class Along(NamedTuple):
    """Examples are laid out along an array: `before` blocks of N examples of `stride` entries."""

    before: int
    stride: int


class Same(NamedTuple):
    """No example is in it; along `axes` all entries are equal."""

    axes: frozenset[int]


class Mixed(Exception):
    """An equation in which examples meet, or for which there is no rule."""


State = Along | Same
_REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or",
               "argmax", "argmin")  # fmt: skip
_ALONG_ONE = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
_UNCHANGED = ("optimization_barrier", "sharding_constraint", "pvary", "pcast")


def axis_of(state: State, shape: tuple[int, ...], n: int) -> int | None:
    """The axis along which examples lie (perhaps merged with later ones); None if they do not.

    Raises:
      Mixed: they lie along no axis of this shape.
    """
    if isinstance(state, Same):
        return None
    before = 1
    for axis, size in enumerate(shape):
        if before == state.before and size % n == 0:
            rest = math.prod(shape[axis + 1 :])
            if size // n * rest == state.stride:
                return axis
        before *= size
    raise Mixed


def along(axis: int, shape: tuple[int, ...], n: int) -> Along:
    """Examples along an axis that holds nothing but examples, or examples first."""
    if shape[axis] % n:
        raise Mixed
    return Along(math.prod(shape[:axis]), math.prod(shape[axis:]) // n)


def shapes(eqn: Any) -> list[tuple[int, ...]]:
    """Shapes of the operands."""
    return [v.aval.shape for v in eqn.invars]


def _out(eqn: Any) -> tuple[int, ...]:
    return eqn.outvars[0].aval.shape


def _together(eqn: Any, states: list[State], n: int, shapes: list[tuple[int, ...]]) -> list[State]:
    """Operands of one shape, entry by entry; scalars go with all."""
    pairs = [(s, shape) for s, shape in zip(states, shapes, strict=True) if shape != ()]
    axes = {axis_of(s, shape, n) for s, shape in pairs if isinstance(s, Along)}
    if not axes:
        ones = lambda shape: {a for a, size in enumerate(shape) if size == 1}
        same = [s.axes | ones(shape) for s, shape in pairs if isinstance(s, Same)]
        full = frozenset(range(len(_out(eqn))))
        return [Same(full.intersection(*same)) for _ in eqn.outvars]
    if len(axes) != 1:
        raise Mixed
    axis = next(a for a in axes if a is not None)
    # Operands may have size 1 where others have more.
    if any(isinstance(s, Same) and axis not in s.axes and shape[axis] > 1 for s, shape in pairs):
        raise Mixed
    return [along(axis, v.aval.shape, n) for v in eqn.outvars]


def _elementwise(eqn: Any, states: list[State], n: int) -> list[State]:
    return _together(eqn, states, n, shapes(eqn))


def _kept(eqn: Any, states: list[State], n: int, gone: Sequence[int]) -> list[State]:
    """The first operand without some of its axes."""
    shape = shapes(eqn)[0]
    left = [a for a in range(len(shape)) if a not in gone]
    axis = axis_of(states[0], shape, n)
    if axis is None:
        same = frozenset(i for i, a in enumerate(left) if a in same_axes(states[0]))
        return [Same(same) for _ in eqn.outvars]
    if axis in gone:
        raise Mixed
    return [along(left.index(axis), _out(eqn), n) for _ in eqn.outvars]


def same_axes(state: State) -> frozenset[int]:
    """Axes along which all entries are equal, as far as is known."""
    return state.axes if isinstance(state, Same) else frozenset()


def _reduction(eqn: Any, states: list[State], n: int) -> list[State]:
    return _kept(eqn, states[:1], n, eqn.params["axes"])


def _squeeze(eqn: Any, states: list[State], n: int) -> list[State]:
    return _kept(eqn, states, n, eqn.params["dimensions"])


def _untouched(eqn: Any, states: list[State], n: int, touched: Callable[[int], bool]) -> Any:
    """Shapes stay or change elsewhere: examples must not lie along an axis that is touched."""
    axis = axis_of(states[0], shapes(eqn)[0], n)
    if axis is None:
        full = range(len(_out(eqn)))
        return [Same(frozenset(a for a in full if a in same_axes(states[0]) and not touched(a)))]
    if touched(axis):
        raise Mixed
    return [along(axis, v.aval.shape, n) for v in eqn.outvars]


def _pad(eqn: Any, states: list[State], n: int) -> list[State]:
    config = eqn.params["padding_config"]
    return _untouched(eqn, states, n, lambda a: tuple(config[a]) != (0, 0, 0))


def _slice(eqn: Any, states: list[State], n: int) -> list[State]:
    return _untouched(eqn, states, n, lambda a: _out(eqn)[a] != shapes(eqn)[0][a])


def _dynamic_slice(eqn: Any, states: list[State], n: int) -> list[State]:
    if any(isinstance(s, Along) for s in states[1:]):
        raise Mixed
    return _slice(eqn, states, n)


def _dynamic_update_slice(eqn: Any, states: list[State], n: int) -> list[State]:
    array, update = shapes(eqn)[:2]
    if any(isinstance(s, Along) for s in states[2:]):
        raise Mixed
    axes = {a for s, shape in zip(states[:2], (array, update), strict=True)
            if (a := axis_of(s, shape, n)) is not None}  # fmt: skip
    if not axes:
        return [Same(frozenset())]
    if len(axes) != 1 or array[min(axes)] != update[min(axes)]:
        raise Mixed
    (axis,) = axes
    if any(isinstance(s, Same) and axis not in s.axes for s in states[:2]):
        raise Mixed
    return [along(axis, _out(eqn), n)]


def _rev(eqn: Any, states: list[State], n: int) -> list[State]:
    return _untouched(eqn, states, n, lambda a: a in eqn.params["dimensions"])


def _cumulative(eqn: Any, states: list[State], n: int) -> list[State]:
    return _untouched(eqn, states, n, lambda a: a == eqn.params["axis"])


def _window(eqn: Any, states: list[State], n: int) -> list[State]:
    return _untouched(eqn, states[:1], n, lambda a: eqn.params["window_dimensions"][a] != 1)


def _sort(eqn: Any, states: list[State], n: int) -> list[State]:
    outs = _elementwise(eqn, states, n)
    if axis_of(outs[0], _out(eqn), n) == eqn.params["dimension"]:
        raise Mixed
    return outs if isinstance(outs[0], Along) else [Same(frozenset()) for _ in outs]


def _top_k(eqn: Any, states: list[State], n: int) -> list[State]:
    last = eqn.params.get("axis", -1) % len(shapes(eqn)[0])
    outs = _untouched(eqn, states, n, lambda a: a == last)
    return outs if len(outs) == len(eqn.outvars) else outs * len(eqn.outvars)


def _transpose(eqn: Any, states: list[State], n: int) -> list[State]:
    order = list(eqn.params["permutation"])
    axis = axis_of(states[0], shapes(eqn)[0], n)
    if axis is None:
        return [Same(frozenset(order.index(a) for a in same_axes(states[0])))]
    return [along(order.index(axis), _out(eqn), n)]


def _reshape(eqn: Any, states: list[State], n: int) -> list[State]:
    if eqn.params.get("dimensions") is not None:
        raise Mixed
    before, after = shapes(eqn)[0], _out(eqn)
    if isinstance(states[0], Along):
        axis_of(states[0], after, n)
        return [states[0]]
    prefix = lambda shape, axis: (math.prod(shape[:axis]), shape[axis])
    old = {prefix(before, a) for a in same_axes(states[0])}
    same = (a for a in range(len(after)) if after[a] == 1 or prefix(after, a) in old)
    everywhere = len(same_axes(states[0])) == len(before)
    return [Same(frozenset(range(len(after)) if everywhere else same))]


def _broadcast(eqn: Any, states: list[State], n: int) -> list[State]:
    before, after = shapes(eqn)[0], _out(eqn)
    places = eqn.params["broadcast_dimensions"]
    axis = axis_of(states[0], before, n)
    if axis is not None:
        return [along(places[axis], after, n)]
    grown = [a for a in range(len(after)) if a not in places]
    grown += [p for a, p in enumerate(places) if before[a] == 1 or a in same_axes(states[0])]
    return [Same(frozenset(grown))]


def _concatenate(eqn: Any, states: list[State], n: int) -> list[State]:
    place = eqn.params["dimension"]
    axes = {a for s, shape in zip(states, shapes(eqn), strict=True)
            if (a := axis_of(s, shape, n)) is not None}  # fmt: skip
    if not axes:
        full = frozenset(range(len(_out(eqn)))) - {place}
        return [Same(full.intersection(*(same_axes(s) for s in states)))]
    if len(axes) != 1 or place in axes:
        raise Mixed
    (axis,) = axes
    if any(isinstance(s, Same) and axis not in s.axes for s in states):
        raise Mixed
    return [along(axis, _out(eqn), n)]


def _stack(eqn: Any, states: list[State], n: int) -> list[State]:
    place = eqn.params["axis"]
    moved = lambda a: a + (a >= place)
    axes = {a for s, shape in zip(states, shapes(eqn), strict=True)
            if (a := axis_of(s, shape, n)) is not None}  # fmt: skip
    if not axes:
        full = frozenset(range(len(shapes(eqn)[0])))
        return [Same(frozenset(map(moved, full.intersection(*map(same_axes, states)))))]
    if len(axes) != 1 or any(isinstance(s, Same) and not axes <= s.axes for s in states):
        raise Mixed
    return [along(moved(axes.pop()), _out(eqn), n)]


def _unstack(eqn: Any, states: list[State], n: int) -> list[State]:
    return _kept(eqn, states, n, (eqn.params["axis"],))


def _split(eqn: Any, states: list[State], n: int) -> list[State]:
    axis = axis_of(states[0], shapes(eqn)[0], n)
    if axis is None:
        return [Same(same_axes(states[0]) - {eqn.params["axis"]}) for _ in eqn.outvars]
    if axis == eqn.params["axis"]:
        raise Mixed
    return [along(axis, v.aval.shape, n) for v in eqn.outvars]


def _dot(eqn: Any, states: list[State], n: int) -> list[State]:
    (contracted, batched) = eqn.params["dimension_numbers"]
    places, same = set(), set(range(len(_out(eqn))))
    for side in (0, 1):
        shape = shapes(eqn)[side]
        axis = axis_of(states[side], shape, n)
        other = eqn.invars[1 - side].aval.ndim - len(contracted[side]) - len(batched[side])
        free = [a for a in range(len(shape)) if a not in (*contracted[side], *batched[side])]
        skipped = len(batched[0]) + (other if side else 0)
        if axis is None:
            unlike = lambda a, side=side: a not in same_axes(states[side])
            same -= {i for i, a in enumerate(batched[side]) if unlike(a)}
            same -= {skipped + i for i, a in enumerate(free) if unlike(a)}
            continue
        if axis in contracted[side]:
            raise Mixed
        if axis in batched[side]:
            where = batched[side].index(axis)
            partner, place = states[1 - side], batched[1 - side][where]
            if isinstance(partner, Same) and place not in partner.axes:
                raise Mixed
            places.add(where)
        else:
            places.add(skipped + free.index(axis))
    if not places:
        return [Same(frozenset(same))]
    if len(places) != 1:
        raise Mixed
    return [along(places.pop(), _out(eqn), n)]


def _convolution(eqn: Any, states: list[State], n: int) -> list[State]:
    numbers = eqn.params["dimension_numbers"]
    axis, kernel = (axis_of(s, shape, n) for s, shape in zip(states, shapes(eqn), strict=True))
    if axis is None and kernel is None:
        alike = numbers.lhs_spec[0] in same_axes(states[0])
        return [Same(frozenset({numbers.out_spec[0]} if alike else ()))]
    if kernel is not None or axis != numbers.lhs_spec[0] or eqn.params["batch_group_count"] != 1:
        raise Mixed
    return [along(numbers.out_spec[0], _out(eqn), n)]


def _gather(eqn: Any, states: list[State], n: int) -> list[State]:
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    array, indices = shapes(eqn)
    at, by = (axis_of(s, shape, n) for s, shape in zip(states, (array, indices), strict=True))
    if at is None and by is None:
        return [Same(frozenset())]
    rank = len(_out(eqn))
    batch = [a for a in range(rank) if a not in numbers.offset_dims]
    outside = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    inside = [a for a in range(len(array)) if a not in outside]
    if at is None:
        return [along(batch[by], _out(eqn), n)]  # type: ignore[index]  # by is an axis here
    if at in numbers.operand_batching_dims:
        partner = numbers.start_indices_batching_dims[numbers.operand_batching_dims.index(at)]
        if by not in (None, partner):
            raise Mixed
        if isinstance(states[1], Same) and partner not in states[1].axes:
            raise Mixed
        return [along(batch[partner], _out(eqn), n)]
    if by is not None or at not in inside or sizes[at] != array[at]:
        raise Mixed
    return [along(numbers.offset_dims[inside.index(at)], _out(eqn), n)]


RULES: dict[str, Callable[[Any, list[State], int], list[State]]] = {
    **dict.fromkeys(primitives.ELEMENTWISE, _elementwise),
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(_ALONG_ONE, _cumulative),
    **dict.fromkeys(_UNCHANGED, lambda eqn, states, n: states),
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min"), _window),
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _rev,
    "slice": _slice,
    "sort": _sort,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "top_k": _top_k,
    "transpose": _transpose,
    "unstack": _unstack,
}
