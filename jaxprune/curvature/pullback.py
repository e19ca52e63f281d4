"""A model linearised at its taps, and sums over examples of squares of what is pulled back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import trees
from jaxprune.jaxpr import sites as algebra
from jaxprune.jaxpr.taps import Site, Tapped, Taps, tap
from jaxprune.types import Apply, Params, PyTree

_CHUNK_BYTES = 2 << 20  # per-example arrays worked on at once: they should stay in a cache


class Pullback(NamedTuple):
    """`apply` on n examples, linearised at its taps.

    Attributes:
      tapped: the traced model of ONE example.
      leaves: the flattened parameters.
      outputs: [n, ...].
      captures: inputs of every site by key, [n, ...].
      pull: cotangents of the outputs, [k, n, ...] -> deltas at the taps, [k, n, ...].
    """

    tapped: Tapped
    leaves: list[Any]
    outputs: PyTree
    captures: dict[Any, jax.Array]
    pull: Callable[[PyTree], Taps]


def pull_back(apply: Apply, params: Params, inputs: PyTree) -> Pullback:
    """Run the model on all examples, each by itself, and keep what pulling back needs."""
    one = jax.tree.map(lambda x: x[:1], inputs)
    tapped = tap(apply, params, one)
    leaves = jax.tree.leaves(params)
    n = jax.tree.leaves(inputs)[0].shape[0]

    def single(taps: Taps, example: PyTree) -> tuple[PyTree, Any]:
        batch = jax.tree.map(lambda x: x[None], example)
        outputs, captures = tapped.run(leaves, batch, taps)
        return jax.tree.map(lambda y: y[0], outputs), captures

    zeros = jax.tree.map(lambda z: jnp.zeros((n, *z.shape), z.dtype), tapped.zeros)
    run = lambda taps: jax.vmap(single)(taps, inputs)
    outputs, pull, captures = jax.vjp(run, zeros, has_aux=True)
    return Pullback(tapped, leaves, outputs, captures, jax.vmap(lambda c: pull(c)[0]))


class Squares(NamedTuple):
    """For every real floating leaf: sums over examples of h_n and of h_n squared."""

    first: list[jax.Array]
    second: list[jax.Array] | None


def sum_of_squares(
    found: Pullback, cotangents: PyTree, signs: jax.Array | None, second: bool
) -> Squares:
    """`h_n = sum_k signs_kn (J_n' c_kn)^2`, summed over examples, for every real floating leaf.

    Args:
      found: the model, linearised.
      cotangents: c, a tree of [k, n, ...] like the outputs.
      signs: [k, n], or None for all one.
      second: sum the squares of h_n as well.
    """
    deltas = found.pull(cotangents)
    firsts: list[jax.Array] = []
    seconds: list[jax.Array] = []
    for i, leaf in enumerate(found.leaves):
        if not trees.is_float(leaf):
            continue
        dtype = trees.score_dtype(leaf)
        own = [site for site in found.tapped.sites if site.leaf == i]
        if i in found.tapped.direct:
            sums = _of_copies(deltas.leaves[i].astype(dtype), signs, second)
        elif not own:
            sums = (jnp.zeros(leaf.shape, dtype),) * 2
        else:
            wide = lambda x, dtype=dtype: x.astype(dtype) if trees.is_float(x) else x
            captured = [wide(found.captures[site.key]) for site in own]
            arrived = [wide(deltas.sites[site.key]) for site in own]
            sums = _of_sites(own, captured, arrived, signs, second)
        firsts.append(sums[0])
        seconds.append(sums[1])
    return Squares(firsts, seconds if second else None)


_Sums = tuple[Any, Any]


def _weighed(squares: jax.Array, signs: jax.Array | None) -> jax.Array:
    """`sum_k signs_kn x_kn` of [k, n, ...]."""
    if signs is None:
        return jnp.sum(squares, axis=0)
    return jnp.einsum("kn,kn...->n...", signs.astype(squares.dtype), squares)


def _totals(each: jax.Array, second: bool) -> _Sums:
    return jnp.sum(each, axis=0), jnp.sum(each * each, axis=0) if second else None


def _of_copies(deltas: jax.Array, signs: jax.Array | None, second: bool) -> _Sums:
    return _totals(_weighed(deltas * deltas, signs), second)


def _of_sites(
    own: list[Site],
    captured: list[jax.Array],
    deltas: list[jax.Array],
    signs: jax.Array | None,
    second: bool,
) -> _Sums:
    site = own[0]
    if len(own) == 1 and site.origin.injective:
        if site.primitive == "gather" and all(k == "constant" for _, k in site.origin.loops):
            sums = _of_rows(site, captured[0], deltas[0], signs, second)
        elif site.primitive != "gather" and algebra.letters(site).positions == 1:
            sums = _of_rank_one(site, captured[0], deltas[0], signs, second)
        else:
            sums = _by_chunks(own, captured, deltas, signs, second, _in_letters)
        return tuple(None if s is None else algebra.weight_of(site, s) for s in sums)  # type: ignore[return-value]
    return _by_chunks(own, captured, deltas, signs, second, _in_leaf)


def _of_rank_one(
    site: Site, captured: jax.Array, deltas: jax.Array, signs: jax.Array | None, second: bool
) -> _Sums:
    """`sum_n a_ni^2 (sum_k d_kno^2)`: one matrix product on squares."""
    names = algebra.letters(site)
    rule = f"n{names.inputs},n{names.deltas}->{names.weight}"
    a, d = algebra.inputs_of(site, captured), algebra.deltas_of(site, deltas)
    a, bent = a * a, _weighed(d * d, signs)
    more = jnp.einsum(rule, a * a, bent * bent) if second else None
    return jnp.einsum(rule, a, bent), more


def _of_rows(
    site: Site, captured: jax.Array, deltas: jax.Array, signs: jax.Array | None, second: bool
) -> _Sums:
    """Rows of one example that are one row add up before they are squared."""
    index = algebra.rows(site, captured)
    n, slices = index.shape[0], len(site.operand) - 1
    index = index.reshape(n, -1)
    d = algebra.row_deltas(site, deltas)
    d = d.reshape(*d.shape[:2], index.shape[1], *d.shape[d.ndim - slices :])
    equal = (index[:, :, None] == index[:, None, :]).astype(d.dtype)
    parts = _weighed(d * jnp.einsum("nij,knj...->kni...", equal, d), signs)
    zeros = jnp.zeros((site.operand[0], *d.shape[3:]), d.dtype)
    add = lambda x: zeros.at[index].add(x, mode="drop")
    if not second:
        return add(parts), None
    whole = jnp.einsum("nij,nj...->ni...", equal, parts)
    times = jnp.sum(equal, axis=2).reshape(*index.shape, *[1] * slices)
    return add(parts), add(whole * whole / times)


def _in_letters(own: list[Site], captured: list[jax.Array], deltas: list[jax.Array]) -> jax.Array:
    """Gradients [k, n, ...] of one site, before the moves of its parameter are undone."""
    (site,) = own
    if site.primitive == "gather":
        return algebra.gradients(site._replace(origin=site.origin._replace(steps=())), *captured, *deltas)
    names = algebra.letters(site)
    rule = f"n{names.inputs},kn{names.deltas}->kn{names.weight}"
    return jnp.einsum(
        rule, algebra.inputs_of(site, captured[0]), algebra.deltas_of(site, deltas[0])
    )


def _in_leaf(own: list[Site], captured: list[jax.Array], deltas: list[jax.Array]) -> jax.Array:
    """Gradients [k, n, ...] of a parameter used in several places: they add up."""
    parts = zip(own, captured, deltas, strict=True)
    return sum(algebra.gradients(*part) for part in parts)  # type: ignore[return-value]


def _by_chunks(
    own: list[Site],
    captured: list[jax.Array],
    deltas: list[jax.Array],
    signs: jax.Array | None,
    second: bool,
    gradients: Callable[[list[Site], list[jax.Array], list[jax.Array]], jax.Array],
) -> _Sums:
    """Per-example gradients of a few examples at a time, squared and summed at once.

    In a loop over chunks that fit a cache: 2 to 4 times as fast as all at once, on a CPU. Nothing
    in the loop is a convolution, which would be slow there.
    """
    k, n = deltas[0].shape[:2]
    shape = jax.eval_shape(lambda a, d: gradients(own, a, d), captured, deltas)
    prepared = [jax.eval_shape(lambda a, s=s: algebra.inputs_of(s, a), a)
                for s, a in zip(own, captured, strict=True) if s.primitive != "gather"]  # fmt: skip
    touched = [shape, *prepared, *deltas]
    one = sum(x.size for x in touched) // n * shape.dtype.itemsize
    chunk = next(c for c in range(min(n, max(1, _CHUNK_BYTES // one)), 0, -1) if n % c == 0)
    by_column = one > 8 * _CHUNK_BYTES

    def sums(start: jax.Array) -> _Sums:
        cut = lambda x, axis: jax.lax.dynamic_slice_in_dim(x, start, chunk, axis)
        a, d = [cut(x, 0) for x in captured], [cut(x, 1) for x in deltas]
        s = None if signs is None else cut(signs, 1)
        if not by_column:
            each = gradients(own, a, d)
            return _totals(_weighed(each * each, s), second)

        def column(total: jax.Array, j: jax.Array) -> tuple[jax.Array, None]:
            pick = lambda x: jax.lax.dynamic_slice_in_dim(x, j, 1, 0)
            each = gradients(own, a, [pick(x) for x in d])
            return total + _weighed(each * each, None if s is None else pick(s)), None

        zero = jnp.zeros((chunk, *shape.shape[2:]), shape.dtype)
        return _totals(jax.lax.scan(column, zero, jnp.arange(k))[0], second)

    if chunk == n:
        return sums(jnp.int32(0))
    zero = jnp.zeros(shape.shape[2:], shape.dtype)
    step = lambda total, start: (jax.tree.map(jnp.add, total, sums(start)), None)
    starts = jnp.arange(0, n, chunk)
    return jax.lax.scan(step, (zero, zero if second else None), starts)[0]
