"""The exact diagonal of the Hessian, each leaf in the cheapest way that is exact for it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import objective, trees
from jaxprune.curvature.basis import leaf_diagonal
from jaxprune.curvature.examples import (
    check_count,
    mean_over_examples,
    widened,
    with_mean_only,
)
from jaxprune.curvature.gauss_newton import as_diagonal, columns_like
from jaxprune.curvature.residual import Bend, residual_bends, watched
from jaxprune.curvature.roots import MOST_OUTPUTS, Root, output_factor
from jaxprune.curvature.squares import Bends, Sums, sum_of_squares
from jaxprune.curvature.units import diagonal_by_entries, diagonal_by_units, has_units
from jaxprune.jaxpr.chains import single_reads
from jaxprune.jaxpr.linear import linear_leaves
from jaxprune.jaxpr.pullback import Pullback, pull_back
from jaxprune.jaxpr.sites import letters
from jaxprune.jaxpr.taps import Taps
from jaxprune.types import Apply, Batch, Curvature, Diagonal, Loss, Params, PyTree


def exact_diagonal(
    apply: Apply,
    loss: Loss,
    *,
    root: Root | None = None,
    second_moment: bool = True,
    microbatch: int | None = None,
    chunk: int = 64,
) -> Curvature:
    """The diagonal of the Hessian of the mean loss, and its second moment over examples.

    Each leaf takes the cheapest way that is exact for it, read off the jaxpr:

    1. The outputs are piecewise linear in it (ReLU networks; the last layer of any network): the
       Gauss-Newton diagonal, about two gradients for a dense network.
    2. Smooth functions above it, and at most one matrix product between the leaf's layer and each
       of them (the upper two hidden layers of any perceptron): the Gauss-Newton diagonal plus
       `sum_u g_u f''_u (dz_u/dw)^2`, for one more column and small products on squares.
    3. Any functions above it, but a layer that the model uses once (or a bias, a scale):
       `d^2 loss / dz^2` for every unit z of the layer's output, one Hessian-vector product a UNIT
       through the layers above.
    4. Anything else (recurrent and tied weights in smooth networks, parameters in custom rules,
       models whose examples depend on each other): a second derivative for every PARAMETER, slow.
       Such leaves are listed in `fallback_paths`.

    Args:
      apply: `(params, inputs) -> outputs`.
      loss: `(outputs, targets) -> [N]`, twice differentiable.
      root: `(outputs, targets) -> [N, K, C]`, a root of the loss's Hessian in the outputs, such as
        `softmax_root`: saves an eigendecomposition. Above 64 outputs there is none by default, and
        every leaf takes way 3 or 4.
      second_moment: also take the mean over examples of the squared diagonal.
      microbatch: examples at once; by default as many as keep the deltas in a CPU's last cache.
      chunk: Hessian-vector products taken at once in ways 3 and 4.

    Returns:
      `(params, batch) -> Diagonal` with `is_hessian` True; float32 (float64 for float64 leaves).

    Raises:
      ValueError: a missing or empty batch, a loss of the wrong shape.

    References:
      LeCun, Denker, Solla 1990, Optimal Brain Damage, for the use of this diagonal; Schraudolph
      2002 for the split into Gauss-Newton and residual.

    Example:
      >>> diagonal = exact_diagonal(lambda w, x: x @ w, lambda y, t: (y - t) ** 2)
      >>> batch = (jnp.array([[1.0, 2.0]]), jnp.array([0.0]))
      >>> diagonal(jnp.array([0.5, 0.5]), batch).mean.round(4)
      Array([2., 8.], dtype=float32)
    """
    check_count("chunk", chunk)
    losses = objective.example_losses(apply, loss)

    def sums(params: Params, batch: Batch, independent: bool) -> Diagonal:
        inputs, targets = batch
        leaves, merge, flags = widened(params)
        places = [i for i, flag in enumerate(flags) if flag]
        whole = merge(leaves)
        with jax.default_matmul_precision("highest"):
            if independent:
                linear = linear_leaves(apply, whole, inputs)
                found = pull_back(apply, whole, inputs, watched)
                by_root = root is not None or _outputs(found) <= MOST_OUTPUTS
                smooth = not all(linear[i] for i in places)
                pulled = _pulled(found, loss, root, targets, smooth) if by_root else None
                split = _ways(found, linear, pulled)
                total = _by_columns(found, pulled, split, second_moment)
                for i in split.units:
                    itself = i in found.tapped.direct
                    by = diagonal_by_entries if itself else diagonal_by_units
                    _put(total, places.index(i), by(found, loss, batch, i, chunk, second_moment))
                basis = split.basis
                slow = (*basis, *(i for i in split.units if i in found.tapped.slow))
            else:
                zeros = [jnp.zeros_like(leaf) for leaf in leaves]
                total = Sums(zeros, list(zeros) if second_moment else None)
                basis = slow = tuple(places)
            for i in basis:
                pair = leaf_diagonal(losses, leaves, places.index(i), merge, batch, chunk)
                if pair[1] is None:
                    total = Sums(total.first, None)
                _put(total, places.index(i), pair)
        return as_diagonal(params, flags, total, True, slow)

    def columns(outputs: PyTree, targets: PyTree) -> int:
        return sum(y.size // y.shape[0] for y in jax.tree.leaves(outputs)) + 1

    curvature = mean_over_examples(apply, sums, columns, microbatch, loss)
    if not second_moment:
        return curvature
    options: Any = {"root": root, "microbatch": microbatch, "chunk": chunk}
    return with_mean_only(curvature, exact_diagonal(apply, loss, second_moment=False, **options))


class _Ways(NamedTuple):
    """Leaves by the way they take; those in neither tuple are read off columns and bends."""

    bends: Bends
    units: tuple[int, ...]
    basis: tuple[int, ...]


def _outputs(found: Pullback) -> int:
    return sum(y.size // y.shape[0] for y in jax.tree.leaves(found.outputs))


def _put(total: Sums, place: int, pair: tuple[Any, Any]) -> None:
    total.first[place] = pair[0]
    if total.second is not None:
        total.second[place] = pair[1]


class _Pulled(NamedTuple):
    """Deltas of a root's columns, and of the loss itself, from one pull-back of both."""

    columns: Taps
    signs: jax.Array | None
    slopes: dict[int, jax.Array]


