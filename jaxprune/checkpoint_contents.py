"""What a checkpoint says of its leaves: names, shapes, types, hashes, and what damage is.

No files here: `checkpoint` writes them and reads them.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.quantize.records import key_impl
from jaxprune.types import PyTree

NUMBERS = (bool, int, float, complex)
_KINDS = (jnp.bool_, jnp.number)
UNFINISHED = ".orbax-checkpoint-tmp"  # Orbax takes it off the name when all is written
_NOT_STORED = ("uint2", "uint4")  # tensorstore, which writes for Orbax, has no such types
_URL = re.compile(r"[a-zA-Z][\w+.-]+:/")  # `Path` takes one of two slashes away
Described = dict[str, list[Any]]
"""Shape, dtype and SHA-256 by leaf; no hash (None, or left out) where it is not known."""


class Damaged(ValueError):
    """A checkpoint whose files are missing, cut short or altered."""


@contextlib.contextmanager
def damage(directory: Any, step: int | None = None) -> Iterator[None]:
    """What fails inside, failed because files of a checkpoint are missing or were changed.

    Args:
      directory: where it lies.
      step: of a checkpoint known to have been complete; None for any other.

    Raises:
      Damaged: in place of whatever was raised.
    """
    try:
        yield
    except (ImportError, MemoryError, PermissionError):
        raise
    except Exception as error:
        told = str(error).split(" [tensorstore_spec")[0].split(" [source locations")[0]
        told = f"{type(error).__name__}: {' '.join(told.split())[:500]}"
        raise Damaged(
            f"The checkpoint in {directory} cannot be read: files are missing or damaged ({told}). "
            "Try another step, or another copy."
            if step is None
            else f"The checkpoint of step {step} in {directory} was complete and has been damaged: "
            f"{told}. Restore another step, or another copy."
        ) from error


def by_name(tree: PyTree) -> dict[str, Any]:
    """Leaves by name, in flattening order; should two names be the same, the later gets a `'`."""
    found: dict[str, Any] = {}
    for name, leaf in trees.named_leaves(tree):
        while name in found:
            name += "'"
        found[name] = leaf
    return found


def folder(directory: Any) -> Path:
    """A directory as a path.

    Raises:
      ValueError: it is a URL; `Path` would make a folder on this machine of it.
    """
    if _URL.match(str(directory)):
        raise ValueError(
            f"Checkpoints live in folders of this machine; got the URL {str(directory)!r}. Mount "
            "the bucket, or save to a folder and copy that."
        )
    return Path(directory)


def check_step(directory: Any, known: list[int], step: int, keep: int | None) -> None:
    """Raise unless a step can be saved beside those that are known, rising.

    Raises:
      ValueError: see `checkpoint.save`.
    """
    if step < 0:
        raise ValueError(f"`step` is a step number, an integer >= 0; got {step}.")
    if keep is not None and keep < 1:
        raise ValueError(f"`keep` counts checkpoints to keep, an integer >= 1; got {keep}.")
    if step in known:
        raise ValueError(f"{directory} has a checkpoint of step {step} already.")
    if keep is not None and known and step < known[-1]:
        raise ValueError(
            f"{directory} has a checkpoint of step {known[-1]}, later than {step}: `keep` would "
            "delete the wrong one. Save elsewhere, or without `keep`."
        )


def is_key(leaf: Any) -> bool:
    """True for arrays of PRNG keys."""
    return jax.dtypes.issubdtype(trees.dtype_of(leaf), jax.dtypes.prng_key)


def as_data(leaf: Any) -> Any:
    """PRNG keys travel as their integers, Python numbers as arrays; the rest as it is."""
    if isinstance(leaf, NUMBERS):
        return np.asarray(leaf)
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def sha256(data: Any) -> str | None:
    """A hash of an array's bytes; None where this process does not hold it whole."""
    if not getattr(data, "is_fully_addressable", True):
        return None
    flat = np.ascontiguousarray(data).reshape(-1)  # a view of what is contiguous: no copy
    return hashlib.sha256(flat.view(np.uint8).data).hexdigest()


