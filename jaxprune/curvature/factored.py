"""The empirical Fisher as the layers' factors: n x d gradients that are never written out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import objective, trees
from jaxprune.curvature import fisher_blocks as by_block
from jaxprune.curvature.examples import (
    check_microbatch,
    examples_apart,
    widened,
    widened_inputs,
)
from jaxprune.curvature.factors import Factor, Whole, of_nothing, of_sites, some_at_once
from jaxprune.curvature.fisher_blocks import Blocks
from jaxprune.jaxpr.pullback import pull_back
from jaxprune.types import Apply, Batch, Loss, Params, PyTree

_AT_ONCE = 16


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("factors",),
    meta_fields=("examples", "shapes", "structure"),
)
@dataclass(frozen=True)
class FactoredFisher:
    """G, the per-example gradients [n, d] of a loss, in factors; and `F = G'G / n`.

    A pytree: it goes into and out of `jax.jit`. Vectors v are trees like the parameters, and so are
    results; leaves that are not real floating-point are not read, and give zeros. All is computed
    in float32 (float64 for float64 leaves).

    Attributes:
      factors: one for each real floating leaf, in flattening order.
      examples: n.
      shapes, structure: of the parameters, flattened.
    """

    factors: tuple[Factor, ...]
    examples: int
    shapes: tuple[jax.ShapeDtypeStruct, ...]
    structure: Any

    def times(self, v: PyTree) -> jax.Array:
        """`G v`, [n].

        Raises:
          ValueError: v has not the structure and shapes of the parameters.
        """
        return _times(self.factors, self._vectors(v))

    def transposed(self, q: Any) -> PyTree:
        """`G' q`, like the parameters.

        Raises:
          ValueError: q is not [n].
        """
        if np.shape(q) != (self.examples,):
            raise ValueError(
                f"`q` is one weight per example, shape ({self.examples},), got {np.shape(q)}."
            )
        return self._tree(_transposed(self.factors, jnp.asarray(q)))

    def gram(self) -> jax.Array:
        """`G G'`, [n, n]: inner products of the examples' gradients."""
        return sum(_grams(self.factors), jnp.zeros((self.examples,) * 2, jnp.float32))

    def leaf_grams(self) -> list[jax.Array]:
        """A Gram matrix [n, n] for every leaf, in flattening order; their sum is `gram()`."""
        zero = jnp.zeros((self.examples,) * 2, jnp.float32)
        grams = iter(_grams(self.factors))
        return [next(grams) if flag else zero for flag in self._flags()]

    def columns(self, leaf_index: int, flat_indices: Any) -> jax.Array:
        """`G[:, those]`, [n, m]: what every example's gradient is at some entries of one leaf.

        Args:
          leaf_index: which of the parameters' leaves, in flattening order.
          flat_indices: [m] integers, into that leaf flattened.

        Raises:
          ValueError: there is no such leaf, or no such entry (checked outside jit).
        """
        if not 0 <= leaf_index < len(self.shapes):
            raise ValueError(f"There are {len(self.shapes)} leaves, no leaf {leaf_index}.")
        flat = jnp.asarray(flat_indices)
        size = int(np.prod(self.shapes[leaf_index].shape))
        if not trees.is_traced(flat) and np.any((flat < 0) | (flat >= size)):
            raise ValueError(f"Leaf {leaf_index} has {size} entries; indices go from 0 below that.")
        flags = self._flags()
        if not flags[leaf_index]:
            return jnp.zeros((self.examples, *flat.shape), jnp.float32)
        return _columns(self.factors[sum(flags[:leaf_index])], flat)

    def diagonal(self) -> PyTree:
        """Mean over examples of the squared gradient: what `fisher_diagonal` measures."""
        return self._tree([x / self.examples for x in _squares(self.factors)])

    def fisher_vp(self, v: PyTree, damping: Any = 0.0, blocks: Blocks = None) -> PyTree:
        """`(G'G / n + damping I) v`.

        Args:
          v: like the parameters.
          damping: a number >= 0; a traced one is not checked.
          blocks: None; "leaf" to keep only the diagonal blocks of single leaves; or B, those of B
            consecutive entries of each flattened leaf, the last of which may be shorter.

        Raises:
          ValueError: another structure or shape of v, damping < 0, other `blocks`.
        """
        _check_damping(damping, 0)
        by_block.check_blocks(blocks)
        vectors, options = self._vectors(v), {"n": self.examples, "blocks": blocks}
        return self._tree(by_block.multiply(self.factors, vectors, damping, **options))

    def inverse_vp(self, v: PyTree, damping: Any, blocks: Blocks = None) -> PyTree:
        """`(G'G / n + damping I)^-1 v`, by a Cholesky factorisation of n x n.

        `(v - G' (n damping I + G G')^-1 G v) / damping` (Woodbury). In float32 the relative
        error is about 1e-7 times the largest eigenvalue of F over the damping, and so is that of
        `inverse_diagonal`: a damping near 1e-7 times that eigenvalue leaves no digit, or NaN.

        Args:
          v: like the parameters.
          damping: a number > 0; a traced one is not checked.
          blocks: as in `fisher_vp`, of which this is the inverse; blocks of fewer than n entries
            are solved themselves.

        Raises:
          ValueError: another structure or shape of v, damping <= 0, other `blocks`.
        """
        _check_damping(damping, np.nextafter(0, 1))
        by_block.check_blocks(blocks)
        vectors, options = self._vectors(v), {"n": self.examples, "blocks": blocks}
        return self._tree(by_block.solve(self.factors, vectors, damping, **options))

    def inverse_diagonal(self, damping: Any, blocks: Blocks = None) -> PyTree:
        """The diagonal of `(G'G / n + damping I)^-1`, like the parameters; 0 for leaves not read.

        Args:
          damping: a number > 0; a traced one is not checked.
          blocks: as in `fisher_vp`, of which this is the inverse's diagonal.

        Raises:
          ValueError: damping <= 0, other `blocks`.
        """
        _check_damping(damping, np.nextafter(0, 1))
        by_block.check_blocks(blocks)
        like = [jnp.zeros(s.shape, trees.score_dtype(s)) for s in self.shapes if trees.is_float(s)]
        options = {"n": self.examples, "blocks": blocks}
        return self._tree(by_block.inverse_diagonal(self.factors, like, damping, **options))

    def _flags(self) -> list[bool]:
        return [trees.is_float(shape) for shape in self.shapes]

    def _vectors(self, v: PyTree) -> list[jax.Array]:
        like = jax.tree.unflatten(self.structure, self.shapes)
        trees.check_like(like, v, "vector")
        pairs = zip(jax.tree.leaves(v), self.shapes, strict=True)
        return [jnp.asarray(x, trees.score_dtype(s)) for x, s in pairs if trees.is_float(s)]

    def _tree(self, found: Sequence[jax.Array]) -> PyTree:
        like = jax.tree.unflatten(self.structure, self.shapes)
        dtypes = [trees.score_dtype(s) for s in self.shapes if trees.is_float(s)]
        cast = [x.astype(dtype) for x, dtype in zip(found, dtypes, strict=True)]
        return objective.filled(like, self._flags(), cast)


