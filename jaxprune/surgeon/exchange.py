"""Exchanges of a kept and a pruned entry, the best first, a block of candidates at a time.

With an update of the rest ("joint"), `t = damping / 2`, B the dual inverse, y the proximal point
and `C = G'B G` over the candidates:

    i leaves the kept set:  Q rises by  t y_i^2 / (1 - C_ii);  y += C_:i a,  a = y_i / (1 - C_ii);
                            C += C_:i C_i: / (1 - C_ii)
    j enters it:            Q falls by  t y_j^2 / (1 + C_jj);  y -= C_:j b,  b = y_j / (1 + C_jj);
                            C -= C_:j C_j: / (1 + C_jj)

which are the rank-one updates of the inverse, seen by the candidates only. Without an update
("selection"), the objective is `1/2 u'H u`, u the pruned weights: C holds H over the candidates,
y is `(H u)`, and

    i is restored:  1/2 u'H u falls by  w_i y_i - w_i^2 C_ii / 2;  y -= C_:i w_i
    j is pruned:    it rises by         w_j y_j + w_j^2 C_jj / 2;  y += C_:j w_j
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.surgeon.quadratic import Quadratic, high
from jaxprune.surgeon.updating import Dual


class Exchanged(NamedTuple):
    """What a block of exchanges did.

    Attributes:
      mask: [d].
      swaps: how many.
      gain: by how much the objective falls, as the block sees it.
    """

    mask: jax.Array
    swaps: jax.Array
    gain: jax.Array


class _Block(NamedTuple):
    mask: jax.Array  # of the candidates
    y: jax.Array
    c: jax.Array
    swaps: jax.Array
    gain: jax.Array
    going: jax.Array


def _exchange_joint(
    quadratic: Quadratic,
    dual: Dual,
    shares: jax.Array,
    mask: jax.Array,
    parts: jax.Array,
    tolerance: jax.Array,
    *,
    block: int,
) -> Exchanged:
    """Exchanges that lower Q after the update.

    Args:
      quadratic: with damping > 0.
      dual: at this mask.
      shares: `diag(G'B G)`, [d], possibly estimated: it only picks candidates.
      mask: [d].
      parts: [d], as `Selection.parts`; -1 takes no part.
      tolerance: the least gain of a swap.
      block: candidates on each side.
    """
    y = dual.proximal
    scale = quadratic.damping / 2
    tiny = jnp.finfo(y.dtype).eps
    leave = scale * y**2 / jnp.maximum(1 - shares, tiny)
    enter = scale * y**2 / (1 + shares)
    where = _candidates(leave, enter, mask, parts, block, within=4)
    through = dual.root.T @ quadratic.columns(where)

    def rises(state: _Block) -> jax.Array:
        share = jnp.diagonal(state.c)
        left = jnp.maximum(1 - share, tiny)
        a = state.y / left
        y_after = state.y[None, :] + a[:, None] * state.c
        share_after = share[None, :] + state.c**2 / left[:, None]
        return scale * (state.y * a)[:, None] - scale * y_after**2 / (1 + share_after)

    def apply(state: _Block, i: jax.Array, j: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, c = state.y, state.c
        left = jnp.maximum(1 - c[i, i], tiny)
        y, c = y + c[:, i] * (y[i] / left), c + jnp.outer(c[:, i], c[i]) / left
        right = 1 + c[j, j]
        return y - c[:, j] * (y[j] / right), c - jnp.outer(c[:, j], c[j]) / right

    start = (y.at[where].get(mode="fill", fill_value=0), through.T @ through)
    return _run(where, start, rises, apply, mask, parts, tolerance)


def _exchange_selection(
    quadratic: Quadratic,
    mask: jax.Array,
    parts: jax.Array,
    diagonal: jax.Array,
    tolerance: jax.Array,
    *,
    block: int,
) -> Exchanged:
    """Exchanges that lower `1/2 u'H u`, u the pruned weights; arguments as above.

    Args:
      diagonal: that of H, [d].
    """
    w = quadratic.weights
    slopes = quadratic.product(jnp.where(mask, 0, w))
    bend = w**2 * diagonal / 2
    where = _candidates(w * slopes + bend, w * slopes - bend, mask, parts, block)
    columns, own = quadratic.columns(where), w.at[where].get(mode="fill", fill_value=0)
    matrix = columns.T @ columns / quadratic.examples
    matrix += quadratic.damping * jnp.eye(where.size, dtype=w.dtype)
    half = own**2 * jnp.diagonal(matrix) / 2

    def rises(state: _Block) -> jax.Array:
        # Row i is the kept one that is pruned, column j the pruned one that comes back.
        linear = own * state.y
        return (linear + half)[:, None] - (linear - half)[None, :] - jnp.outer(own, own) * matrix

    def apply(state: _Block, i: jax.Array, j: jax.Array) -> tuple[jax.Array, jax.Array]:
        return state.y + matrix[:, i] * own[i] - matrix[:, j] * own[j], state.c

    start = (slopes.at[where].get(mode="fill", fill_value=0), jnp.zeros((), w.dtype))
    return _run(where, start, rises, apply, mask, parts, tolerance)


exchange_joint = high(_exchange_joint, static_argnames="block")
exchange_selection = high(_exchange_selection, static_argnames="block")


def _candidates(
    leave: jax.Array,
    enter: jax.Array,
    mask: jax.Array,
    parts: jax.Array,
    block: int,
    within: float | None = None,
) -> jax.Array:
    """The kept entries that are cheapest to lose and the pruned ones that bring most, [2 block].

    Only where a part has both, so that a swap inside it may pay; a place that nobody takes holds d.

    Args:
      leave, enter: what the objective rises without an entry, and falls with it, by themselves.
      within: leave out what costs more than so many times the most that an entry of its part
        brings, and what brings so much less than the cheapest costs. None for values that may be
        < 0, of which no multiple bounds what two entries do together.
    """
    d, size = mask.size, min(block, mask.size)
    inside = parts >= 0
    part = jnp.where(inside, parts, d)  # the last segment is dropped
    leaves, enters = inside & mask, inside & ~mask
    least = jax.ops.segment_min(jnp.where(leaves, leave, jnp.inf), part, d + 1)
    most = jax.ops.segment_max(jnp.where(enters, enter, -jnp.inf), part, d + 1)
    if within is None:
        leaves, enters = leaves & (most[part] > -jnp.inf), enters & (least[part] < jnp.inf)
    else:
        leaves, enters = (
            leaves & (leave < within * most[part]),
            enters & (within * enter > least[part]),
        )
    pays = lambda flags, value: jnp.where(flags, value, -jnp.inf)
    loses, where_loses = jax.lax.top_k(pays(leaves, -leave), size)
    gains, where_gains = jax.lax.top_k(pays(enters, enter), size)
    taken = jnp.concatenate([loses, gains]) > -jnp.inf
    return jnp.where(taken, jnp.concatenate([where_loses, where_gains]), d)


def _run(
    where: jax.Array,
    start: tuple[jax.Array, jax.Array],
    rises: Callable[[_Block], jax.Array],
    apply: Callable[[_Block, jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
    mask: jax.Array,
    parts: jax.Array,
    tolerance: jax.Array,
) -> Exchanged:
    """Best swaps of the candidates until none gains more than the tolerance."""
    d = mask.size
    real = where < d
    own_parts = parts.at[where].get(mode="fill", fill_value=-1)
    pairs = own_parts[:, None] == own_parts[None, :]
    y, c = start

    def body(state: _Block) -> _Block:
        possible = pairs & (state.mask & real)[:, None] & (~state.mask & real)[None, :]
        rise = jnp.where(possible, rises(state), jnp.inf)
        best = jnp.argmin(rise)
        i, j = best // where.size, best % where.size
        going = rise[i, j] < -tolerance
        y, c = apply(state, i, j)
        new = state.mask.at[i].set(False).at[j].set(True)
        gain = state.gain - jnp.where(going, rise[i, j], 0)
        kept = lambda after, before: jnp.where(going, after, before)
        return _Block(
            kept(new, state.mask), kept(y, state.y), kept(c, state.c),
            state.swaps + going, gain, going & (state.swaps < where.size),
        )  # fmt: skip

    first = _Block(
        mask.at[where].get(mode="fill", fill_value=False), y, c, jnp.int32(0),
        jnp.zeros((), y.dtype), jnp.bool_(True),
    )  # fmt: skip
    last = jax.lax.while_loop(lambda state: state.going, body, first)
    return Exchanged(mask.at[where].set(last.mask, mode="drop"), last.swaps, last.gain)
