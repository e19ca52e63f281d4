"""Least squares of one layer: damped second moments, and weights that make up for pruned ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_factor, cho_solve

from jaxprune import trees

_CACHE_BYTES = 12 << 20  # of matrices worked on at once: a part of a CPU's last cache
_DEVICE_BYTES = 1 << 30


def check_damping(damping: Any) -> None:
    """Raise unless it is a number >= 0.

    Raises:
      ValueError: anything else.
    """
    if (
        isinstance(damping, bool)
        or not isinstance(damping, int | float)
        or not 0 <= damping < np.inf
    ):
        raise ValueError(
            "`damping` is added to the second moments of the inputs, as a share of their mean: a "
            f"number >= 0, such as 0.01; got {damping!r}."
        )


@jax.jit
def damped(hessian: jax.Array, damping: Any) -> tuple[jax.Array, jax.Array]:
    """`H + damping mean(diag H) I`, and which inputs are dead: 0 in every example.

    A dead input is a block of its own in H; its diagonal is set to 1, so that H stays regular.
    """
    diagonal = jnp.diagonal(hessian, axis1=-2, axis2=-1)
    dead = diagonal <= 0
    shift = damping * jnp.mean(diagonal, axis=-1, keepdims=True)
    new = jnp.where(dead, 1, diagonal + shift)
    eye = jnp.eye(hessian.shape[-1], dtype=hessian.dtype)
    return hessian + eye * (new - diagonal)[..., None, :], dead


def check_regular(hessian: jax.Array, pivots: Any, name: str) -> None:
    """Raise if nothing is left of an input but rounding, given others.

    Args:
      hessian: H, [b, i, i].
      pivots: [b, i], the inverse of what is left of the diagonal of H; NaN where H has no factor.
      name: of the leaf.

    Raises:
      ValueError: names the leaf.
    """
    diagonal = np.diagonal(np.asarray(hessian), axis1=1, axis2=2)
    most = 0.25 / np.finfo(diagonal.dtype).eps
    if not (diagonal * np.asarray(pivots) < most).all():  # so for NaN
        _raise_singular(name)


def check_finite(array: np.ndarray, name: str) -> None:
    """Raise if a solution is not finite.

    Raises:
      ValueError: names the leaf.
    """
    if not np.isfinite(array).all():
        _raise_singular(name)


def _raise_singular(name: str) -> None:
    raise ValueError(
        f"The inputs of {trees.label(name)} are linearly dependent on this batch: their second "
        "moments are singular. Pass a larger `damping`, such as 0.01, or more examples."
    )


@jax.jit
def error(hessian: jax.Array, change: Any) -> jax.Array:
    """`sum_bo d' H d`: the mean over examples of the squared change of a layer's outputs.

    Args:
      hessian: [b, i, i], not damped.
      change: [b, i, o].
    """
    return jnp.sum(_times(hessian, change) * change)


def chunks(sizes: np.ndarray, full: int, dtype: Any) -> Iterator[tuple[np.ndarray, int, int]]:
    """Rows that need matrices of about the same size, as many as are worked on at once.

    Args:
      sizes: for every row the size of its matrix.
      full: the largest size.
      dtype: of the matrices.

    Yields:
      (rows, how many there are when filled up, size of the matrices).
    """
    most = _CACHE_BYTES if jax.default_backend() == "cpu" else _DEVICE_BYTES
    # Few sizes and few numbers of rows: every pair is compiled.
    step = -(-full // (1 if full <= 64 else 4 if full <= 512 else 8))
    rounded = np.minimum(-(-np.maximum(sizes, 1) // step) * step, full)
    for size in np.unique(rounded):
        (rows,) = np.nonzero(rounded == size)
        most_rows = max(1, most // (int(size) ** 2 * jnp.dtype(dtype).itemsize))
        together = 1
        while together < min(len(rows), most_rows):
            together *= 8
        together = min(together, most_rows)
        for start in range(0, len(rows), together):
            yield rows[start : start + together], together, int(size)


def filled(array: np.ndarray, rows: int) -> np.ndarray:
    """An array with rows of zeros added."""
    return np.pad(array, [(0, rows - len(array))] + [(0, 0)] * (array.ndim - 1))


def compensated(
    hessian: jax.Array, weights: np.ndarray, alive: np.ndarray, keep: np.ndarray
) -> np.ndarray:
    """For every row `argmin over v of (v - w)' H (v - w)`, v being 0 where the mask is.

    The change of the kept weights K solves `H_KK d = H_KP w_P`, P the entries that go; by Cholesky,
    of a few rows at a time. A row that loses nothing keeps its bits.

    Args:
      hessian: [b, i, i], damped.
      weights: w, [b, i, o].
      alive: [b, i, o], False where w was pruned before.
      keep: [b, i, o], the mask.
    """
    b, i, o = weights.shape
    kept, goes = by_row(keep & alive), by_row(~keep & alive)
    pull = by_row(np.asarray(_times(hessian, np.where(~keep & alive, weights, 0))))
    new = np.where(kept, by_row(weights), 0)
    (changed,) = np.nonzero(goes.any(axis=1) & kept.any(axis=1))
    for rows, together, size in chunks(kept[changed].sum(axis=1), i, new.dtype):
        rows = changed[rows]
        index = np.argsort(~kept[rows], axis=1, kind="stable")[:, :size]
        valid = np.take_along_axis(kept[rows], index, axis=1)
        right = np.where(valid, np.take_along_axis(pull[rows], index, axis=1), 0)
        given = [filled(x, together) for x in (rows // o, index, valid, right)]
        change = np.asarray(_solve_rows(hessian, *given))[: len(rows)]
        values = np.take_along_axis(new[rows], index, axis=1) + np.where(valid, change, 0)
        new[rows[:, None], index] = np.where(valid, values, 0)
    return new.reshape(b, o, i).swapaxes(1, 2)


def by_row(array: np.ndarray) -> np.ndarray:
    """[b, i, o] as [b o, i]."""
    return array.swapaxes(1, 2).reshape(-1, array.shape[1])


@jax.jit
def _times(hessian: jax.Array, vectors: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return jnp.einsum("bij,bjo->bio", hessian, vectors)


@jax.jit
def _solve_rows(
    hessian: jax.Array, group: jax.Array, index: jax.Array, valid: jax.Array, right: jax.Array
) -> jax.Array:
    """`H[index, index]^-1 right` for every row."""
    with jax.default_matmul_precision("highest"):
        matrices = jax.vmap(restricted, (None, 0, 0, 0))(hessian, group, index, valid)
        solve = lambda m, r: cho_solve(cho_factor(m, lower=True), r)
        return jax.vmap(solve)(matrices, right)


def restricted(
    hessian: jax.Array, group: jax.Array, index: jax.Array, valid: jax.Array
) -> jax.Array:
    """`H[group][index, index]`, the identity where an index is not valid."""
    some = hessian[group, index[:, None], index[None, :]]
    eye = jnp.eye(len(index), dtype=hessian.dtype)
    return jnp.where(valid[:, None] & valid[None, :], some, eye)
