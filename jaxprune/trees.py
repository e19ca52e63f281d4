"""The only tree arithmetic: names of leaves, masks over them, and counts in integers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.types import Mask, Params, Predicate, Pruned, PyTree

_NOT_PRUNABLE = ("bias", "scale", "embedding", "mean", "var")


def named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """`(name, leaf)` for every leaf, in flattening order; a name is a path, `dense/kernel`.

    The trailing `.value` of NNX variables and of Linen's boxes is dropped; a field called `value`
    that has siblings keeps its name.

    Example:
      >>> named_leaves({"dense": {"kernel": 1.0, "bias": 2.0}})
      [('dense/bias', 2.0), ('dense/kernel', 1.0)]
    """
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    inside = Counter(path[:depth] for path, _ in found for depth in range(len(path)))

    def name(path: tuple[Any, ...]) -> str:
        if path and getattr(path[-1], "name", None) == "value" and inside[path[:-1]] == 1:
            path = path[:-1]
        return jax.tree_util.keystr(path, simple=True, separator="/")

    return [(name(path), leaf) for path, leaf in found]


def paths(tree: PyTree) -> list[str]:
    """The name of every leaf, in flattening order."""
    return [name for name, _ in named_leaves(tree)]


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError unless names tell leaves apart: results by name would lose some."""
    if twice := sorted(name for name, times in Counter(names).items() if times > 1):
        raise ValueError(f"Leaves share the names {twice}. Rename the keys that contain '/'.")


def label(name: str) -> str:
    """A leaf's name for messages; a tree that is one bare array has no name of its own."""
    return f"leaf '{name}'" if name else "the only leaf"


def dtype_of(leaf: Any) -> Any:
    """The dtype of an array, an abstract array, a PRNG key or a Python number."""
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def is_inexact(leaf: Any) -> bool:
    """True for real or complex floating leaves."""
    return jnp.issubdtype(dtype_of(leaf), jnp.inexact)


def is_float(leaf: Any) -> bool:
    """True for real floating leaves: those that derivatives are taken for."""
    return jnp.issubdtype(dtype_of(leaf), jnp.floating)


def score_dtype(leaf: Any) -> Any:
    """float64 for float64 (and complex128) leaves, float32 for every other."""
    return jnp.float64 if dtype_of(leaf) in (np.float64, np.complex128) else jnp.float32


def default_prunable(name: str, leaf: Any) -> bool:
    """Weights, by convention: inexact, rank >= 2, not named bias, scale, embedding, mean or var.

    Example:
      >>> import numpy as np
      >>> default_prunable("dense/kernel", np.ones((3, 2)))
      True
      >>> default_prunable("attention/query/bias", np.ones((3, 2)))
      False
    """
    last = name.rsplit("/", 1)[-1]
    return is_inexact(leaf) and np.ndim(leaf) >= 2 and last not in _NOT_PRUNABLE


def prunable_flags(params: Params, prunable: Predicate) -> list[bool]:
    """`prunable(name, leaf)` for every leaf, in flattening order.

    Raises:
      TypeError: the predicate asks for a leaf that is not floating-point.
      ValueError: it asks for no leaf at all.
    """
    leaves = named_leaves(params)
    flags = [bool(prunable(name, leaf)) for name, leaf in leaves]
    for flag, (name, leaf) in zip(flags, leaves, strict=True):
        if flag and not is_inexact(leaf):
            raise TypeError(
                f"Cannot prune {label(name)}: its dtype is {dtype_of(leaf)}, and only "
                "floating-point leaves have weights to prune. Exclude it in `prunable`."
            )
    if not any(flags):
        raise ValueError(
            f"Nothing to prune: `prunable` is False for every leaf of {paths(params)}. The default "
            "takes floating-point leaves of rank >= 2 not named bias, scale, embedding, mean or "
            "var; pass `prunable=lambda name, leaf: ...` to choose others."
        )
    return flags


def check_like(params: Params, other: PyTree, what: str, *, boolean: bool = False) -> None:
    """Raise unless `other` has the structure and shapes of `params` (and is bool, if asked).

    Raises:
      ValueError: names the first leaf that is missing, extra, or of another shape.
      TypeError: names the first leaf that should be bool and is not; a `Pruned`, not its mask.
    """
    if isinstance(other, Pruned) and not isinstance(params, Pruned):
        raise TypeError(f"The {what} is all that a Pruner returned: pass its `.mask` alone.")
    ours, theirs = named_leaves(params), named_leaves(other)
    same: Any = jax.tree.structure(params)
    if same != jax.tree.structure(other):
        names, others = {n for n, _ in ours}, {n for n, _ in theirs}
        missing, extra = sorted(names - others), sorted(others - names)
        detail = f"{same} against {jax.tree.structure(other)}"
        if missing or extra:
            detail = f"missing from the {what}: {missing or 'none'}; only there: {extra or 'none'}"
        raise ValueError(
            f"The {what} does not have the tree structure of the parameters: {detail}. "
            "Make it from the same parameter tree."
        )
    for (name, leaf), (_, found) in zip(ours, theirs, strict=True):
        if np.shape(leaf) != np.shape(found):
            raise ValueError(
                f"The {what} at {label(name)} has shape {np.shape(found)}, the parameter has "
                f"{np.shape(leaf)}. Make it from the same parameter tree."
            )
        if boolean and dtype_of(found) != np.dtype(bool):
            raise TypeError(
                f"The {what} at {label(name)} has dtype {dtype_of(found)}; a mask is bool, "
                "True = kept. Convert it, for example with `leaf != 0`."
            )


