"""Does each example's output depend on that example alone? Read off the jaxpr."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

from jaxprune.jaxpr import equations, primitives
from jaxprune.types import Apply, Params, PyTree


class _Along(NamedTuple):
    """Examples are laid out along an array: `before` blocks of N examples of `stride` entries."""

    before: int
    stride: int


class _Same(NamedTuple):
    """No example is in it; along `axes` all entries are equal."""

    axes: frozenset[int]


class _Mixed(Exception):
    """An equation in which examples meet, or for which there is no rule."""


_State = _Along | _Same
_REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or",
               "argmax", "argmin")  # fmt: skip
_ALONG_ONE = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
_UNCHANGED = ("optimization_barrier", "sharding_constraint", "pvary", "pcast")
_CALLS = ("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "custom_jvp_call",
          "custom_vjp_call", "custom_vjp_call_jaxpr")  # fmt: skip


def independent_examples(apply: Apply, params: Params, inputs: PyTree) -> bool:
    """True if `apply` treats every example alike and by itself: row n of the outputs is row n's.

    Then a batch may be cut, and examples be differentiated one by one. Training-mode BatchNorm, a
    dropout mask drawn for the whole batch, or a fixed array with one row an example say False, and
    so does any primitive without a rule here, when examples enter it.

    Example:
      >>> import jax.numpy as jnp
      >>> w, x = jnp.ones((3, 3)), jnp.ones((4, 3))
      >>> independent_examples(lambda w, x: jnp.tanh(x @ w), w, x)
      True
      >>> independent_examples(lambda w, x: x @ w - jnp.mean(x, axis=0), w, x)
      False
    """
    leaves = jax.tree.leaves(inputs)
    n = leaves[0].shape[0]
    first = lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    example = jax.tree.map(first, inputs)
    try:
        one = jax.eval_shape(apply, params, example)
        closed, many = jax.make_jaxpr(apply, return_shape=True)(params, inputs)
    except Exception:  # whatever the model raises on one example: it cannot take them one by one
        jax.eval_shape(apply, params, inputs)
        return False
    if jax.tree.structure(one) != jax.tree.structure(many) or any(
        a.shape != (1, *b.shape[1:]) or b.shape[:1] != (n,)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True)
    ):
        return False
    if n == 1:
        return True
    states: list[_State] = [_Same(frozenset()) for _ in jax.tree.leaves(params)]
    states += [_Along(1, math.prod(x.shape[1:])) for x in leaves]
    try:
        outs = _follow(closed, states, n)
    except _Mixed:
        return False
    return all(
        _axis(out, v.aval.shape, n) == 0 for out, v in zip(outs, closed.jaxpr.outvars, strict=True)
    )


def _axis(state: _State, shape: tuple[int, ...], n: int) -> int | None:
    """The axis along which examples lie (perhaps merged with later ones); None if they do not.

    Raises:
      _Mixed: they lie along no axis of this shape.
    """
    if isinstance(state, _Same):
        return None
    before = 1
    for axis, size in enumerate(shape):
        if before == state.before and size % n == 0:
            rest = math.prod(shape[axis + 1 :])
            if size // n * rest == state.stride:
                return axis
        before *= size
    raise _Mixed


def _at(axis: int, shape: tuple[int, ...], n: int) -> _Along:
    """Examples along an axis that holds nothing but examples, or examples first."""
    if shape[axis] % n:
        raise _Mixed
    return _Along(math.prod(shape[:axis]), math.prod(shape[axis:]) // n)


def _follow(closed: Any, args: Sequence[_State], n: int) -> list[_State]:
    jaxpr = getattr(closed, "jaxpr", closed)
    known: dict[Any, _State] = dict(zip(jaxpr.invars, args, strict=True))
    for variable, const in zip(jaxpr.constvars, getattr(closed, "consts", ()), strict=False):
        known[variable] = _constant(const)

    def read(v: Any) -> _State:
        return _constant(v.val) if isinstance(v, core.Literal) else known.get(v, _Same(frozenset()))

    for eqn in jaxpr.eqns:
        states = [read(v) for v in eqn.invars]
        name = eqn.primitive.name
        if name in _RULES:
            outs = _RULES[name](eqn, states, n)
        elif any(isinstance(state, _Along) for state in states):
            raise _Mixed
        else:
            outs = [_Same(frozenset()) for _ in eqn.outvars]
        known.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _constant(value: Any) -> _Same:
    """Along which axes a known array repeats itself."""
    if not isinstance(value, np.ndarray | jax.Array) or isinstance(value, jax.core.Tracer):
        return (
            _Same(frozenset(range(np.ndim(value)))) if np.ndim(value) == 0 else _Same(frozenset())
        )
    if value.size > 1 << 20 or jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):
        return _Same(frozenset())
    array = np.asarray(value)
    same = (a for a in range(array.ndim) if (array == array.take([0], axis=a)).all())
    return _Same(frozenset(same)) if array.size else _Same(frozenset(range(array.ndim)))


def _shapes(eqn: Any) -> list[tuple[int, ...]]:
    return [v.aval.shape for v in eqn.invars]


def _out(eqn: Any) -> tuple[int, ...]:
    return eqn.outvars[0].aval.shape


def _together(
    eqn: Any, states: list[_State], n: int, shapes: list[tuple[int, ...]]
) -> list[_State]:
    """Operands of one shape, entry by entry; scalars go with all."""
    pairs = [(s, shape) for s, shape in zip(states, shapes, strict=True) if shape != ()]
    axes = {_axis(s, shape, n) for s, shape in pairs if isinstance(s, _Along)}
    if not axes:
        ones = lambda shape: {a for a, size in enumerate(shape) if size == 1}
        same = [s.axes | ones(shape) for s, shape in pairs if isinstance(s, _Same)]
        full = frozenset(range(len(_out(eqn))))
        return [_Same(full.intersection(*same)) for _ in eqn.outvars]
    if len(axes) != 1:
        raise _Mixed
    (axis,) = axes
    # Operands may have size 1 where others have more.
    if any(isinstance(s, _Same) and axis not in s.axes and shape[axis] > 1 for s, shape in pairs):
        raise _Mixed
    return [_at(axis, v.aval.shape, n) for v in eqn.outvars]


def _elementwise(eqn: Any, states: list[_State], n: int) -> list[_State]:
    return _together(eqn, states, n, _shapes(eqn))


def _kept(eqn: Any, states: list[_State], n: int, gone: Sequence[int]) -> list[_State]:
    """The first operand without some of its axes."""
    shape = _shapes(eqn)[0]
    left = [a for a in range(len(shape)) if a not in gone]
    axis = _axis(states[0], shape, n)
    if axis is None:
        same = frozenset(i for i, a in enumerate(left) if a in _same_axes(states[0]))
        return [_Same(same) for _ in eqn.outvars]
    if axis in gone:
        raise _Mixed
    return [_at(left.index(axis), _out(eqn), n) for _ in eqn.outvars]


def _same_axes(state: _State) -> frozenset[int]:
    return state.axes if isinstance(state, _Same) else frozenset()


def _reduction(eqn: Any, states: list[_State], n: int) -> list[_State]:
    return _kept(eqn, states[:1], n, eqn.params["axes"])


def _squeeze(eqn: Any, states: list[_State], n: int) -> list[_State]:
    return _kept(eqn, states, n, eqn.params["dimensions"])


def _untouched(eqn: Any, states: list[_State], n: int, touched: Callable[[int], bool]) -> Any:
    """Shapes stay or change elsewhere: examples must not lie along an axis that is touched."""
    axis = _axis(states[0], _shapes(eqn)[0], n)
    if axis is None:
        full = range(len(_out(eqn)))
        return [_Same(frozenset(a for a in full if a in _same_axes(states[0]) and not touched(a)))]
    if touched(axis):
        raise _Mixed
    return [_at(axis, v.aval.shape, n) for v in eqn.outvars]


def _pad(eqn: Any, states: list[_State], n: int) -> list[_State]:
    config = eqn.params["padding_config"]
    return _untouched(eqn, states, n, lambda a: tuple(config[a]) != (0, 0, 0))


def _slice(eqn: Any, states: list[_State], n: int) -> list[_State]:
    return _untouched(eqn, states, n, lambda a: _out(eqn)[a] != _shapes(eqn)[0][a])


def _dynamic_slice(eqn: Any, states: list[_State], n: int) -> list[_State]:
    if any(isinstance(s, _Along) for s in states[1:]):
        raise _Mixed
    return _slice(eqn, states, n)


def _dynamic_update_slice(eqn: Any, states: list[_State], n: int) -> list[_State]:
    array, update = _shapes(eqn)[:2]
    if any(isinstance(s, _Along) for s in states[2:]):
        raise _Mixed
    axes = {a for s, shape in zip(states[:2], (array, update), strict=True)
            if (a := _axis(s, shape, n)) is not None}  # fmt: skip
    if not axes:
        return [_Same(frozenset())]
    if len(axes) != 1 or array[min(axes)] != update[min(axes)]:
        raise _Mixed
    (axis,) = axes
    if any(isinstance(s, _Same) and axis not in s.axes for s in states[:2]):
        raise _Mixed
    return [_at(axis, _out(eqn), n)]


def _rev(eqn: Any, states: list[_State], n: int) -> list[_State]:
    return _untouched(eqn, states, n, lambda a: a in eqn.params["dimensions"])


def _cumulative(eqn: Any, states: list[_State], n: int) -> list[_State]:
    return _untouched(eqn, states, n, lambda a: a == eqn.params["axis"])


def _window(eqn: Any, states: list[_State], n: int) -> list[_State]:
    return _untouched(eqn, states[:1], n, lambda a: eqn.params["window_dimensions"][a] != 1)


def _sort(eqn: Any, states: list[_State], n: int) -> list[_State]:
    outs = _elementwise(eqn, states, n)
    if _axis(outs[0], _out(eqn), n) == eqn.params["dimension"]:
        raise _Mixed
    return outs if isinstance(outs[0], _Along) else [_Same(frozenset()) for _ in outs]


def _top_k(eqn: Any, states: list[_State], n: int) -> list[_State]:
    last = eqn.params.get("axis", -1) % len(_shapes(eqn)[0])
    outs = _untouched(eqn, states, n, lambda a: a == last)
    return outs if len(outs) == len(eqn.outvars) else outs * len(eqn.outvars)


def _transpose(eqn: Any, states: list[_State], n: int) -> list[_State]:
    order = list(eqn.params["permutation"])
    axis = _axis(states[0], _shapes(eqn)[0], n)
    if axis is None:
        return [_Same(frozenset(order.index(a) for a in _same_axes(states[0])))]
    return [_at(order.index(axis), _out(eqn), n)]


def _reshape(eqn: Any, states: list[_State], n: int) -> list[_State]:
    if eqn.params.get("dimensions") is not None:
        raise _Mixed
    before, after = _shapes(eqn)[0], _out(eqn)
    if isinstance(states[0], _Along):
        _axis(states[0], after, n)
        return [states[0]]
    prefix = lambda shape, axis: (math.prod(shape[:axis]), shape[axis])
    old = {prefix(before, a) for a in _same_axes(states[0])}
    same = (a for a in range(len(after)) if after[a] == 1 or prefix(after, a) in old)
    everywhere = len(_same_axes(states[0])) == len(before)
    return [_Same(frozenset(range(len(after)) if everywhere else same))]


def _broadcast(eqn: Any, states: list[_State], n: int) -> list[_State]:
    before, after = _shapes(eqn)[0], _out(eqn)
    places = eqn.params["broadcast_dimensions"]
    axis = _axis(states[0], before, n)
    if axis is not None:
        return [_at(places[axis], after, n)]
    grown = [a for a in range(len(after)) if a not in places]
    grown += [p for a, p in enumerate(places) if before[a] == 1 or a in _same_axes(states[0])]
    return [_Same(frozenset(grown))]


def _concatenate(eqn: Any, states: list[_State], n: int) -> list[_State]:
    place = eqn.params["dimension"]
    axes = {a for s, shape in zip(states, _shapes(eqn), strict=True)
            if (a := _axis(s, shape, n)) is not None}  # fmt: skip
    if not axes:
        full = frozenset(range(len(_out(eqn)))) - {place}
        return [_Same(full.intersection(*(_same_axes(s) for s in states)))]
    if len(axes) != 1 or place in axes:
        raise _Mixed
    (axis,) = axes
    if any(isinstance(s, _Same) and axis not in s.axes for s in states):
        raise _Mixed
    return [_at(axis, _out(eqn), n)]


def _split(eqn: Any, states: list[_State], n: int) -> list[_State]:
    axis = _axis(states[0], _shapes(eqn)[0], n)
    if axis is None:
        return [_Same(_same_axes(states[0]) - {eqn.params["axis"]}) for _ in eqn.outvars]
    if axis == eqn.params["axis"]:
        raise _Mixed
    return [_at(axis, v.aval.shape, n) for v in eqn.outvars]


def _dot(eqn: Any, states: list[_State], n: int) -> list[_State]:
    (contracted, batched) = eqn.params["dimension_numbers"]
    places, same = set(), set(range(len(_out(eqn))))
    for side in (0, 1):
        shape = _shapes(eqn)[side]
        axis = _axis(states[side], shape, n)
        other = eqn.invars[1 - side].aval.ndim - len(contracted[side]) - len(batched[side])
        free = [a for a in range(len(shape)) if a not in (*contracted[side], *batched[side])]
        skipped = len(batched[0]) + (other if side else 0)
        if axis is None:
            unlike = lambda a, side=side: a not in _same_axes(states[side])
            same -= {i for i, a in enumerate(batched[side]) if unlike(a)}
            same -= {skipped + i for i, a in enumerate(free) if unlike(a)}
            continue
        if axis in contracted[side]:
            raise _Mixed
        if axis in batched[side]:
            where = batched[side].index(axis)
            partner, place = states[1 - side], batched[1 - side][where]
            if isinstance(partner, _Same) and place not in partner.axes:
                raise _Mixed
            places.add(where)
        else:
            places.add(skipped + free.index(axis))
    if not places:
        return [_Same(frozenset(same))]
    if len(places) != 1:
        raise _Mixed
    return [_at(places.pop(), _out(eqn), n)]


def _convolution(eqn: Any, states: list[_State], n: int) -> list[_State]:
    numbers = eqn.params["dimension_numbers"]
    axis, kernel = (_axis(s, shape, n) for s, shape in zip(states, _shapes(eqn), strict=True))
    if axis is None and kernel is None:
        alike = numbers.lhs_spec[0] in _same_axes(states[0])
        return [_Same(frozenset({numbers.out_spec[0]} if alike else ()))]
    if kernel is not None or axis != numbers.lhs_spec[0] or eqn.params["batch_group_count"] != 1:
        raise _Mixed
    return [_at(numbers.out_spec[0], _out(eqn), n)]


def _gather(eqn: Any, states: list[_State], n: int) -> list[_State]:
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    array, indices = _shapes(eqn)
    at, by = (_axis(s, shape, n) for s, shape in zip(states, (array, indices), strict=True))
    if at is None and by is None:
        return [_Same(frozenset())]
    rank = len(_out(eqn))
    batch = [a for a in range(rank) if a not in numbers.offset_dims]
    outside = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    inside = [a for a in range(len(array)) if a not in outside]
    if at is None:
        return [_at(batch[by], _out(eqn), n)]  # type: ignore[index]  # by is an axis here
    if at in numbers.operand_batching_dims:
        partner = numbers.start_indices_batching_dims[numbers.operand_batching_dims.index(at)]
        if by not in (None, partner):
            raise _Mixed
        if isinstance(states[1], _Same) and partner not in states[1].axes:
            raise _Mixed
        return [_at(batch[partner], _out(eqn), n)]
    if by is not None or at not in inside or sizes[at] != array[at]:
        raise _Mixed
    return [_at(numbers.offset_dims[inside.index(at)], _out(eqn), n)]


def _call(eqn: Any, states: list[_State], n: int) -> list[_State]:
    inner = [j for j in equations.inner_jaxprs(eqn.params) if len(j.in_avals) == len(states)]
    if not inner:
        raise _Mixed
    return _follow(inner[0], states, n)


def _scan(eqn: Any, states: list[_State], n: int) -> list[_State]:
    """Until the layout of what is carried stays the same; slices lose their first axis."""
    consts, carry = equations.scan_sizes(eqn.params)
    shapes = _shapes(eqn)
    slices: list[_State] = []
    for state, shape in zip(states[consts + carry :], shapes[consts + carry :], strict=True):
        axis = _axis(state, shape, n)
        if axis == 0:
            raise _Mixed
        slices.append(
            _Same(frozenset(a - 1 for a in _same_axes(state) if a)) if axis is None
            else _at(axis - 1, shape[1:], n)
        )  # fmt: skip
    carried = states[consts : consts + carry]
    while True:
        outs = _follow(eqn.params["jaxpr"], [*states[:consts], *carried, *slices], n)
        joined = [
            _joined(a, b, shape, n)
            for a, b, shape in zip(carried, outs[:carry], shapes[consts:], strict=False)
        ]
        if joined == carried:
            break
        carried = joined
    stacked: list[_State] = []
    for state, v in zip(outs[carry:], eqn.outvars[carry:], strict=True):
        axis = _axis(state, v.aval.shape[1:], n)
        stacked.append(_Same(frozenset()) if axis is None else _at(axis + 1, v.aval.shape, n))
    return [*carried, *stacked]


def _joined(first: _State, second: _State, shape: tuple[int, ...], n: int) -> _State:
    """What holds of both: the start of a carry and what one step makes of it."""
    if isinstance(first, _Same) and isinstance(second, _Same):
        return _Same(first.axes & second.axes)
    if isinstance(first, _Along) and isinstance(second, _Along):
        if first != second:
            raise _Mixed
        return first
    same, along = (first, second) if isinstance(first, _Same) else (second, first)
    if _axis(along, shape, n) not in _same_axes(same):
        raise _Mixed
    return along


def _cond(eqn: Any, states: list[_State], n: int) -> list[_State]:
    if isinstance(states[0], _Along):
        raise _Mixed
    branches = [_follow(branch, states[1:], n) for branch in eqn.params["branches"]]
    joined = branches[0]
    for outs in branches[1:]:
        joined = [
            _joined(a, b, v.aval.shape, n)
            for a, b, v in zip(joined, outs, eqn.outvars, strict=True)
        ]
    return joined


def _unchanged(eqn: Any, states: list[_State], n: int) -> list[_State]:
    return states


_RULES: dict[str, Callable[[Any, list[_State], int], list[_State]]] = {
    **dict.fromkeys(primitives.ELEMENTWISE, _elementwise),
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(_ALONG_ONE, _cumulative),
    **dict.fromkeys(_CALLS, _call),
    **dict.fromkeys(_UNCHANGED, _unchanged),
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min"), _window),
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "cond": _cond,
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _rev,
    "scan": _scan,
    "slice": _slice,
    "sort": _sort,
    "split": _split,
    "squeeze": _squeeze,
    "top_k": _top_k,
    "transpose": _transpose,
}
