"""From a rule for one leaf to a quantizer of trees: which leaves, checks, masks."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.quantize.stored import (
    Plain,
    Quantized,
    Quantizer,
    Stored,
    in_jax,
    value_of,
    zeroed,
)
from jaxprune.types import Mask, Params, Predicate

Encode = Callable[[jax.Array, Any, Any], Stored]
"""`(leaf, kept or None, settings) -> Stored`; a leaf's pruned entries are 0 already."""


def by_leaf(encode: Encode, settings: Hashable, quantizable: Predicate) -> Quantizer:
    """The quantizer that encodes every quantizable leaf and stores the others as they are.

    Args:
      encode: the rule, a function of a module: it is compiled once for every shape and settings,
        however often its quantizer is made.
      settings: its last argument.
      quantizable: which leaves.

    Returns:
      A `Quantizer`. Outside jit it raises ValueError where a quantizable leaf has a NaN or an
      infinity, naming it; TypeError where one is not real floating-point, or float64 without x64.
    """

    def quantizer(params: Params, /, mask: Mask | None = None) -> Quantized:
        flags = _flags(params, quantizable)
        params, kept = masked(params, mask)
        done = []
        for flag, keep, (name, leaf) in zip(flags, kept, trees.named_leaves(params), strict=True):
            if flag:
                check_finite(name, leaf)
                done.append(_compiled(encode, settings, jnp.asarray(leaf), keep))
            else:
                done.append((as_it_is(leaf, keep), leaf))
        return Quantized(
            jax.tree.unflatten(jax.tree.structure(params), [value for _, value in done]),
            tuple(stored for stored, _ in done),
        )

    return quantizer


def as_it_is(leaf: Any, kept: Any) -> Plain:
    """A leaf that is stored as it is."""
    return Plain(leaf, kept, trees.dtype_of(leaf))


def masked(params: Params, mask: Mask | None) -> tuple[Params, list[Any]]:
    """The parameters, 0 where pruned, and each leaf's mask; None where there is no mask."""
    if mask is None:
        return params, [None] * len(jax.tree.leaves(params))
    kept, leaves = jax.tree.leaves(mask), jax.tree.leaves(params)
    found, structure = jax.tree.flatten(trees.apply_mask(params, mask))
    for i, (leaf, keep) in enumerate(zip(leaves, kept, strict=True)):
        if not in_jax(trees.dtype_of(leaf)) and not trees.is_traced(keep):
            found[i] = zeroed(leaf, keep)
    return jax.tree.unflatten(structure, found), kept


def check_bits(bits: int, least: int, what: str) -> int:
    """`bits` as a Python integer from `least` to 16.

    Raises:
      ValueError: it is not.
    """
    if isinstance(bits, bool) or not isinstance(bits, int | np.integer) or not least <= bits <= 16:
        raise ValueError(
            f"{what} takes {least} to 16 bits, a whole number; got {bits!r}. For 16-bit floats "
            "use `half_precision`, for the floats as they are `unquantized`."
        )
    return int(bits)


def check_finite(name: str, leaf: Any) -> None:
    """Raise where a concrete leaf has a NaN or an infinity: no range would hold it.

    Raises:
      ValueError: names the leaf. TypeError: it is of a type that JAX does not have now, float64.
    """
    if not in_jax(trees.dtype_of(leaf)):
        raise TypeError(
            f"Cannot quantize {trees.label(name)}: its dtype is {trees.dtype_of(leaf)}, which JAX "
            "has only with `jax.config.update('jax_enable_x64', True)`. Enable that, convert the "
            "leaf to float32, or exclude it in `quantizable`."
        )
    if trees.is_traced(leaf) or bool(jnp.isfinite(leaf).all()):
        return
    bad = int(np.size(leaf)) - int(jnp.isfinite(leaf).sum())
    raise ValueError(
        f"Cannot quantize {trees.label(name)}: {bad} of its {np.size(leaf)} entries are NaN or "
        "infinite. Look at the training run, or exclude the leaf in `quantizable`."
    )


@partial(jax.jit, static_argnums=(0, 1))
def _compiled(encode: Encode, settings: Any, leaf: jax.Array, kept: Any) -> Any:
    stored = encode(leaf, kept, settings)
    return stored, trees.beside(value_of(stored), leaf)


def _flags(params: Params, quantizable: Predicate) -> list[bool]:
    leaves = trees.named_leaves(params)
    flags = [bool(quantizable(name, leaf)) for name, leaf in leaves]
    for flag, (name, leaf) in zip(flags, leaves, strict=True):
        if flag and not trees.is_float(leaf):
            raise TypeError(
                f"Cannot quantize {trees.label(name)}: its dtype is {trees.dtype_of(leaf)}, and "
                "only real floating-point leaves have a range. Exclude it in `quantizable`; the "
                "parts of a complex leaf can be leaves of their own."
            )
    if not any(flags):
        raise ValueError(
            f"Nothing to quantize: `quantizable` is False for every leaf of {trees.paths(params)}. "
            "The default takes what is prunable by default: floating-point leaves of rank >= 2 "
            "not named bias, scale, embedding, mean or var. Pass `quantizable=lambda name, leaf: "
            "...` to choose others, or store the floats with `unquantized`."
        )
    return flags