def beside(new: jax.Array, like: Any) -> jax.Array:
    """A computed array, laid on devices as another of its shape is, in jit too.

    Not for constants, which XLA shares: leaves of one shape would all be laid alike.
    """
    if not isinstance(like, jax.Array) or jax.dtypes.issubdtype(like.dtype, jax.dtypes.extended):
        return new
    if not is_traced(new, like):
        return jax.device_put(new, like.sharding) if like.committed else new
    try:
        from jax.experimental.shard_alike import shard_alike
    except ImportError:  # gone from newer JAX, where XLA alone decides
        return new
    return shard_alike(like, new)[1]


def kept_whole(leaf: Any) -> jax.Array:
    """The mask of one leaf that keeps all of it, beside that leaf."""
    if is_traced(leaf) and is_float(leaf):
        return ~((leaf < -1) & (leaf > 1))  # a plain constant would lie whole on every device
    whole = jnp.ones(np.shape(leaf), bool)
    return whole if is_traced(leaf) else beside(whole, leaf)


def full_mask(params: Params) -> Mask:
    """The mask that keeps everything."""
    return jax.tree.map(kept_whole, params)


def apply_mask(params: Params, mask: Mask) -> Params:
    """A tree like `params`, 0 where the mask drops: `where(mask, w, 0)`.

    Integers become 0 as well (`freeze_pruned` trains none); flags and PRNG keys stay.

    Args:
      params: any pytree of arrays (parameters, or an average of them).
      mask: the same structure and shapes, bool, True = kept.

    Raises:
      ValueError: structures or shapes differ. TypeError: the mask is not bool.

    Example:
      >>> import jax.numpy as jnp
      >>> apply_mask([jnp.array([1.0, 2.0])], [jnp.array([True, False])])
      [Array([1., 0.], dtype=float32)]
    """
    check_like(params, mask, "mask", boolean=True)

    def masked(leaf: Any, keep: Any) -> Any:
        if not jnp.issubdtype(dtype_of(leaf), jnp.number):
            return leaf  # PRNG keys and flags have no zero, and are never prunable
        if on_host(leaf) and on_host(keep):
            return from_host(np.where(keep, leaf, np.zeros((), leaf.dtype)), leaf)
        leaf = jnp.asarray(leaf)
        return jnp.where(keep, leaf, jnp.zeros((), leaf.dtype))

    return jax.tree.map(masked, params, mask)


def on_host(leaf: Any) -> bool:
    """True for a concrete array in the memory of the only kind of device there is, one CPU.

    NumPy works on such an array in place, where XLA would compile a program for every shape.
    """
    if not isinstance(leaf, jax.Array) or is_traced(leaf):
        return False
    plain = not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)
    return plain and leaf.devices() == {jax.devices("cpu")[0]} == {jax.devices()[0]}


def from_host(array: Any, like: Any) -> jax.Array:
    """A NumPy array as a JAX array, where another one is (on the default device if none is)."""
    committed = isinstance(like, jax.Array) and like.committed
    return jax.device_put(array, like.sharding if committed else None)  # compiles nothing


def is_traced(*trees: PyTree) -> bool:
    """True inside jit, vmap or grad: values cannot be looked at, so checks on them cannot raise."""
    return any(isinstance(x, jax.core.Tracer) for tree in trees for x in jax.tree.leaves(tree))


def decimals(sparsity: Any) -> Any:
    """A float32 in [0, 1] as a whole number of 10**-7: what it means to the seventh decimal.

    Above a half the product alone would round the last decimal away; the difference from 3/4 is
    exact. NumPy and XLA agree to the last bit.
    """
    shift = np.float32(0.75) * (sparsity >= np.float32(0.5))
    return ((sparsity - shift) * np.float32(10**7)).round() + shift * np.float32(10**7)


