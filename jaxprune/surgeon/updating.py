"""The best weights for a given mask: `min Q(z)` with `z = 0` where the mask is False, closed form.

K are the kept entries, S the others. Three ways to the same z, by what is smallest:

    dual         n x n:      s = (n damping I + G_K G_K')^-1 (G_S w_S + G_K g_K / damping)
                             z_K = w_K - g_K / damping + G_K' s
    primal       |K| x |K|:  (G_K'G_K / n + damping I) (z_K - w_K) = G_K' G_S w_S / n - g_K
    matrix-free  the primal system by conjugate gradients, from products with G only
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_factor, cho_solve

from jaxprune.curvature.fisher_blocks import whitening
from jaxprune.surgeon.quadratic import Quadratic, high, value

Way = Literal["dual", "primal", "matrix_free"]
WAYS = ("dual", "primal", "matrix_free")
MOST_PRIMAL = 4096  # kept entries solved as a matrix of their own
USUAL_STEPS = 200  # of conjugate gradients
READ = 8  # what an entry of G costs in a product with a vector, which waits for memory
MOST_STEPS = 2000
_PAD = 256  # primal systems come in multiples of it, so that few sizes are compiled


class Solved(NamedTuple):
    """The minimum for a mask.

    Attributes:
      solution: z, [d].
      objective: Q(z), the predicted rise of the loss.
    """

    solution: jax.Array
    objective: jax.Array


class Dual(NamedTuple):
    """The minimum for a mask in the space of examples, from which every change of it is cheap.

    Attributes:
      root: R, [n, n], with `R R' = (n damping I + G_K G_K')^-1`.
      proximal: y, [d]: z where the mask is True; elsewhere minus the slope of Q over the damping.
    """

    root: jax.Array
    proximal: jax.Array


class Primal(NamedTuple):
    """The minimum for a mask in the space of the kept entries.

    Attributes:
      where: [m], the kept entries, then d as often as it takes.
      lower: L, [m, m], with `L L' = G_K'G_K / n + damping I`; ones on the diagonal for d.
      solution: z, [d].
    """

    where: jax.Array
    lower: jax.Array
    solution: jax.Array


def solve(
    quadratic: Quadratic,
    mask: jax.Array,
    way: Way | None = None,
    gram: jax.Array | None = None,
) -> Solved:
    """`argmin Q(z)` with z = 0 where the mask [d] is False; the way is chosen by sizes.

    Args:
      gram: `kept_gram(quadratic, mask)`, which no damping changes, where it is known: of the dual
        way.

    Raises:
      ValueError: an unknown way, or `way="dual"` with damping 0.
    """
    kept = int(jnp.sum(mask))
    chosen = way or way_for(quadratic, kept)
    if chosen not in WAYS:
        raise ValueError(f"`way` is one of {', '.join(WAYS)} or None, got {way!r}.")
    if chosen == "dual":
        if float(quadratic.damping) <= 0:
            raise ValueError(
                "The dual way divides by the damping, which is 0. Pass a damping > 0, or another "
                "`way`."
            )
        return _by_dual(quadratic, mask, gram)
    if chosen == "primal":
        return _by_primal(quadratic, mask, size=padded(kept))
    return _matrix_free(quadratic, mask)


def way_for(quadratic: Quadratic, kept: int) -> Way:
    """The cheapest way to keep so many entries, by a count of products."""
    n, d = quadratic.examples, quadratic.weights.size
    if few(quadratic, kept):
        return "primal"
    by_dual = n * n * min(kept, d - kept) + n**3
    if float(quadratic.damping) > 0 and by_dual <= 2 * READ * n * d * USUAL_STEPS:
        return "dual"
    return "matrix_free"


def few(quadratic: Quadratic, kept: int) -> bool:
    """True if so many kept entries are solved as a matrix of their own.

    Fewer than the examples: the space of these then has directions that no kept entry has a part
    in, where all that the dual way has is the damping, and float32 loses it.
    """
    return kept <= min(quadratic.examples, MOST_PRIMAL)


def padded(kept: int) -> int:
    """The size of the primal system of so many kept entries."""
    return -(-max(kept, 1) // _PAD) * _PAD


@high
def kept_gram(quadratic: Quadratic, mask: jax.Array) -> jax.Array:
    """`G_K G_K'`, [n, n], from the kept or from the pruned entries, whichever are fewer."""
    pruned = ~mask
    fewer = jnp.sum(pruned) < jnp.sum(mask)
    rest = lambda: quadratic.full_gram() - quadratic.gram(pruned)
    return jax.lax.cond(fewer, rest, lambda: quadratic.gram(mask))


def dual(quadratic: Quadratic, mask: jax.Array, gram: jax.Array | None = None) -> Dual:
    """The minimum in the space of examples; it takes a damping > 0.

    Args:
      gram: as in `solve`.
    """
    damping = quadratic.damping
    gram = kept_gram(quadratic, mask) if gram is None else gram
    root = whitening(gram, quadratic.examples * damping)
    slopes = quadratic.slopes / damping
    pushed = quadratic.times(jnp.where(mask, slopes, quadratic.weights))
    rows = root @ (root.T @ pushed)
    return Dual(root, quadratic.weights - slopes + quadratic.transposed(rows))


@high
def _by_dual(quadratic: Quadratic, mask: jax.Array, gram: jax.Array | None) -> Solved:
    return _solved(quadratic, mask, dual(quadratic, mask, gram).proximal)


def primal(quadratic: Quadratic, mask: jax.Array, size: int) -> Primal:
    """The minimum in the space of the kept entries, of which there are at most `size`."""
    d, n = quadratic.weights.size, quadratic.examples
    where = jnp.flatnonzero(mask, size=size, fill_value=d)
    at = lambda vector: jnp.append(vector, jnp.zeros((), vector.dtype))[where]
    columns = quadratic.columns(where)
    right = columns.T @ quadratic.times(jnp.where(mask, 0, quadratic.weights)) / n
    right -= at(quadratic.slopes)
    diagonal = jnp.where(where < d, quadratic.damping, 1)
    system = columns.T @ columns / n + jnp.diag(diagonal)
    lower, _ = cho_factor(system, lower=True)
    moved = cho_solve((lower, True), right)
    found = jnp.where(mask, quadratic.weights, 0).at[where].add(moved, mode="drop")
    return Primal(where, lower, jnp.where(mask, found, 0))


@partial(high, static_argnames="size")
def _by_primal(quadratic: Quadratic, mask: jax.Array, *, size: int) -> Solved:
    return _solved(quadratic, mask, primal(quadratic, mask, size).solution)


@high
def _matrix_free(quadratic: Quadratic, mask: jax.Array) -> Solved:
    keep = lambda v: jnp.where(mask, v, 0)
    product = lambda v: keep(quadratic.product(keep(v)))
    diagonal = quadratic.diagonal()
    scaled = lambda v: v / jnp.where(diagonal > 0, diagonal, 1)
    pruned = jnp.where(mask, 0, quadratic.weights)
    right = keep(quadratic.transposed(quadratic.times(pruned)) / quadratic.examples)
    right -= keep(quadratic.slopes)
    tolerance = 100 * float(np.finfo(right.dtype).eps)
    moved, _ = jax.scipy.sparse.linalg.cg(
        product, right, M=scaled, tol=tolerance, maxiter=MOST_STEPS
    )
    return _solved(quadratic, mask, quadratic.weights + moved)


def _solved(quadratic: Quadratic, mask: jax.Array, found: jax.Array) -> Solved:
    solution = jnp.where(mask, found, 0)
    return Solved(solution, value(quadratic, solution))
