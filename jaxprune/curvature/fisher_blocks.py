"""Products with `G'G / n + damping I`, and solves, whole or in diagonal blocks of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve

from jaxprune.curvature.factors import Factor, budget, some_at_once

Blocks = int | str | None
"""None: no blocks; "leaf": one a parameter; B: of B consecutive entries of a flattened one."""
_OnBlock = Callable[[jax.Array, jax.Array], jax.Array]


def check_blocks(blocks: Any) -> None:
    """Raise unless it is None, "leaf" or an integer >= 1.

    Raises:
      ValueError: anything else.
    """
    whole = isinstance(blocks, int) and not isinstance(blocks, bool) and blocks >= 1
    if not (whole or blocks is None or (isinstance(blocks, str) and blocks == "leaf")):
        raise ValueError(
            f'`blocks` is None, "leaf" or how many entries a block has, >= 1; got {blocks!r}.'
        )


@partial(jax.jit, static_argnames=("n", "blocks"))
def multiply(
    factors: Sequence[Factor], vectors: Sequence[jax.Array], damping: Any, *, n: int, blocks: Blocks
) -> list[jax.Array]:
    """`(G'G / n + damping I) v`, leaf by leaf."""
    with jax.default_matmul_precision("highest"):
        if blocks is None:
            weights = through(factors, vectors) / n
            found = [f.transposed(weights) for f in factors]
        elif blocks == "leaf":
            found = [f.transposed(f.times(v) / n) for f, v in zip(factors, vectors, strict=True)]
        else:
            on_block = lambda g, v: g.T @ (g @ v / n)
            found = [_by_blocks(f, v, n, int(blocks), on_block)
                     for f, v in zip(factors, vectors, strict=True)]  # fmt: skip
        pairs = zip(found, vectors, strict=True)
        return [(x + damping * v).astype(v.dtype) for x, v in pairs]


@partial(jax.jit, static_argnames=("n", "blocks"))
def solve(
    factors: Sequence[Factor], vectors: Sequence[jax.Array], damping: Any, *, n: int, blocks: Blocks
) -> list[jax.Array]:
    """`(G'G / n + damping I)^-1 v`, leaf by leaf.

    With many entries by Woodbury, `(v - G' (n damping I + G G')^-1 G v) / damping`, from n x n; a
    block of fewer entries than examples is solved itself.
    """
    with jax.default_matmul_precision("highest"):
        if blocks is None:
            return _woodbury(factors, vectors, damping, n)
        found = []
        for factor, vector in zip(factors, vectors, strict=True):
            if (size := _size(blocks, vector)) >= vector.size > n:
                found += _woodbury([factor], [vector], damping, n)
            else:
                on_block = lambda g, v: _solved(g, v, damping, n)
                found.append(_by_blocks(factor, vector, n, size, on_block))
        return [x.astype(v.dtype) for x, v in zip(found, vectors, strict=True)]


@partial(jax.jit, static_argnames=("n", "blocks"))
def inverse_diagonal(
    factors: Sequence[Factor], likes: Sequence[jax.Array], damping: Any, *, n: int, blocks: Blocks
) -> list[jax.Array]:
    """The diagonal of `(G'G / n + damping I)^-1`, leaf by leaf, shaped as `likes`.

    With many entries `(1 - |L^-1 g|^2) / damping` for every column g of G and `L L' = n damping I +
    G G'`; a block of fewer entries than examples is inverted itself.
    """
    with jax.default_matmul_precision("highest"):
        if blocks is None:
            return _woodbury_diagonal(factors, damping, n)
        found = []
        for factor, like in zip(factors, likes, strict=True):
            if (size := _size(blocks, like)) >= like.size > n:
                found += _woodbury_diagonal([factor], damping, n)
            else:
                on_block = lambda g, v: _inverted(g, damping, n)
                found.append(_by_blocks(factor, like, n, size, on_block))
        return found


def _size(blocks: int | str, vector: jax.Array) -> int:
    return vector.size if blocks == "leaf" else int(blocks)


def _woodbury_diagonal(factors: Sequence[Factor], damping: Any, n: int) -> list[jax.Array]:
    gram = sum((f.gram() for f in factors[1:]), factors[0].gram())
    root = whitening(gram, n * damping)
    shares = [f.projected_squares(root) for f in factors]
    # Rounding may carry a share above 1; no inverse is smaller than this one.
    least = jnp.finfo(gram.dtype).eps
    return [jnp.maximum(1 - share, least) / damping for share in shares]


def whitening(gram: jax.Array, shift: Any) -> jax.Array:
    """R with `R R' = (gram + shift I)^-1`, by Cholesky."""
    eye = jnp.eye(gram.shape[0], dtype=gram.dtype)
    lower = jnp.linalg.cholesky(flushed(gram, shift) + shift * eye)
    return jax.scipy.linalg.solve_triangular(lower, eye, lower=True).T


def flushed(gram: jax.Array, shift: Any) -> jax.Array:
    """Without entries that the shift makes nothing of.

    Examples that a model is sure of have gradients near 0; their products fill a factorisation with
    subnormal numbers, on which a CPU is many times slower.
    """
    return jnp.where(jnp.abs(gram) < 1e-16 * shift, 0, gram)


def _inverted(g: jax.Array, damping: Any, n: int) -> jax.Array:
    """The inverse's diagonal for one block, its gradients g [n, m] at hand."""
    if g.shape[1] <= n:
        return jnp.sum(whitening(g.T @ g / n, damping) ** 2, axis=1)
    shares = jnp.sum((whitening(g @ g.T, n * damping).T @ g) ** 2, axis=0)
    return jnp.maximum(1 - shares, jnp.finfo(g.dtype).eps) / damping


