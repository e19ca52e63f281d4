"""The Hessian's diagonal in a layer's weights from the Hessian in the layer's outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import objective, trees
from jaxprune.curvature.squares import sums_at_site
from jaxprune.jaxpr import sites as algebra
from jaxprune.jaxpr.pullback import Pullback
from jaxprune.jaxpr.taps import Site, Taps
from jaxprune.types import Batch, Loss


def has_units(own: list[Site]) -> bool:
    """Is this leaf one layer's, read once, outside loops, with fewer units than weights?"""
    if len(own) != 1 or len(own[0].key) != 1 or not own[0].origin.injective:
        return False
    (site,) = own
    if site.primitive == "gather":
        return False
    return algebra.letters(site).positions == 1 or site.output.size <= _size(site)


def _size(site: Site) -> int:
    total = 1
    for size in site.operand:
        total *= size
    return total


def diagonal_by_units(
    found: Pullback, loss: Loss, batch: Batch, leaf: int, chunk: int, second: bool
) -> tuple[Any, Any]:
    """Sums over examples of h_n and h_n squared for one leaf that `has_units`.

    With z the layer's output and x its input, `d^2 loss / dw^2 = x^2 d^2 loss / dz^2` where a
    weight is used once in an example, and `sum_pq x_p x_q d^2 loss / dz_p dz_q` over its positions
    otherwise. The model above the layer is linearised once; every unit of z is one product.
    """
    (site,) = [site for site in found.tapped.sites if site.leaf == leaf]
    zeros, n = found.tapped.zeros, objective.batch_size(batch)
    dtype = trees.score_dtype(found.leaves[leaf])
    captured = found.captures[site.key].astype(dtype)
    place = lambda tap: zeros._replace(sites={**zeros.sites, site.key: tap})
    unit = _rows(found, loss, batch, zeros.sites[site.key], place)
    size = site.output.size

    if algebra.letters(site).positions == 1:
        of_unit = lambda u: unit(u)[1].reshape(n, size)[:, u]
        bend = jax.lax.map(of_unit, jnp.arange(size), batch_size=min(chunk, size))
        bend = bend.T.reshape(n, *site.output.shape)
        return sums_at_site(site, captured, bend.astype(dtype), second)

    def add(total: jax.Array, u: jax.Array) -> tuple[jax.Array, None]:
        pair = jnp.stack(unit(u)).astype(dtype)  # the unit, and its row of the Hessian
        own, row = algebra.gradients(site, captured, pair)
        return total + own * row, None

    zero = jnp.zeros((n, *found.leaves[leaf].shape), dtype)
    each = jax.lax.scan(add, zero, jnp.arange(size))[0]
    return jnp.sum(each, axis=0), jnp.sum(each * each, axis=0) if second else None


def diagonal_by_entries(
    found: Pullback, loss: Loss, batch: Batch, leaf: int, chunk: int, second: bool
) -> tuple[Any, Any]:
    """The same for a leaf that is tapped itself: one product for every entry of the leaf."""
    zeros, n = found.tapped.zeros, objective.batch_size(batch)
    dtype, like = trees.score_dtype(found.leaves[leaf]), zeros.leaves[leaf]
    place = lambda tap: zeros._replace(leaves={**zeros.leaves, leaf: tap})
    unit = _rows(found, loss, batch, like, place)

    def moments(u: jax.Array) -> tuple[jax.Array, jax.Array]:
        each = unit(u)[1].reshape(n, like.size)[:, u].astype(dtype)
        return jnp.sum(each), jnp.sum(each * each)

    first, more = jax.lax.map(moments, jnp.arange(like.size), batch_size=min(chunk, like.size))
    return first.reshape(like.shape), more.reshape(like.shape) if second else None


def _rows(
    found: Pullback, loss: Loss, batch: Batch, like: jax.Array, place: Callable[[jax.Array], Taps]
) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """`u -> (unit u, its row of the Hessian)` at one tap, for every example: both [n, ...]."""
    inputs, targets = batch
    n = objective.batch_size(batch)

    def losses(tap: jax.Array) -> jax.Array:
        def single(tap: jax.Array, example: Any) -> Any:
            one = jax.tree.map(lambda x: x[None], example)
            outputs, _ = found.tapped.run(found.leaves, one, place(tap), twice=True)
            return jax.tree.map(lambda y: y[0], outputs)

        outputs = jax.vmap(single)(tap, inputs)
        return jnp.sum(objective.check_losses(loss(outputs, targets), n))

    _, push = jax.linearize(jax.grad(losses), jnp.zeros((n, *like.shape), like.dtype))

    def unit(u: jax.Array) -> tuple[jax.Array, jax.Array]:
        along = jnp.zeros(like.size, like.dtype).at[u].set(1).reshape(like.shape)
        along = jnp.broadcast_to(along, (n, *like.shape))
        return along, push(along)

    return unit
