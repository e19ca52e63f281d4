"""Where examples depend on each other: one pull-back an example and column, slow and right."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxprune.curvature.squares import Sums
from jaxprune.types import PyTree

_AT_ONCE = 16


def squares_of_rows(
    pull: Callable[[PyTree], tuple[list[jax.Array]]],
    cotangents: PyTree,
    signs: jax.Array | None,
    *,
    second: bool,
) -> Sums:
    """`h_n = sum_k signs_nk (J' (c_kn e_n))^2`, summed over n.

    Args:
      pull: cotangents of the outputs, [N, ...] -> cotangents of the leaves.
      cotangents: c, a tree of [k, N, ...]; row n of it is taken by itself.
      signs: [N, k], or None.
      second: sum the squares of h_n as well.
    """

    def of_example(n: jax.Array) -> list[jax.Array]:
        def gradient(k: jax.Array) -> list[jax.Array]:
            return _row(pull, cotangents, k, n)

        each = jax.vmap(gradient)(jnp.arange(_count(cotangents)))
        weights = jnp.ones(_count(cotangents)) if signs is None else signs[n]
        return [jnp.tensordot(weights.astype(g.dtype), g * g, 1) for g in each]

    return _over(of_example, cotangents, second)


def sums_of_rows(pull: Callable[[PyTree], tuple[list[jax.Array]]], cotangents: PyTree) -> Sums:
    """`h_n = J' (c_n e_n)` and its square, summed over n; c is a tree of [1, N, ...]."""
    return _over(lambda n: _row(pull, cotangents, jnp.int32(0), n), cotangents, True)


def _count(cotangents: PyTree) -> int:
    return jax.tree.leaves(cotangents)[0].shape[0]


def _row(pull: Callable, cotangents: PyTree, k: jax.Array, n: jax.Array) -> list[jax.Array]:
    alone = jax.tree.map(lambda c: jnp.zeros(c.shape[1:], c.dtype).at[n].set(c[k, n]), cotangents)
    return pull(alone)[0]


def _over(
    of_example: Callable[[jax.Array], list[jax.Array]], cotangents: PyTree, second: bool
) -> Sums:
    def powers(n: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        h = of_example(n)
        return h, [x * x for x in h] if second else []

    def step(total: tuple, part: jax.Array) -> tuple[tuple, None]:
        each = jax.vmap(powers)(part)
        return jax.tree.map(lambda t, x: t + jnp.sum(x, axis=0), total, each), None

    n = jax.tree.leaves(cotangents)[0].shape[1]
    chunk = next(c for c in range(min(_AT_ONCE, n), 0, -1) if n % c == 0)
    zeros = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(powers, jnp.int32(0))
    )
    first, more = jax.lax.scan(step, zeros, jnp.arange(n).reshape(-1, chunk))[0]
    return Sums(first, more if second else None)
