"""One sweep over a layer's inputs: all outputs prune, and make up for it in the inputs to come."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import solve_triangular

from jaxprune.select import threshold


class Quota(NamedTuple):
    """How many entries go where, segment by segment of the sweep.

    Attributes:
      block: inputs in a block, after which later inputs are brought up to date at once.
      segment: inputs whose mask is chosen at once, on reaching the first of them; divides `block`.
      axes: what competes in a segment [b, i, o]: (0, 1, 2) everything, (1,) the inputs of a row.
      goes: for every segment, what is pruned before included, integers of size 1 along `axes`.
    """

    block: int
    segment: int
    axes: tuple[int, ...]
    goes: np.ndarray


def columns(inputs: int, block: int) -> int:
    """The inputs filled up to whole blocks."""
    return -(-inputs // block) * block


@jax.jit
def upper_factor(hessian: jax.Array) -> jax.Array:
    """U of `H^-1 = U' U`, upper triangular, [b, i, i].

    H factored from its last row, `H = R R'` with R upper, gives `U = R^-1` without inverting H.
    """
    eye = jnp.eye(hessian.shape[-1], dtype=hessian.dtype)

    def one(h: jax.Array) -> jax.Array:
        root = jnp.linalg.cholesky(h[::-1, ::-1], symmetrize_input=False)[::-1, ::-1]
        return solve_triangular(root, eye, lower=False)

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(hessian)


@jax.jit
def losses(factor: jax.Array, weights: jax.Array, dead: jax.Array) -> jax.Array:
    """`w^2 / U_ii^2`, [b, i, o]: what pruning a weight costs with only later inputs to make up."""
    diagonal = jnp.diagonal(factor, axis1=1, axis2=2)
    return jnp.where(dead[..., None], 0, (weights / diagonal[..., None]) ** 2)


def swept(
    factor: jax.Array, weights: np.ndarray, alive: np.ndarray, dead: np.ndarray, quota: Quota
) -> tuple[np.ndarray, np.ndarray]:
    """The new weights and the mask, [b, i, o].

    Args:
      factor: U, [b, i, i].
      weights: [b, i, o].
      alive: [b, i, o], False for what was pruned before: it is pruned again on the way, as what
        comes before it in the sweep may have moved it.
      dead: [b, i], inputs that are always 0.
      quota: what goes.
    """
    i = weights.shape[1]
    more = columns(i, quota.block) - i
    fill = lambda x: np.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2))
    new, keep = _sweep(
        factor, fill(weights), fill(alive), fill(dead), quota.goes,
        block=quota.block, segment=quota.segment, axes=quota.axes,
    )  # fmt: skip
    return np.asarray(new)[:, :i], np.asarray(keep)[:, :i]


@partial(jax.jit, static_argnames=("block", "segment", "axes"))
def _sweep(
    factor: jax.Array,
    weights: jax.Array,
    alive: jax.Array,
    dead: jax.Array,
    goes: jax.Array,
    *,
    block: int,
    segment: int,
    axes: tuple[int, ...],
) -> tuple[jax.Array, jax.Array]:
    total, inputs = weights.shape[1], factor.shape[1]
    end = [(0, 0), (0, total - inputs), (0, total - inputs)]
    rest = jnp.diag((jnp.arange(total) >= inputs).astype(factor.dtype))
    factor = jnp.pad(factor, end) + rest
    cut = lambda x, at, size, axis=1: lax.dynamic_slice_in_dim(x, at, size, axis)
    put = lambda x, part, at: lax.dynamic_update_slice_in_dim(x, part, at, 1)

    def one_block(j: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        at = j * block
        rows = cut(factor, at, block)  # [b, block, i]
        own = cut(rows, at, block, 2)
        some = [cut(x, at, block) for x in (alive, dead)]

        def one_segment(s: Any, carry: Any) -> Any:
            w, keep, errors = carry
            first = s * segment
            inside = cut(cut(own, first, segment), first, segment, 2)
            scores = losses(inside, cut(w, first, segment), cut(some[1], first, segment))
            shown = jnp.where(cut(some[0], first, segment), scores, -jnp.inf)
            pruned = goes[j * (block // segment) + s]
            keep = put(keep, threshold.keep_largest(shown, pruned, axes), first)
            return lax.fori_loop(first, first + segment, one_input, (w, keep, errors))

        def one_input(t: Any, carry: Any) -> Any:
            w, keep, errors = carry
            x, kept, row = (cut(a, t, 1) for a in (w, keep, own))
            error = jnp.where(kept, 0, x) / cut(row, t, 1, 2)
            w = w - jnp.swapaxes(row, 1, 2) * error
            return put(w, jnp.where(kept, x, 0), t), keep, put(errors, error, t)

        w, keep = carry
        part = cut(w, at, block)
        start = (part, jnp.ones(part.shape, bool), jnp.zeros_like(part))
        part, kept, errors = lax.fori_loop(0, block // segment, one_segment, start)
        later = jnp.where(jnp.arange(total) >= at + block, rows, 0)
        w = w - jnp.einsum("bji,bjo->bio", later, errors)
        return put(w, part, at), put(keep, kept, at)

    with jax.default_matmul_precision("highest"):
        start = (weights, jnp.ones(weights.shape, bool))
        return lax.fori_loop(0, total // block, one_block, start)
