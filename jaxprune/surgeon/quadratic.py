"""The quadratic every surgeon works on: a loss around trained weights, in flat vectors of d.

`Q(z) = g'(z - w) + 1/2 (z - w)' H (z - w)` with `H = G'G / n + damping I`, G the n x d gradients
held in factors. d counts the entries of the leaves that may move, in flattening order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.curvature.factors import Factor

CHUNK = 256
"""Columns of G that are there at once."""


def high(function: Callable, **options: Any) -> Any:
    """Compiled, with products in the highest precision."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return jax.jit(run, **options)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("factors", "weights", "slopes", "damping"),
    meta_fields=("examples", "shapes"),
)
@dataclass(frozen=True)
class Quadratic:
    """A pytree: it goes into and out of `jax.jit`.

    Attributes:
      factors: G, one for each leaf that moves.
      weights: w, [d].
      slopes: g, [d]; zeros where no first-order term is wanted.
      damping: scalar >= 0.
      examples: n.
      shapes: of the leaves that move.
    """

    factors: tuple[Factor, ...]
    weights: jax.Array
    slopes: jax.Array
    damping: jax.Array
    examples: int
    shapes: tuple[tuple[int, ...], ...]

    @property
    def bounds(self) -> list[int]:
        """Where each leaf begins in the flat vectors, and the end."""
        return [0, *accumulate(math.prod(shape) for shape in self.shapes)]

    def split(self, flat: jax.Array) -> list[jax.Array]:
        """A vector [d] as one array a leaf."""
        spans = zip(self.bounds, self.bounds[1:], self.shapes, strict=False)
        return [flat[a:b].reshape(shape) for a, b, shape in spans]

    def times(self, vector: jax.Array) -> jax.Array:
        """`G v`, [n]."""
        pairs = zip(self.factors, self.split(vector), strict=True)
        return sum((f.times(v) for f, v in pairs), jnp.zeros(self.examples, vector.dtype))

    def transposed(self, rows: jax.Array) -> jax.Array:
        """`G' q`, [d]; q is [n]."""
        return self._joined(lambda factor: factor.transposed(rows))

    def squares(self) -> jax.Array:
        """The diagonal of `G'G`, [d]."""
        return self._joined(lambda factor: factor.squares())

    @high
    def diagonal(self) -> jax.Array:
        """The diagonal of H, [d]."""
        return self.squares() / self.examples + self.damping

    def projected_squares(self, projections: jax.Array) -> jax.Array:
        """`sum_r (p_r' g)^2` for every column g of G, [d]; p is [n, r]."""
        return self._joined(lambda factor: factor.projected_squares(projections))

    def columns(self, where: jax.Array) -> jax.Array:
        """`G[:, where]`, [n, m]; an index outside [0, d) gives zeros."""
        found = jnp.zeros((self.examples, where.size), self.weights.dtype)
        spans = zip(self.bounds, self.bounds[1:], strict=False)
        for (start, end), factor in zip(spans, self.factors, strict=True):
            if start == end:
                continue
            inside = (where >= start) & (where < end)
            some = lambda at, factor=factor: factor.columns(at)
            none = lambda at, like=found: jnp.zeros_like(like)
            at = jnp.clip(where - start, 0, end - start - 1)
            found += jnp.where(inside, jax.lax.cond(jnp.any(inside), some, none, at), 0)
        return found

    def product(self, vector: jax.Array) -> jax.Array:
        """`H v`, [d]."""
        return self.transposed(self.times(vector)) / self.examples + self.damping * vector

    def gram(self, mask: jax.Array) -> jax.Array:
        """`G_K G_K'`, [n, n], K the entries where the mask [d] is True; in chunks of these."""
        n, d = self.examples, self.weights.size
        size = min(CHUNK, d)
        where = jnp.flatnonzero(mask, size=d, fill_value=d)
        padded = jnp.concatenate([where, jnp.full((size,), d, where.dtype)])
        chunks = -(-jnp.sum(mask) // size)

        def add(i: jax.Array, total: jax.Array) -> jax.Array:
            some = self.columns(jax.lax.dynamic_slice_in_dim(padded, i * size, size))
            return total + some @ some.T

        return jax.lax.fori_loop(0, chunks, add, jnp.zeros((n, n), self.weights.dtype))

    def full_gram(self) -> jax.Array:
        """`G G'`, [n, n]."""
        return sum((f.gram() for f in self.factors), jnp.zeros((), self.weights.dtype))

    def _joined(self, of: Callable[[Factor], jax.Array]) -> jax.Array:
        return jnp.concatenate([of(factor).ravel() for factor in self.factors])


@high
def value(quadratic: Quadratic, solution: jax.Array) -> jax.Array:
    """`Q(z)`, the predicted change of the loss."""
    moved = solution - quadratic.weights
    rows = quadratic.times(moved)
    bend = rows @ rows / quadratic.examples + quadratic.damping * (moved @ moved)
    return quadratic.slopes @ moved + 0.5 * bend