def _woodbury(
    factors: Sequence[Factor], vectors: Sequence[jax.Array], damping: Any, n: int
) -> list[jax.Array]:
    gram = sum((f.gram() for f in factors[1:]), factors[0].gram())
    weights = _positive_solve(gram, n * damping, through(factors, vectors))
    pairs = zip(factors, vectors, strict=True)
    return [((v - f.transposed(weights)) / damping).astype(v.dtype) for f, v in pairs]


def through(factors: Sequence[Factor], vectors: Sequence[jax.Array]) -> jax.Array:
    """`G v`, [n], of all leaves together."""
    parts = [f.times(v) for f, v in zip(factors, vectors, strict=True)]
    return sum(parts[1:], parts[0])


def _solved(g: jax.Array, v: jax.Array, damping: Any, n: int) -> jax.Array:
    """One block, its gradients g [n, m] at hand."""
    if v.size <= n:
        return _positive_solve(g.T @ g / n, damping, v)
    return (v - g.T @ _positive_solve(g @ g.T, n * damping, g @ v)) / damping


def _positive_solve(matrix: jax.Array, shift: Any, right: jax.Array) -> jax.Array:
    """`(M + shift I)^-1 r` by Cholesky."""
    shifted = flushed(matrix, shift) + shift * jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    return cho_solve(cho_factor(shifted, lower=True), right)


def _by_blocks(
    factor: Factor, vector: jax.Array, n: int, size: int, on_block: _OnBlock
) -> jax.Array:
    """`on_block(G[:, block], v[block])` for every block, several at once; the last may be short."""
    flat = vector.ravel()
    size = min(size, flat.size)
    if not size:
        return vector
    whole = flat.size - flat.size % size

    def at(start: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(flat, start, size)
        return on_block(factor.columns(start + jnp.arange(size)), part)

    each = n * size * factor.positions + min(n, size) ** 2
    together = max(1, budget(flat.dtype) // each)
    found = some_at_once(at, jnp.arange(0, whole, size), together).ravel()
    if whole < flat.size:
        rest = on_block(factor.columns(jnp.arange(whole, flat.size)), flat[whole:])
        found = jnp.concatenate([found, rest])
    return found.reshape(vector.shape)