def check_sparsity(sparsity: Any, what: str = "sparsity") -> Any:
    """A sparsity as it should be: a number in [0, 1); a traced one cannot be looked at.

    An array of fewer than 64 bits is read to seven decimals, which is what float32 tells apart:
    float32's 0.9 means 0.9, and not 0.89999998.

    Raises:
      ValueError: outside [0, 1), or NaN. TypeError: not a number.
    """
    if is_traced(sparsity):
        return sparsity
    try:
        if isinstance(sparsity, str | bytes | bool):
            raise TypeError
        value = float(sparsity)
        if getattr(sparsity, "dtype", np.dtype(float)).itemsize < 8:
            value = float(decimals(np.float32(value))) / 10**7
    except (TypeError, ValueError):
        raise TypeError(
            f"The {what} is the fraction to prune, a number in [0, 1); got {sparsity!r}."
        ) from None
    if not 0 <= value < 1:  # False for NaN too
        raise ValueError(
            f"The {what} is the fraction to prune and must lie in [0, 1), got {value}. "
            "For 90 % pruned pass 0.9."
        )
    return value


def count_dtype(n: int) -> Any:
    """An integer type that can count to n: a float32 count is off by 2 at 60 million.

    Raises:
      ValueError: n >= 2**31 without x64, where JAX has no integer wide enough.
    """
    if n < 2**31:
        return jnp.int32
    if jax.config.read("jax_enable_x64"):
        return jnp.int64
    raise ValueError(
        f"Cannot count {n} entries in 32 bits. Enable 64-bit integers with "
        "`jax.config.update('jax_enable_x64', True)`, or prune per layer."
    )


def totals(flags: Sequence[jax.Array], axes: tuple[int, ...]) -> list[jax.Array]:
    """Several boolean arrays counted over `axes` in ONE pass; reduced axes stay, with size 1."""
    if len(flags) == 1:  # XLA on CPU vectorises a reduction of two arrays, and not of one: 15x
        return list(lax.optimization_barrier(tuple(totals([*flags, *flags], axes))))[:1]
    shape = np.shape(flags[0])
    dtype = count_dtype(math.prod(shape[a] for a in axes))
    kept_dims = tuple(1 if a in axes else d for a, d in enumerate(shape))
    operands = tuple(f.astype(dtype) for f in flags)
    # Behind a barrier, or XLA would evaluate counts of constants while it compiles, for minutes.
    zero = lax.optimization_barrier((jnp.zeros((), dtype),) * len(flags))
    add = lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True))
    return [t.reshape(kept_dims) for t in lax.reduce(operands, zero, add, axes)]


def total(flags: jax.Array) -> jax.Array:
    """How many entries of one boolean array are True, an integer scalar."""
    return totals([flags], tuple(range(np.ndim(flags))))[0].reshape(())


def count(tree: PyTree) -> int:
    """Number of entries, kept or not."""
    return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(tree))


def keep(mask: Mask) -> Any:
    """Number of entries the mask keeps, an exact integer (an array inside jit)."""
    if not is_traced(mask):
        return sum(_kept(m) for m in jax.tree.leaves(mask))
    dtype = count_dtype(count(mask))
    return sum((total(m).astype(dtype) for m in jax.tree.leaves(mask)), jnp.zeros((), dtype))


def _kept(mask: Any) -> int:
    whole = not isinstance(mask, jax.Array) or mask.is_fully_replicated  # else each counts its own
    return int(np.count_nonzero(np.asarray(mask)) if whole else jax.jit(total)(mask))


def drop(mask: Mask) -> Any:
    """Number of entries the mask prunes."""
    return count(mask) - keep(mask)


def sparsity(mask: Mask) -> Any:
    """The fraction of ALL entries pruned (`report` also gives it over the prunable ones)."""
    return drop(mask) / max(count(mask), 1)


def prunable_counts(mask: Mask, flags: list[bool]) -> dict[str, Any]:
    """What every Pruner counts over the flagged leaves: entries kept, entries, the share pruned."""
    chosen = select_leaves(mask, flags)
    entries, kept = count(chosen), keep(chosen)
    return {"kept": kept, "prunable": entries, "sparsity": 1 - kept / max(entries, 1)}


def select_leaves(tree: PyTree, flags: list[bool]) -> list[Any]:
    """The flagged leaves, in flattening order."""
    return [leaf for leaf, flag in zip(jax.tree.leaves(tree), flags, strict=True) if flag]


def replace_leaves(
    tree: PyTree, flags: list[bool], new: list[Any], otherwise: Callable[[Any], Any] = lambda x: x
) -> PyTree:
    """`tree` with the flagged leaves replaced in order, and the others mapped by `otherwise`."""
    leaves, structure = jax.tree.flatten(tree)
    pairs, values = zip(leaves, flags, strict=True), iter(new)
    return jax.tree.unflatten(structure, (next(values) if f else otherwise(x) for x, f in pairs))
