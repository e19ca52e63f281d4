"""WoodFisher: every weight is scored, and made up for, as if it alone were pruned."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxprune import trees
from jaxprune.curvature import fisher_blocks as by_block
from jaxprune.curvature.factors import Factor
from jaxprune.curvature.fisher_blocks import Blocks
from jaxprune.select.ranking import lowest
from jaxprune.surgeon.finishing import (
    Candidate,
    begin,
    best_by_loss,
    check_model,
    finish,
    selection,
)
from jaxprune.surgeon.local_model import LocalModel, Site, quadratic_at
from jaxprune.surgeon.quadratic import Quadratic, value
from jaxprune.surgeon.updating import solve
from jaxprune.types import Batch, Mask, Params, Predicate, Pruned, Pruner, Scores, Selection

Update = Literal["independent", "joint"]


def woodfisher_scores(
    model: LocalModel, *, blocks: Blocks = None, prunable: Predicate = trees.default_prunable
) -> Callable[[Params, Batch], Scores]:
    """`s_q = w_q^2 / (2 [F^-1]_qq)`, F the damped Fisher: the rise of the loss when q alone goes.

    The other weights are taken to make up for it, as in Optimal Brain Surgeon. For `jp.one_shot`,
    which does not move them, this is "WF-S" of the Combinatorial Brain Surgeon's tables.

    Args:
      model: its Fisher, damping > 0, examples and leaves to adjust.
      blocks: None for the whole inverse; "leaf" or B for that of the Fisher's diagonal blocks, as
        in `FactoredFisher.inverse_vp`.
      prunable: as given to the selection.

    Returns:
      `(params, batch) -> Scores`, which may be called inside jit. Leaves that are not prunable
      score NaN, so that a selection that wants one says so.

    Raises:
      ValueError: damping 0, a model with a first-order term, other `blocks`.

    References:
      Singh and Alistarh 2020, WoodFisher; Hassibi and Stork 1993, equation 5.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune.surgeon import LocalModel
      >>> from jaxprune.surgeon.inverse_scores import woodfisher_scores
      >>> loss = lambda y, t: 0.5 * (y - t) ** 2
      >>> model = LocalModel(lambda w, x: x @ w[:, 0], loss, damping=3.0)
      >>> batch = (jnp.array([[1.0, 0.0]]), jnp.zeros(1))
      >>> woodfisher_scores(model)(jnp.array([[1.0], [2.0]]), batch).ravel()  # F = diag(1, 0)
      Array([2., 6.], dtype=float32)
    """
    _check(model, blocks)
    select = lowest(prunable=prunable)

    def scores(params: Params, batch: Batch) -> Scores:
        site = Site(params, select, model.adjust, None)
        quadratic, _ = quadratic_at(model, site, params, batch)
        inverse = inverse_diagonal(quadratic, None, blocks)
        found = site.scores(_worth(quadratic.weights, inverse))
        leaves = trees.select_leaves(found, site.prunable)
        unknown = lambda x: jnp.full_like(x, jnp.nan) if trees.is_float(x) else x
        return trees.replace_leaves(found, site.prunable, leaves, unknown)

    return scores


def woodfisher(
    model: LocalModel,
    select: Selection | None = None,
    *,
    blocks: Blocks = None,
    update: Update | None = "independent",
) -> Pruner:
    """WoodFisher: the lowest `w_q^2 / (2 [F^-1]_qq)` go, each with its own update of the others.

    `dw = -F^-1 v`, `v_q = w_q / [F^-1]_qq` for every pruned q, is the sum of the updates that are
    best for each pruned weight alone; together they are not, which `update="joint"` mends.

    Args:
      model: the loss around the weights; damping > 0, no first-order term.
      select: what chooses, by default `jp.select.lowest()`.
      blocks: as in `woodfisher_scores`; the update uses the same blocks.
      update: "independent" is WoodFisher's; "joint" the best weights for the mask (without blocks);
        None moves nothing.

    Returns:
      A `Pruner`. Only prunable leaves and those that the model adjusts move. What a given mask has
      pruned takes no part in the inverse. `info["objective"]` is the predicted rise of the loss.

    Raises:
      ValueError: damping 0, a first-order term, other `blocks` or `update`; when called, as
        `jp.one_shot`, or weights that are not finite.
      TypeError: a call inside jit.

    References:
      Singh and Alistarh 2020, WoodFisher: Efficient Second-Order Approximation for Neural Network
      Compression.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune.surgeon import LocalModel
      >>> from jaxprune.surgeon.inverse_scores import woodfisher
      >>> loss = lambda y, t: 0.5 * (y - t) ** 2
      >>> model = LocalModel(lambda w, x: x @ w[:, 0], loss, damping=1e-4)
      >>> batch = (jnp.array([[1.0, 1.0]]), jnp.zeros(1))  # one input twice
      >>> pruned = woodfisher(model)(jnp.array([[1.0], [2.0]]), batch, sparsity=0.5)
      >>> pruned.params.ravel().round(2)  # the second takes over what the first did
      Array([0., 3.], dtype=float32)
    """
    _check(model, blocks)
    if update not in ("independent", "joint", None):
        raise ValueError(f'`update` is "independent", "joint" or None, got {update!r}.')
    if update == "joint" and blocks is not None:
        raise ValueError(
            f"The joint update is that of the whole inverse, got blocks={blocks!r}. Pass "
            'blocks=None, or update="independent".'
        )
    chosen = selection(select, lowest())

    def prune(
        params: Params, batch: Batch = None, *, sparsity: Any = None, mask: Mask | None = None
    ) -> Pruned:
        started = time.perf_counter()
        site = begin(model, chosen, params, sparsity, mask)
        quadratic, judge = quadratic_at(model, site, site.params, batch)
        free = None if bool(jnp.all(site.old)) else site.old
        inverse, w = inverse_diagonal(quadratic, free, blocks), quadratic.weights
        kept = site.choose(_worth(w, inverse), sparsity)
        if update == "joint":
            solution = solve(quadratic, kept).solution
        elif update == "independent":
            alone = jnp.where(kept, 0, w / inverse)
            solution = jnp.where(kept, w - inverse_product(quadratic, free, alone, blocks), 0)
        else:
            solution = jnp.where(kept, w, 0)
        info = {"objective": float(value(quadratic, solution)), "damping": float(model.damping)}
        best, tried = best_by_loss(model, site, [Candidate(kept, solution, info)], judge)
        return finish(site, best, {"tried": tried}, started)

    return prune


def _check(model: LocalModel, blocks: Blocks) -> None:
    check_model(model)
    by_block.check_blocks(blocks)
    if not model.damping > 0:
        raise ValueError(
            "WoodFisher inverts the Fisher, which fewer examples than weights leave singular: the "
            "model's damping is 0. Pass `LocalModel(..., damping=1e-3)` or another one > 0."
        )
    if model.first_order:
        raise ValueError(
            "WoodFisher takes training to have converged and reads no gradient. Pass a model with "
            "first_order=False, or use `optimal_brain_surgeon`."
        )


@jax.jit
def _worth(weights: jax.Array, inverse: jax.Array) -> jax.Array:
    return weights / inverse * weights / 2


def inverse_diagonal(quadratic: Quadratic, mask: jax.Array | None, blocks: Blocks) -> jax.Array:
    """The diagonal of `(G_K'G_K / n + damping I)^-1`, [d]; 1 / damping outside K.

    Args:
      quadratic: with damping > 0.
      mask: [d], the entries K; None for all.
      blocks: as in `FactoredFisher.inverse_vp`.
    """
    likes = quadratic.split(quadratic.weights)
    options = {"n": quadratic.examples, "blocks": blocks}
    factors = _kept(quadratic, mask)
    found = by_block.inverse_diagonal(factors, likes, quadratic.damping, **options)
    return jnp.concatenate([x.ravel() for x in found])


def inverse_product(
    quadratic: Quadratic, mask: jax.Array | None, vector: jax.Array, blocks: Blocks
) -> jax.Array:
    """`(G_K'G_K / n + damping I)^-1 v`, [d]; arguments as above."""
    options = {"n": quadratic.examples, "blocks": blocks}
    factors, vectors = _kept(quadratic, mask), quadratic.split(vector)
    found = by_block.solve(factors, vectors, quadratic.damping, **options)
    return jnp.concatenate([x.ravel() for x in found])


def _kept(quadratic: Quadratic, mask: jax.Array | None) -> list[Factor]:
    if mask is None:
        return list(quadratic.factors)
    pairs = zip(quadratic.factors, quadratic.split(mask), strict=True)
    return [Kept(factor, keep) for factor, keep in pairs]


@partial(jax.tree_util.register_dataclass, data_fields=("factor", "mask"), meta_fields=())
@dataclass(frozen=True)
class Kept:
    """A factor with zeros for the entries that a mask, shaped like the parameter, drops."""

    factor: Factor
    mask: jax.Array

    @property
    def positions(self) -> int:
        """Entries worked on for each entry of `columns`."""
        return self.factor.positions

    def times(self, vector: jax.Array) -> jax.Array:
        """`G v`, [n]."""
        return self.factor.times(jnp.where(self.mask, vector, 0))

    def transposed(self, weights: jax.Array) -> jax.Array:
        """`G' q`, like the parameter."""
        return jnp.where(self.mask, self.factor.transposed(weights), 0)

    def gram(self) -> jax.Array:
        """`G G'`, [n, n]."""
        rows = jax.eval_shape(self.factor.gram)
        zeros = jnp.zeros(self.mask.size, rows.dtype)
        one = jnp.zeros((), rows.dtype)
        shapes = (self.mask.shape,)
        alone = Quadratic((self.factor,), zeros, zeros, one, rows.shape[0], shapes)
        return alone.gram(self.mask.ravel())

    def columns(self, flat: jax.Array) -> jax.Array:
        """`G[:, flat]`, [n, m]."""
        return jnp.where(self.mask.ravel()[flat], self.factor.columns(flat), 0)

    def squares(self) -> jax.Array:
        """`sum_n g_n^2`, like the parameter."""
        return jnp.where(self.mask, self.factor.squares(), 0)

    def projected_squares(self, projections: jax.Array) -> jax.Array:
        """`sum_r (p_r' g)^2` for every column g of G, like the parameter; p is [n, r]."""
        return jnp.where(self.mask, self.factor.projected_squares(projections), 0)
