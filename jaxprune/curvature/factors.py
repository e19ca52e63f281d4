"""Per-example gradients of one parameter, n x d, as a product that is never multiplied out.

A dense layer's gradient for example n is `sum_p a_np d_np'`, inputs times deltas over the positions
p at which it is used: one for a plain dense layer, time steps or pixels for others. `Layer` holds a
and d; `Whole` holds the gradients themselves, where that is less.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxprune.curvature.layout import Layout, layout_of, split_letters, unread
from jaxprune.jaxpr import sites as algebra
from jaxprune.jaxpr.taps import Site


def budget(dtype: jnp.dtype) -> int:
    """How many entries to work on at once: what a CPU's cache holds, or a small part of a GPU."""
    some = 4 << 20 if jax.default_backend() == "cpu" else 1 << 28
    return some // jnp.dtype(dtype).itemsize


def some_at_once(function: Callable, xs: Any, most: int) -> Any:
    """`vmap`, of at most so many at once in a loop; no loop where all fit."""
    if jax.tree.leaves(xs)[0].shape[0] <= most:
        return jax.vmap(function)(xs)
    return jax.lax.map(function, xs, batch_size=most)


class Factor(Protocol):
    """G, the n x d matrix of per-example gradients of one parameter of d entries."""

    @property
    def positions(self) -> int:
        """Entries worked on for each entry of `columns`."""

    def times(self, vector: jax.Array) -> jax.Array:
        """`G v`, [n]; v is like the parameter."""

    def transposed(self, weights: jax.Array) -> jax.Array:
        """`G' q`, like the parameter; q is [n]."""

    def gram(self) -> jax.Array:
        """`G G'`, [n, n]."""

    def columns(self, flat: jax.Array) -> jax.Array:
        """`G[:, flat]`, [n, m]."""

    def squares(self) -> jax.Array:
        """`sum_n g_n^2`, like the parameter."""

    def projected_squares(self, projections: jax.Array) -> jax.Array:
        """`sum_r (p_r' g)^2` for every column g of G, like the parameter; p is [n, r]."""


