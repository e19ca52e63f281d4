"""Second derivatives along one parameter after another: slow, and right for any model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.types import Batch


def leaf_diagonal(
    losses: Any, leaves: list[jax.Array], i: int, merge: Any, batch: Batch, chunk: int
) -> tuple[jax.Array, jax.Array | None]:
    """Sums over examples of one leaf's Hessian diagonal and of its square, parameter by parameter.

    `h_n,ii = d^2 loss_n(w + t e_i) / dt^2` for all n at once, by forward over forward
    differentiation; where the model has no forward derivative (a `custom_vjp`) the first alone,
    forward over reverse, and None.
    """
    leaf = leaves[i]
    if not leaf.size:
        return leaf, leaf

    def along(index: jax.Array, t: jax.Array) -> jax.Array:
        moved = leaf.ravel().at[index].add(t).reshape(leaf.shape)
        return losses(merge([*leaves[:i], moved, *leaves[i + 1 :]]), batch)

    zero, one = jnp.zeros((), leaf.dtype), jnp.ones((), leaf.dtype)

    def per_example(index: jax.Array) -> jax.Array:
        slope = lambda t: jax.jvp(lambda u: along(index, u), (t,), (one,))[1]
        return jax.jvp(slope, (zero,), (one,))[1]

    def sum_only(index: jax.Array) -> jax.Array:
        slope = jax.grad(lambda t: jnp.sum(along(index, t)))
        return jax.jvp(slope, (zero,), (one,))[1]

    indices = jnp.arange(leaf.size)
    run = lambda f: jax.lax.map(f, indices, batch_size=min(chunk, leaf.size))
    if not _has_forward(per_example):
        return run(sum_only).reshape(leaf.shape).astype(leaf.dtype), None

    def moments(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        each = per_example(index).astype(leaf.dtype)
        return jnp.sum(each), jnp.sum(each * each)

    first, second = run(moments)
    return first.reshape(leaf.shape), second.reshape(leaf.shape)


def _has_forward(function: Any) -> bool:
    try:
        jax.eval_shape(function, jnp.zeros((), jnp.int32))
    except (NotImplementedError, TypeError) as error:
        # A custom_vjp's forward derivative is a stub, `custom_lin`, that has none of its own.
        if not any(word in str(error) for word in ("custom_vjp", "custom_lin")):
            raise
        return False
    return True
