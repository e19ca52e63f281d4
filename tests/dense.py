"""The slow truth: whole Jacobians and Hessians in float64, by `jax.jacfwd` and `jax.jacrev`."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.problems import PROBLEMS


class Dense(NamedTuple):
    """n examples, p parameters in flattening order (float leaves only), k outputs; all float64.

    Attributes:
      weights: [p].
      gradients: [n, p], of each example's loss.
      hessians: [n, p, p], of each example's loss.
      jacobians: [n, k, p], of each example's outputs.
      output_hessians: [n, k, k], of each example's loss in its outputs.
      names: [p], the name of the leaf that each parameter is of.
    """

    weights: np.ndarray
    gradients: np.ndarray
    hessians: np.ndarray
    jacobians: np.ndarray
    output_hessians: np.ndarray
    names: np.ndarray

    @property
    def gauss_newton(self) -> np.ndarray:
        """[n, p], the diagonals of `J' H J`."""
        return np.einsum("nkp,nkl,nlp->np", self.jacobians, self.output_hessians, self.jacobians)

    @property
    def diagonals(self) -> np.ndarray:
        """[n, p], the diagonals of the Hessians."""
        return np.einsum("npp->np", self.hessians)


def is_float(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating)


def float_leaves(params: Any, tree: Any = None) -> list[Any]:
    """The leaves of `tree` (default: `params`) at which `params` has floating-point ones."""
    pairs = zip(
        jax.tree.leaves(params), jax.tree.leaves(params if tree is None else tree), strict=True
    )
    return [leaf for ours, leaf in pairs if is_float(ours)]


def flat(params: Any, tree: Any = None) -> np.ndarray:
    """Those leaves as one float64 vector."""
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in float_leaves(params, tree)])


def _names(params: Any) -> np.ndarray:
    pairs = jax.tree_util.tree_flatten_with_path(params)[0]
    text = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return np.concatenate([[text(p)] * np.size(x) for p, x in pairs if is_float(x)])


@functools.cache
def dense(name: str) -> Dense:
    """The truth about a problem of the table."""
    with jax.enable_x64(True):
        problem = PROBLEMS[name](jnp.float64)
        leaves, structure = jax.tree.flatten(problem.params)
        inputs, targets = problem.batch

        def merged(vector: Any) -> Any:
            new, start = [], 0
            for leaf in leaves:
                if is_float(leaf):
                    new.append(vector[start : start + leaf.size].reshape(leaf.shape))
                    start += leaf.size
                else:
                    new.append(leaf)
            return jax.tree.unflatten(structure, new)

        def losses(vector: Any) -> Any:
            return problem.loss(problem.apply(merged(vector), inputs), targets)

        def outputs(vector: Any) -> Any:
            parts = jax.tree.leaves(problem.apply(merged(vector), inputs))
            return jnp.concatenate([p.reshape(p.shape[0], -1) for p in parts], axis=1)

        shapes = jax.eval_shape(problem.apply, problem.params, inputs)

        def of_outputs(row: Any, target: Any) -> Any:
            parts, start = [], 0
            for shape in jax.tree.leaves(shapes):
                size = shape.size // shape.shape[0]
                parts.append(row[start : start + size].reshape(1, *shape.shape[1:]))
                start += size
            one = jax.tree.unflatten(jax.tree.structure(shapes), parts)
            return problem.loss(one, target[None])[0]

        @jax.jit
        def everything(w: Any) -> Any:
            return (
                jax.jacrev(losses)(w),
                jax.jacfwd(jax.jacrev(losses))(w),
                jax.jacrev(outputs)(w),
                jax.vmap(jax.hessian(of_outputs))(outputs(w), targets),
            )

        w = flat(problem.params)
        return Dense(w, *(np.asarray(x) for x in everything(w)), _names(problem.params))