def factored_fisher(
    apply: Apply, loss: Loss, *, microbatch: int | None = None
) -> Callable[[Params, Batch], FactoredFisher]:
    """The empirical Fisher `F = mean_n g_n g_n'`, held as what each layer reads and is sent back.

    The gradient of a dense layer for one example is inputs times deltas, so n of them are n (i + o)
    numbers and not n i o, and inner products of gradients are products of inner products. A leaf
    is held in factors where these are fewer than its gradients: dense layers and convolutions at
    few enough positions (time steps, tokens, pixels). Biases, lookups, and parameters that
    differently laid out layers share are held as gradients.

    Args:
      apply: `(params, inputs) -> outputs`.
      loss: `(outputs, targets) -> [N]`.
      microbatch: examples differentiated at once; by default all. What is returned is of all N.

    Returns:
      `(params, batch) -> FactoredFisher`. Where examples depend on each other (training-mode
      BatchNorm) example n's gradient is the pull-back of its own loss in its own outputs, as in
      `fisher_diagonal`; every leaf is then held as gradients, and the batch stays whole.

    Raises:
      ValueError: a missing or empty batch, a loss of the wrong shape, `microbatch` < 1.

    References:
      Singh and Alistarh 2020, WoodFisher; Frantar et al. 2021, M-FAC; Goodfellow 2015, Efficient
      Per-Example Gradient Computations; Woodbury 1950.

    Example:
      >>> fisher = factored_fisher(lambda w, x: x @ w, lambda y, t: (y - t) ** 2)
      >>> f = fisher(jnp.array([1.0, 0.0]), (jnp.array([[1.0, 1.0], [2.0, 0.0]]), jnp.zeros(2)))
      >>> f.gram()  # of the gradients (2, 2) and (8, 0)
      Array([[ 8., 16.],
             [16., 64.]], dtype=float32)
      >>> f.inverse_vp(f.fisher_vp(jnp.array([3.0, 5.0]), damping=1.0), damping=1.0).round(4)
      Array([3., 5.], dtype=float32)
    """
    check_microbatch(microbatch)
    apart = examples_apart(apply, loss)
    part = jax.jit(partial(_factors, apply, loss))
    dependent = jax.jit(partial(_gradients, apply, loss))
    join = jax.jit(lambda parts: jax.tree.map(lambda *x: jnp.concatenate(x), *parts))

    def measure(params: Params, batch: Batch) -> FactoredFisher:
        inputs, targets = objective.split_batch(batch)
        inputs = widened_inputs(params, inputs)
        batch = (inputs, targets)
        n = objective.batch_size(batch)
        batch = jax.tree.map(jnp.asarray, batch)
        leaves, structure = jax.tree.flatten(params)
        shapes = [jax.ShapeDtypeStruct(np.shape(x), trees.dtype_of(x)) for x in leaves]
        if not any(trees.is_float(shape) for shape in shapes):
            raise ValueError("No leaf of the parameters is real floating-point: no gradients.")
        size = min(microbatch or n, n)
        if not apart(params, batch):
            factors = dependent(params, batch)
        elif size == n:
            factors = part(params, batch)
        else:
            cut = lambda i: jax.tree.map(lambda x: x[i : i + size], batch)
            factors = join([part(params, cut(i)) for i in range(0, n, size)])
        return FactoredFisher(factors, n, tuple(shapes), structure)

    return measure