@partial(jax.tree_util.register_dataclass, data_fields=("gradients",), meta_fields=())
@dataclass(frozen=True)
class Whole:
    """The gradients themselves.

    Attributes:
      gradients: [n, ...], examples and then the parameter's shape.
    """

    gradients: jax.Array

    @property
    def positions(self) -> int:
        """Entries worked on for each entry of `columns`."""
        return 1

    @property
    def flat(self) -> jax.Array:
        """[n, d]."""
        n, *shape = self.gradients.shape
        return self.gradients.reshape(n, math.prod(shape))

    def times(self, vector: jax.Array) -> jax.Array:
        """`G v`, [n]."""
        return self.flat @ vector.ravel()

    def transposed(self, weights: jax.Array) -> jax.Array:
        """`G' q`, like the parameter."""
        return jnp.tensordot(weights, self.gradients, 1)

    def gram(self) -> jax.Array:
        """`G G'`, [n, n]."""
        return self.flat @ self.flat.T

    def columns(self, flat: jax.Array) -> jax.Array:
        """`G[:, flat]`, [n, m]."""
        return self.flat[:, flat]

    def squares(self) -> jax.Array:
        """`sum_n g_n^2`, like the parameter."""
        return jnp.sum(self.gradients**2, axis=0)

    def projected_squares(self, projections: jax.Array) -> jax.Array:
        """`sum_r (p_r' g)^2` for every column g of G, like the parameter; p is [n, r]."""
        flat, some = self.flat, lambda part: jnp.sum((projections.T @ part) ** 2, axis=0)
        n, d = flat.shape
        size = max(1, min(d, budget(flat.dtype) // max(1, n)))
        whole = d - d % size  # parts are sliced where they lie: cut up, G would be there twice
        starts = jnp.arange(0, whole, size)
        found = jax.lax.map(
            lambda start: some(jax.lax.dynamic_slice_in_dim(flat, start, size, axis=1)), starts
        )
        found = jnp.concatenate([found.ravel(), some(flat[:, whole:])])
        return found.reshape(self.gradients.shape[1:])


@partial(
    jax.tree_util.register_dataclass, data_fields=("inputs", "deltas"), meta_fields=("layout",)
)
@dataclass(frozen=True)
class Layer:
    """`g_nbio = sum_p a_npbi d_npbo`, moved to where the parameter has it.

    Attributes:
      inputs: a, [n, p, b, i].
      deltas: d, [n, p, b, o].
      layout: from the parameter to [b, i, o].
    """

    inputs: jax.Array
    deltas: jax.Array
    layout: Layout

    @property
    def positions(self) -> int:
        """Entries worked on for each entry of `columns`."""
        return max(1, self.inputs.shape[1])

    def times(self, vector: jax.Array) -> jax.Array:
        """`G v`, [n]: through the weights from the wider side, so that less is kept."""
        a, d, w = self.inputs, self.deltas, self.layout.to_layer(vector)
        if a.shape[-1] < d.shape[-1]:
            return jnp.einsum("npbi,npbi->n", jnp.einsum("npbo,bio->npbi", d, w), a)
        return jnp.einsum("npbo,npbo->n", jnp.einsum("npbi,bio->npbo", a, w), d)

    def transposed(self, weights: jax.Array) -> jax.Array:
        """`G' q`, like the parameter: one weight gradient of reweighted examples."""
        weighed = self.deltas * weights[:, None, None, None]
        return self.layout.to_leaf(jnp.einsum("npbi,npbo->bio", self.inputs, weighed))

    def gram(self) -> jax.Array:
        """`G G'`, [n, n]: from pairs of positions, or gradients of a few outputs at a time.

        `sum_pq (a_np . a_mq) (d_np . d_mq)` is n^2 p^2 (i + o) products; gradients are n p i o to
        form and n^2 i o to multiply. Rank one, p = 1, is always the former: `(A A') * (D D')`.
        """
        (n, p, _, i), o = self.inputs.shape, self.deltas.shape[-1]
        if n * p * p * (i + o) <= p * i * o + n * i * o:
            return self._gram_of_pairs()
        return self._gram_of_gradients()

    def _gram_of_pairs(self) -> jax.Array:
        n, p, b, _ = self.inputs.shape
        # As many of the second examples as fit; [n, n] itself has to be there in any case.
        most = max(budget(self.inputs.dtype), n * n) // max(1, n * p * p * b)

        def some(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
            a = jnp.einsum("npbi,mqbi->bnpmq", self.inputs, pair[0])
            return jnp.sum(a * jnp.einsum("npbo,mqbo->bnpmq", self.deltas, pair[1]), (0, 2, 4))

        cut = lambda x: _parts(x, 0, most)
        rows = _each(some, (cut(self.inputs), cut(self.deltas)))  # [parts, n, m]
        return jnp.moveaxis(rows, 0, 1).reshape(n, -1)[:, :n]

    def _gram_of_gradients(self) -> jax.Array:
        n = self.inputs.shape[0]

        def add(total: jax.Array, part: jax.Array) -> tuple[jax.Array, None]:
            flat = self._gradients(part).reshape(n, -1)
            return total + flat @ flat.T, None

        parts = self._few_outputs()
        if parts.shape[0] == 1:
            return add(jnp.zeros((), parts.dtype), parts[0])[0]
        return jax.lax.scan(add, jnp.zeros((n, n), parts.dtype), parts)[0]

    def columns(self, flat: jax.Array) -> jax.Array:
        """`G[:, flat]`, [n, m]: inputs and deltas of those entries, a few positions at a time."""
        (b, i, o), inside = self.layout.find(flat)
        n, p = self.inputs.shape[:2]

        def add(total: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            a, d = pair
            return total + jnp.einsum("npm,npm->nm", a[:, :, b, i], d[:, :, b, o]), None

        most = budget(self.inputs.dtype) // max(1, n * flat.size)
        zero = jnp.zeros((n, flat.size), self.inputs.dtype)
        if p <= max(1, most):
            found = add(zero, (self.inputs, self.deltas))[0]
        else:
            pairs = _parts(self.inputs, 1, most), _parts(self.deltas, 1, most)
            found = jax.lax.scan(add, zero, pairs)[0]
        return jnp.where(inside, found, 0)

    def squares(self) -> jax.Array:
        """`sum_n g_n^2`, like the parameter."""
        if self.inputs.shape[1] == 1:
            a, d = self.inputs[:, 0] ** 2, self.deltas[:, 0] ** 2
            return self.layout.to_leaf(jnp.einsum("nbi,nbo->bio", a, d))
        return self._by_outputs(lambda gradients: jnp.sum(gradients**2, axis=0))

    def projected_squares(self, projections: jax.Array) -> jax.Array:
        """`sum_r (p_r' g)^2` for every column g of G, like the parameter; p is [n, r]."""

        def some(gradients: jax.Array) -> jax.Array:
            n, *shape = gradients.shape
            through = projections.T @ gradients.reshape(n, math.prod(shape))
            return jnp.sum(through**2, axis=0).reshape(shape)

        return self._by_outputs(some)

    def _by_outputs(self, function: Callable) -> jax.Array:
        """`function(gradients [n, b, i, some o]) -> [b, i, some o]`, joined, like the parameter."""
        found = _each(lambda part: function(self._gradients(part)), self._few_outputs())
        parts, b, i, each = found.shape
        found = jnp.moveaxis(found, 0, 2).reshape(b, i, parts * each)
        return self.layout.to_leaf(found[..., : self.deltas.shape[-1]])

    def _gradients(self, deltas: jax.Array) -> jax.Array:
        """[n, b, i, o] for some of the outputs."""
        return jnp.einsum("npbi,npbo->nbio", self.inputs, deltas)

    def _few_outputs(self) -> jax.Array:
        """Deltas in parts, [parts, n, p, b, o]: a part's gradients are few.

        One output's are n b i, a p-th of what the inputs take, so they fit where those do.
        """
        n, _, b, i = self.inputs.shape
        return _parts(self.deltas, 3, budget(self.deltas.dtype) // max(1, n * b * i))


def _parts(x: jax.Array, axis: int, most: int) -> jax.Array:
    """An axis cut into equal parts of at most so many (or 1), filled up with zeros; parts first."""
    size = x.shape[axis]
    count = -(-size // max(1, min(most, size))) if size else 1
    each = -(-size // count)
    padded = jnp.pad(x, [(0, count * each - size if a == axis else 0) for a in range(x.ndim)])
    return jnp.moveaxis(padded.reshape(*x.shape[:axis], count, each, *x.shape[axis + 1 :]), axis, 0)


def _each(function: Callable, parts: jax.Array | tuple[jax.Array, ...]) -> jax.Array:
    """`lax.map`, without the loop where there is one part."""
    if jax.tree.leaves(parts)[0].shape[0] > 1:
        return jax.lax.map(function, parts)
    return function(jax.tree.map(lambda x: x[0], parts))[None]


def of_nothing(n: int, leaf: jax.Array) -> Factor:
    """A parameter that the model does not read: a layer at no position."""
    shape = leaf.shape
    zeros = lambda size: jnp.zeros((n, 0, 1, size), leaf.dtype)
    return Layer(zeros(math.prod(shape)), zeros(1), unread(shape))


def of_sites(
    own: list[Site], shape: tuple[int, ...], captured: list[jax.Array], deltas: list[jax.Array]
) -> Factor:
    """A parameter that enters layers only: factors where they are smaller than the gradients.

    Args:
      own: the sites.
      shape: of the parameter.
      captured, deltas: for each site, [n, ...].
    """
    layout = layout_of(own[0], shape)
    if layout is not None and all(layout_of(site, shape) == layout for site in own[1:]):
        # Several uses alike are positions of one layer.
        names = [algebra.letters(site) for site in own]
        b, i, o = layout.layer
        if sum(name.positions for name in names) * b * (i + o) < math.prod(shape):
            pairs = [_as_layer(*x, layout) for x in zip(own, captured, deltas, strict=True)]
            inputs, outputs = (jnp.concatenate(x, axis=1) for x in zip(*pairs, strict=True))
            return Layer(inputs, outputs, layout)
    return Whole(_whole(own, shape, captured, deltas))


def _as_layer(
    site: Site, captured: jax.Array, deltas: jax.Array, layout: Layout
) -> tuple[jax.Array, jax.Array]:
    """[n, p, b, i] and [n, p, b, o]."""
    names = algebra.letters(site)
    positions, groups, inputs, outputs = split_letters(names)
    (b, i, o), n = layout.layer, captured.shape[0]
    a = algebra.inputs_of(site, captured)
    a = jnp.einsum(f"n{names.inputs}->n{positions}{groups}{inputs}", a)
    d = algebra.deltas_of(site, deltas)
    d = jnp.einsum(f"n{names.deltas}->n{positions}{groups}{outputs}", d)
    return a.reshape(n, names.positions, b, i), d.reshape(n, names.positions, b, o)


def _whole(
    own: list[Site], shape: tuple[int, ...], captured: list[jax.Array], deltas: list[jax.Array]
) -> jax.Array:
    """Gradients [n, ...] of all sites together, of a few examples at a time.

    A convolution's patches are many times its input, and need not all be there at once.
    """

    def one(pair: tuple[list[jax.Array], list[jax.Array]]) -> jax.Array:
        parts = zip(own, *pair, strict=True)
        each = [algebra.gradients(s, a[None], d[None, None])[0, 0] for s, a, d in parts]
        return sum(each[1:], each[0])

    reads = lambda s, a: a if s.primitive == "gather" else algebra.inputs_of(s, a)
    read = [jax.eval_shape(partial(reads, s), a) for s, a in zip(own, captured, strict=True)]
    entries = math.prod(shape) + sum(x.size for x in (*read, *deltas)) // deltas[0].shape[0]
    most = max(1, budget(deltas[0].dtype) // max(1, entries))
    return some_at_once(one, (captured, deltas), most)
