"""Does a shrunk copy of an NNX module compute what it should? It is run, on random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.coupling import Coupling, shrunk_apply
from jaxprune.coupling.groups import Kept
from jaxprune.coupling.models import source_of
from jaxprune.types import PyTree


def example(leaf: Any) -> Any:
    """An input of a shape and type: normal numbers, zeros and ones for integers."""
    random = np.random.default_rng(math.prod(leaf.shape))
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), leaf.shape)
    if trees.is_inexact(leaf):
        return jnp.asarray(random.normal(size=leaf.shape), leaf.dtype)
    return jnp.asarray(random.integers(0, 2, leaf.shape), leaf.dtype)


def compare(
    models: tuple[Any, Any],
    small: PyTree,
    coupling: Coupling,
    kept: Kept,
    call: Callable[..., Any],
    inputs: tuple[Any, ...],
    suspects: str,
) -> None:
    """Raise unless the shrunk one of the models (dense, shrunk) computes what it should.

    Raises:
      ValueError: it does not, or cannot be run.
    """
    from flax import nnx

    def run(model: Any) -> tuple[Callable[..., Any], Any]:
        graphdef, state = nnx.split(model)
        return lambda state, *inputs: call(nnx.merge(graphdef, state), *inputs), state

    source = source_of(coupling)
    wanted = _shapes(jax.eval_shape(source.apply, source.variables, *inputs))
    try:
        apply, state = run(models[0])
        found: Any = _shapes(jax.eval_shape(apply, state, *inputs))
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    if found != wanted:
        raise ValueError(
            "The model was not changed: to compare, it was called as `model(*inputs)`, which gives "
            f"{found}, and what was coupled gives {wanted}. Say by `call=lambda model, *inputs: "
            "...` how it is called."
        )
    fails = "The model was not changed: with the smaller widths its code "
    advice = (
        f"{suspects} Say by `widths={{type: function}}` what its attributes shall be, or run the "
        "variables that `structure.shrink` returns by `coupling.shrunk_apply`."
    )
    with jax.default_matmul_precision("highest"):
        expected = jax.jit(shrunk_apply(coupling, kept))(small, *inputs)
        try:
            apply, state = run(models[1])
            outputs = jax.jit(apply)(state, *inputs)
        except Exception as error:
            text = f"{type(error).__name__}: {error}".rstrip(". ")
            raise ValueError(f"{fails}fails: {text}. {advice}") from error
    if _shapes(outputs) != wanted:
        raise ValueError(f"{fails}returns {_shapes(outputs)}, and not {wanted}. {advice}")
    for one, two in zip(jax.tree.leaves(expected), jax.tree.leaves(outputs), strict=True):
        if trees.is_inexact(one) and one.size:
            _check_near(np.asarray(one), np.asarray(two), fails, advice)
        elif not bool(jnp.all(one == two)):
            raise ValueError(
                f"{fails}computes something else: {int(jnp.sum(one != two))} of {one.size} outputs "
                f"of dtype {one.dtype} differ. {advice}"
            )


def _check_near(expected: Any, found: Any, fails: str, advice: str) -> None:
    epsilon = float(jnp.finfo(expected.dtype).eps)
    expected, found = (x.astype(np.result_type(x, np.float32)) for x in (expected, found))
    finite = np.isfinite(expected)
    if not finite.any():
        raise ValueError(
            "The model was not changed: on random inputs its outputs are not finite, so that "
            "nothing can be compared. Give `inputs=`, a tuple of what it is called on."
        )
    largest = float(np.abs(expected[finite]).max())
    with np.errstate(invalid="ignore"):
        worst = float(np.abs(np.where(finite, found - expected, 0)).max())
    if not worst <= min(1e3 * epsilon, 0.05) * largest or (np.isfinite(found) != finite).any():
        raise ValueError(
            f"{fails}computes something else: outputs of up to {largest:.3g} differ by up to "
            f"{worst:.3g}. {advice}"
        )


def _shapes(outputs: PyTree) -> Any:
    """What two calls must have in common."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), trees.dtype_of(x)), outputs)