def _factors(apply: Apply, loss: Loss, params: Params, batch: Batch) -> tuple[Factor, ...]:
    """Of independent examples; every array in them has examples in front."""
    inputs, targets = batch
    leaves, merge, _ = widened(params)
    n = objective.batch_size(batch)
    with jax.default_matmul_precision("highest"):
        found = pull_back(apply, merge(leaves), inputs)
        slopes = jax.tree.map(
            lambda s: s[None], objective.output_slopes(loss, found.outputs, targets)
        )
        deltas = jax.tree.map(lambda d: d[0], found.pull(slopes))
        factors: list[Factor] = []
        for i, leaf in enumerate(found.leaves):
            if not trees.is_float(leaf):
                continue
            dtype = leaf.dtype
            wide = lambda x, dtype=dtype: x.astype(dtype) if trees.is_float(x) else x
            own = [site for site in found.tapped.sites if site.leaf == i]
            if i in found.tapped.direct:
                factors.append(Whole(wide(deltas.leaves[i])))
            elif own:
                captured = [wide(found.captures[site.key]) for site in own]
                arrived = [wide(deltas.sites[site.key]) for site in own]
                factors.append(of_sites(own, leaf.shape, captured, arrived))
            else:
                factors.append(of_nothing(n, leaf))
    return tuple(factors)


def _gradients(apply: Apply, loss: Loss, params: Params, batch: Batch) -> tuple[Factor, ...]:
    """Of examples that depend on each other: one pull-back an example."""
    inputs, targets = batch
    leaves, merge, _ = widened(params)
    with jax.default_matmul_precision("highest"):
        outputs, pull = jax.vjp(lambda some: apply(merge(some), inputs), leaves)
        slopes = objective.output_slopes(loss, outputs, targets)

        def gradient(n: jax.Array) -> list[jax.Array]:
            return pull(jax.tree.map(lambda s: jnp.zeros_like(s).at[n].set(s[n]), slopes))[0]

        found = some_at_once(gradient, jnp.arange(objective.batch_size(batch)), _AT_ONCE)
    return tuple(Whole(x) for x in found)


def _check_damping(damping: Any, least: float) -> None:
    """Raise unless it is a number >= least; a traced one cannot be looked at."""
    if np.shape(damping) != ():
        raise ValueError(f"`damping` is one number, got shape {np.shape(damping)}.")
    if not trees.is_traced(damping) and not least <= float(damping) < np.inf:
        bound = ">= 0" if least == 0 else "> 0"
        raise ValueError(f"`damping` is a number {bound}, got {damping}.")


def _high(function: Callable) -> Callable:
    """Compiled, in the highest precision of products."""

    def run(*args: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*args)

    return jax.jit(run)


_times = _high(by_block.through)
_transposed = _high(lambda factors, q: [f.transposed(q) for f in factors])
_grams = _high(lambda factors: [f.gram() for f in factors])
_squares = _high(lambda factors: [f.squares() for f in factors])
_columns = _high(lambda factor, flat: factor.columns(flat))