def _pulled(
    found: Pullback, loss: Loss, root: Root | None, targets: PyTree, smooth: bool
) -> _Pulled:
    columns, signs = output_factor(loss, root, found.outputs, targets)
    weights = None if signs is None else signs.T
    if not smooth:
        return _Pulled(found.pull(columns_like(columns, found.outputs)), weights, {})
    slope = objective.output_slopes(loss, found.outputs, targets)
    cotangents = columns_like(columns, found.outputs)
    both = jax.tree.map(lambda c, s: jnp.concatenate([c, s[None]]), cotangents, slope)
    deltas = found.pull(both)
    slopes = {v: delta[-1] for v, delta in deltas.variables.items()}
    squared = jax.tree.map(lambda d: d[:-1], deltas._replace(variables={}))
    return _Pulled(squared, weights, slopes)


def _ways(found: Pullback, linear: tuple[bool, ...], pulled: _Pulled | None) -> _Ways:
    """Which way each floating leaf takes."""
    tapped, by_root = found.tapped, pulled is not None
    float_leaves = [i for i, leaf in enumerate(found.leaves) if trees.is_float(leaf)]
    smooth = [i for i in float_leaves if not (linear[i] and by_root) and found.leaves[i].size]
    if not smooth:
        return _Ways(Bends({}, {}), (), ())
    bends = {} if pulled is None else residual_bends(found, pulled.slopes)
    once = single_reads(tapped)
    sites: dict[Any, jax.Array] = {}
    leaves: dict[int, jax.Array] = {}
    units: list[int] = []
    basis: list[int] = []
    for i in smooth:
        own = [site for site in tapped.sites if site.leaf == i]
        if not own and i not in tapped.direct:
            continue  # the model does not read it
        if by_root and i in tapped.direct and i in once:
            bend = bends.get(tapped.program.arguments[i])
            if bend is None or bend.diagonal is not None:
                if bend is not None and bend.diagonal is not None:
                    leaves[i] = bend.diagonal
                continue
        elif by_root and len(own) == 1 and len(own[0].key) == 1:
            (result,) = tapped.program.equations[own[0].key[0]].results
            bend = bends.get(result)
            if bend is None or _readable(own[0], bend):
                if bend is not None and bend.diagonal is not None:
                    sites[own[0].key] = bend.diagonal
                continue
        (units if i in tapped.direct or has_units(own) else basis).append(i)
    return _Ways(Bends(sites, leaves), tuple(units), tuple(basis))


def _readable(site: Any, bend: Bend) -> bool:
    """Can a layer's weights be read off this bend? With several positions it must be whole."""
    if bend.diagonal is None or not site.origin.injective or site.primitive == "gather":
        return False
    return bend.whole or letters(site).positions == 1


def _by_columns(found: Pullback, pulled: _Pulled | None, split: _Ways, second: bool) -> Sums:
    if pulled is None:
        zeros = [jnp.zeros_like(leaf) for leaf in found.leaves if trees.is_float(leaf)]
        return Sums(zeros, list(zeros) if second else None)
    skip = frozenset((*split.units, *split.basis))
    return sum_of_squares(
        found, pulled.columns, pulled.signs, second=second, bends=split.bends, skip=skip
    )