def check_leaf(name: str, leaf: Any) -> None:
    """Raise unless a leaf can be saved.

    Raises:
      ValueError: it was donated, or is a Python integer of more than 64 bits.
      TypeError: it is neither array nor number, or of a type that cannot be stored.
    """
    if isinstance(leaf, int) and not -(2**63) <= leaf < 2**63:
        raise ValueError(
            f"Cannot save {trees.label(name)}: it is {leaf}, and integers are stored in 64 bits."
        )
    kind, arrays = type(leaf).__name__, (jax.Array, np.ndarray, np.generic)
    dtype = trees.dtype_of(leaf) if isinstance(leaf, (*arrays, *NUMBERS)) else None
    if dtype is None or not (is_key(leaf) or any(jnp.issubdtype(dtype, t) for t in _KINDS)):
        raise TypeError(
            f"Cannot save {trees.label(name)}: it is a {kind}{f' of {dtype}' if dtype else ''}, "
            "and a checkpoint holds arrays and numbers. Take it out of the tree."
        )
    if str(dtype) in _NOT_STORED:
        raise TypeError(
            f"Cannot save {trees.label(name)}: Orbax cannot store {dtype}. Save it as uint8."
        )
    if isinstance(leaf, jax.Array) and leaf.is_deleted():
        raise ValueError(
            f"Cannot save {trees.label(name)}: its array was donated to a jitted function and is "
            "gone. Save what that function returned."
        )


def described(leaves: Mapping[str, Any], data: Mapping[str, Any] | None = None) -> Described:
    """What a checkpoint is checked against; with hashes of the data, by name, that are saved."""
    found: Described = {
        n: [list(np.shape(leaf)), str(trees.dtype_of(leaf))] for n, leaf in leaves.items()
    }
    for name, array in (data or {}).items():
        found[name].append(sha256(array))
    return found


def check_described(saved: Described, wanted: Described, directory: Any) -> None:
    """Raise unless shapes and dtypes are those of the tree to restore into.

    Raises:
      ValueError: the first leaf that differs is named.
    """
    for name in [*wanted, *saved]:
        if name not in saved:
            problem = "is not in the checkpoint"
        elif name not in wanted:
            problem = "is in the checkpoint but not in the tree to restore into"
        elif saved[name][:2] != wanted[name][:2]:
            (shape, dtype), (shape_now, dtype_now) = saved[name][:2], wanted[name][:2]
            problem = (
                f"was saved as {dtype}{list(shape)}, the tree to restore into has "
                f"{dtype_now}{list(shape_now)}"
            )
        else:
            continue
        raise ValueError(
            f"Cannot restore from {directory}: {trees.label(name)} {problem}. Build the model, "
            "mask and optimizer as they were when it was saved."
        )


def check_bytes(saved: Described, data: Mapping[str, Any]) -> None:
    """Raise unless what was read has the bytes that were saved.

    Raises:
      ValueError: the first leaf that has not is named.
    """
    for name, array in data.items():
        if not _has_bytes(saved[name], array):
            raise ValueError(
                f"the arrays are not those that were saved: {trees.label(name)} has other bytes"
            )


def _has_bytes(about: list[Any], array: Any) -> bool:
    expected = (*about, None)[2]  # checkpoints of version 0.1 know no hashes
    return expected is None or sha256(array) in (None, expected)


def other_scalars(saved: Described, data: Mapping[str, Any]) -> set[str]:
    """Scalars with other bytes than were saved, by name.

    A Python number is stored in 64 bits, an array of the same described type perhaps in 32; read
    into the other kind, it was cast before it could be checked.
    """
    scalars = {name: array for name, array in data.items() if not saved[name][0]}
    return {name for name, array in scalars.items() if not _has_bytes(saved[name], array)}


def cast(name: str, stored: np.ndarray, dtype: Any) -> np.ndarray:
    """A scalar in another type of its kind.

    Raises:
      ValueError: that type does not hold it.
    """
    with np.errstate(over="ignore"):
        found = stored.astype(dtype)
    exact = jnp.issubdtype(dtype, jnp.integer)
    if found != stored if exact else np.isfinite(found) != np.isfinite(stored):
        raise ValueError(
            f"Cannot restore {trees.label(name)}: it was saved as the number {stored}, which is no "
            f"{dtype}. Restore it into a Python number."
        )
    return found


def placement(leaf: Any) -> Any:
    """The sharding a leaf is committed to, or None."""
    return getattr(leaf, "sharding", None) if getattr(leaf, "committed", True) else None


def target(leaf: Any) -> Any:
    """What Orbax is to read a leaf into: an array placed as the leaf is, or one on the host."""
    if is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    elif placement(leaf) is not None:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement(leaf))
    leaf = np.asarray(leaf) if isinstance(leaf, NUMBERS) else leaf
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def as_saved(leaf: Any, data: Any) -> Any:
    """What was read, in the kind and the place of the leaf it is restored into."""
    if isinstance(leaf, NUMBERS):
        return type(leaf)(data.item())
    data = np.asarray(target(leaf)) if data is None else data  # an empty leaf was not saved
    if isinstance(leaf, np.ndarray | np.generic):
        return data[()] if isinstance(leaf, np.generic) else data
    array = jnp.asarray(data)
    if is_key(leaf):
        array = jax.random.wrap_key_data(array, impl=key_impl(leaf))
    place = placement(leaf)
    return array if place is None else jax.device_put(array, place)
