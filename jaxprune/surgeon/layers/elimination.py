"""Greedy elimination of the weights of one output, one by one, the cheapest first.

With the inverse at hand, removing weight q costs `w_q^2 / [H^-1]_qq` and moves the others by
`-w_q / [H^-1]_qq H^-1 e_q`; then `H^-1` loses its row and column q. That is a Cholesky
factorisation of `H^-1` whose pivots are chosen on the way, and it is done as blocked factorisations
are: columns are brought up to date when they are chosen, the rest of the matrix in one product a
block. So i steps on i inputs cost i^3 multiplications at the speed of a matrix product, not i
passes over an i x i matrix.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_factor, cho_solve

from jaxprune.surgeon.layers.least_squares import check_regular, chunks, filled, restricted


class Rows(NamedTuple):
    """The outputs of one layer, each with its own elimination; r counts groups b and outputs o.

    Attributes:
      name: of the leaf.
      hessian: [b, i, i], damped.
      dead: [b, i], inputs that are always 0.
      weights: [r, i].
      alive: [r, i], False for what was pruned before.
      groups: the group of each input, [i].
      allowed: how many may go in each group of a row, [r, g].
    """

    name: str
    hessian: jax.Array
    dead: np.ndarray
    weights: np.ndarray
    alive: np.ndarray
    groups: np.ndarray
    allowed: np.ndarray


class Losses(NamedTuple):
    """What removing each weight costs at its turn.

    Attributes:
      scores: [r, i], rising along each row's order; what is not reached is above all that is,
        and far above if it may not go.
      reached: [r, i].
    """

    scores: np.ndarray
    reached: np.ndarray


def inverse_of(rows: Rows) -> jax.Array:
    """`H^-1`, [b, i, i].

    Raises:
      ValueError: H is singular; the leaf is named.
    """
    found = _inverse(rows.hessian)
    check_regular(rows.hessian, np.diagonal(np.asarray(found), axis1=1, axis2=2), rows.name)
    return found


@jax.jit
def _inverse(hessian: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        eye = jnp.eye(hessian.shape[-1], dtype=hessian.dtype)
        invert = lambda h: cho_solve(cho_factor(h, lower=True), eye)
        return jax.vmap(invert)(hessian)


def first_losses(rows: Rows, inverse: jax.Array) -> np.ndarray:
    """What removing each weight first would cost, [r, i]: `w^2 / [H^-1]_qq`."""
    outputs = len(rows.weights) // len(rows.dead)
    diagonal = np.diagonal(np.asarray(inverse), axis1=1, axis2=2)
    costs = rows.weights**2 / np.repeat(diagonal, outputs, axis=0)
    return np.where(np.repeat(rows.dead, outputs, axis=0), 0, costs)


def eliminate(rows: Rows, inverse: jax.Array, which: np.ndarray, steps: np.ndarray) -> Losses:
    """Eliminate in some rows, so many weights of each at least, or all that may go.

    The loss of a step is `w_q^2 / [H^-1]_qq` with the H^-1 and w that the steps before have left:
    by how much the row's squared output error rises, a mean over examples. It may fall from one
    step to the next; scores do not, each is at least a rounding above the one before, so that the
    lowest of a row are always its first steps.

    Args:
      rows: all rows of a layer.
      inverse: `H^-1`.
      which: the rows to eliminate in.
      steps: how many for each of them.
    """
    i, outputs = rows.weights.shape[1], len(rows.weights) // len(rows.dead)
    alive = rows.alive[which]
    whole = alive.all(axis=1)
    found = Losses(np.zeros(alive.shape, rows.weights.dtype), np.zeros(alive.shape, bool))
    for shared in (True, False):
        (mine,) = np.nonzero(whole == shared)
        if not mine.size:
            continue
        mine = mine[np.argsort(steps[mine], kind="stable")]  # a chunk takes as long as its longest
        for some, together, size in chunks(alive[mine].sum(axis=1), i, rows.weights.dtype):
            some = mine[some]
            index = np.argsort(~alive[some], axis=1, kind="stable")[:, :size]
            take = lambda x, index=index: np.take_along_axis(x, index, axis=1)
            row, block = which[some], _block(size)
            group = row // outputs
            given = [filled(x, together) for x in (
                group, index, take(rows.weights[row]), take(alive[some]), take(rows.dead[group]),
                rows.groups[index], rows.allowed[row])]  # fmt: skip
            blocks = -(-min(int(steps[some].max()), size) // block)
            matrix = inverse if shared else rows.hessian
            out = _run(matrix, rows.hessian, *given, blocks, block=block, shared=shared)
            for array, part in zip(found, out, strict=True):
                array[some[:, None], index] = np.asarray(part)[: len(some)]
    return found


def _block(size: int) -> int:
    """Steps between two updates of the whole matrix."""
    return 64 if size > 256 else 16 if size > 16 else max(1, size)


@partial(jax.jit, static_argnames=("block", "shared"))
def _run(
    matrix: jax.Array,
    hessian: jax.Array,
    group: jax.Array,
    index: jax.Array,
    weights: jax.Array,
    alive: jax.Array,
    dead: jax.Array,
    groups: jax.Array,
    allowed: jax.Array,
    blocks: Any,
    *,
    block: int,
    shared: bool,
) -> tuple[jax.Array, jax.Array]:
    """Scores and what was reached, [r, k], of rows whose i inputs are gathered to k."""
    with jax.default_matmul_precision("highest"):
        if shared:
            inverses = matrix[group]
        else:
            own = jax.vmap(restricted, (None, 0, 0, 0))(matrix, group, index, alive)
            inverses = _inverse(own)
        diagonal = jnp.diagonal(hessian, axis1=1, axis2=2)[group[:, None], index]
        row = partial(_row, blocks=blocks, block=block)
        return jax.vmap(row)(inverses, 1 / diagonal, weights, alive, dead, groups, allowed)


class _State(NamedTuple):
    weights: jax.Array
    diagonal: jax.Array  # of the inverse
    alive: jax.Array
    allowed: jax.Array  # how many of each group may still go
    last: jax.Array  # the last score
    scores: jax.Array


def _row(
    inverse: jax.Array,
    least: jax.Array,
    weights: jax.Array,
    alive: jax.Array,
    dead: jax.Array,
    groups: jax.Array,
    allowed: jax.Array,
    *,
    blocks: Any,
    block: int,
) -> tuple[jax.Array, jax.Array]:
    dtype, size = weights.dtype, len(weights)

    def step(t: Any, carry: tuple[_State, jax.Array, jax.Array]) -> Any:
        s, inverse, columns = carry
        is_open = s.alive & (s.allowed[groups] > 0)
        losses = jnp.where(dead, 0, s.weights**2 / s.diagonal)
        q = jnp.argmin(jnp.where(is_open, losses, jnp.inf))
        goes = is_open[q]
        column = inverse[q] - columns[:, q] @ columns
        column = jnp.where(goes, column, 0)
        pivot = s.diagonal[q]
        scaled = column / jnp.sqrt(pivot)
        score = jnp.maximum(losses[q], _above(s.last))
        now = (jnp.arange(size) == q) & goes  # masks, not scatters, which are loops on a CPU
        new = _State(
            jnp.where(now, 0, s.weights - s.weights[q] / pivot * column),
            # 1 / H_qq is what is left when all others are gone: rounding must not go below.
            jnp.maximum(s.diagonal - scaled**2, least),
            s.alive & ~now,
            s.allowed - ((jnp.arange(len(allowed)) == groups[q]) & goes),
            jnp.where(goes, score, s.last),
            jnp.where(now, score, s.scores),
        )
        return new, inverse, columns.at[t].set(scaled)

    def some(_: Any, carry: tuple[_State, jax.Array]) -> tuple[_State, jax.Array]:
        state, inverse = carry
        columns = jnp.zeros((block, size), dtype)
        state, inverse, columns = jax.lax.fori_loop(0, block, step, (state, inverse, columns))
        return state, inverse - columns.T @ columns

    start = _State(
        weights, jnp.diagonal(inverse), alive, allowed, jnp.array(-1, dtype), jnp.zeros(size, dtype)
    )
    end, _ = jax.lax.fori_loop(0, blocks, some, (start, inverse))
    # What may still go costs more than what has gone; what may not go is never to be chosen.
    beyond = jnp.where(end.allowed[groups] > 0, _above(end.last), jnp.finfo(dtype).max / 1024)
    return jnp.where(end.alive, beyond, end.scores), alive & ~end.alive


def _above(score: jax.Array) -> jax.Array:
    """The next score after one: a rounding above, 0 at first."""
    info = jnp.finfo(score.dtype)
    return jnp.where(score < 0, 0, jnp.maximum(score * (1 + 2 * info.eps), info.tiny))
