"""What a checkpoint of a shrunk model holds: read and written by `checkpoint`, no files here.

Two items beside those of any checkpoint: `shrunk`, a JSON with the coupling, the kept units, the
kinds of PRNG keys and what is known about the code; and `function`, the code as bytes. The code
takes the leaves of the variables in one tuple, so that it does not depend on their pytree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.checkpoint_contents import by_name, is_key, key_impl
from jaxprune.coupling import Coupling, from_json, to_json
from jaxprune.coupling.groups import Kept
from jaxprune.types import Apply, PyTree


class Shrunk(NamedTuple):
    """A shrunk model that was restored.

    Attributes:
      variables: its small arrays.
      coupling: of the dense model, without its code.
      kept: the units that were kept, `{group: bool[units]}`.
      apply: `apply(variables, *inputs) -> outputs`, or None if no code was saved.
    """

    variables: PyTree
    coupling: Coupling
    kept: dict[str, np.ndarray]
    apply: Apply | None


class Code(NamedTuple):
    """Size and hash of the saved code, and the names of the leaves it takes, in its order."""

    size: int
    sha256: str
    names: tuple[str, ...]


class About(NamedTuple):
    """What is known of a saved model before its arrays are read.

    Attributes:
      leaves: shapes and dtypes by name.
      coupling, kept: as in `Shrunk`.
      sha256: of all arrays; None where one process did not hold them whole.
      code: None if none was saved.
    """

    leaves: dict[str, Any]
    coupling: Coupling
    kept: dict[str, np.ndarray]
    sha256: str | None
    code: Code | None


def pack(
    leaves: Mapping[str, Any],
    coupling: Coupling,
    kept: Kept,
    apply: Apply | None,
    small: PyTree,
    inputs: Any,
    platforms: Sequence[str] | None,
) -> tuple[dict[str, Any], np.ndarray | None]:
    """The items `shrunk` and `function` of a model whose leaves have these names.

    Raises:
      ValueError, ImportError: see `checkpoint.save_shrunk`.
    """
    _check_shapes(leaves, coupling, kept)
    if (apply is None) != (inputs is None):
        missing = "apply" if apply is None else "inputs"
        raise ValueError(
            f"Code is saved for inputs of known shapes; `{missing}` is missing. Give both `apply` "
            "and `inputs`, or neither."
        )
    about: dict[str, Any] = {
        "coupling": to_json(coupling),
        "kept": {name: np.asarray(flags).tolist() for name, flags in kept.items()},
        "sha256": _digest(leaves),
        "keys": {name: str(key_impl(leaf)) for name, leaf in leaves.items() if is_key(leaf)},
    }
    if apply is None:
        return about, None
    code = _compiled(apply, small, inputs if isinstance(inputs, tuple) else (inputs,), platforms)
    about["code"] = Code(len(code), hashlib.sha256(code).hexdigest(), tuple(leaves))._asdict()
    return about, np.frombuffer(code, np.uint8)


def _check_shapes(leaves: Mapping[str, Any], coupling: Coupling, kept: Kept) -> None:
    flags = coupling.vector(kept)
    shapes = [tuple(int(flags[ids].sum()) for ids in axes) for axes in coupling.labels]
    found = [np.shape(leaf) for leaf in leaves.values()]
    if len(found) != len(shapes):
        raise ValueError(
            f"The shrunk variables have {len(found)} leaves, the coupling {len(shapes)}: "
            f"{sorted(set(leaves) ^ set(coupling.names))}. Save what `shrink` returned for it."
        )
    for name, shape, wanted in zip(leaves, found, shapes, strict=True):
        if shape != wanted:
            raise ValueError(
                f"Cannot save {trees.label(name)} of the shrunk variables: it has shape {shape}, "
                f"and the kept units leave {wanted}. Save what `shrink` returned for these units."
            )


def _digest(leaves: Mapping[str, Any]) -> str | None:
    """A hash of all arrays by name, in the types that are written beside them."""
    found = hashlib.sha256()
    for name in sorted(leaves):
        leaf = leaves[name]
        if not getattr(leaf, "is_fully_addressable", True):
            return None
        if is_key(leaf):
            leaf = jax.random.key_data(leaf)
        data = np.asarray(leaf).astype(trees.dtype_of(leaf))
        found.update(name.encode() + np.ascontiguousarray(data).tobytes())
    return found.hexdigest()


def _compiled(
    apply: Apply, small: PyTree, inputs: tuple[PyTree, ...], platforms: Sequence[str] | None
) -> bytes:
    """The model as StableHLO, a function of the tuple of its leaves and the inputs."""
    leaves, structure = jax.tree.flatten(small)

    def flat(leaves: tuple[Any, ...], *inputs: PyTree) -> PyTree:
        return apply(jax.tree.unflatten(structure, leaves), *inputs)

    like = jax.eval_shape(lambda *x: x, tuple(leaves), *inputs)
    exported = jax.export.export(jax.jit(flat), platforms=platforms)(*like)
    try:
        return bytes(exported.serialize())
    except ImportError as error:
        raise _no_flatbuffers() from error
    except ValueError as error:
        raise ValueError(
            "The code cannot be saved: its inputs and outputs may be arrays in tuples, lists and "
            f"dictionaries, and nothing else ({error}). Wrap `apply`, or save without it."
        ) from error


def _no_flatbuffers() -> ImportError:
    return ImportError(
        "jax.export writes and reads compiled code by the package flatbuffers, which is not "
        "installed: `pip install flatbuffers`. Variables alone can be saved without it."
    )


def unpack(described: Mapping[str, Any], found: Mapping[str, Any]) -> About:
    """What the JSON items `leaves` and `shrunk` say.

    Raises:
      KeyError, TypeError, ValueError: they do not say it.
    """
    keys, code = found["keys"], found.get("code")
    return About(
        {n: _like(shape, dtype, keys.get(n)) for n, (shape, dtype, *_) in described.items()},
        from_json(found["coupling"]),
        {name: np.asarray(flags, bool) for name, flags in found["kept"].items()},
        found["sha256"],
        code and Code(code["size"], code["sha256"], tuple(code["names"])),
    )


def _like(shape: Sequence[int], dtype: str, impl: str | None) -> Any:
    """A leaf to restore into; a NumPy array where JAX has no such type without 64 bits."""
    if impl is not None:
        return jax.eval_shape(lambda: jax.random.split(jax.random.key(0, impl=impl), tuple(shape)))
    kind = jnp.dtype(dtype)
    if jax.dtypes.canonicalize_dtype(kind) != kind:
        return np.broadcast_to(np.zeros((), kind), shape)
    return jax.ShapeDtypeStruct(tuple(shape), kind)


def restored(about: About, variables: PyTree, code: np.ndarray | None, nest: bool) -> Shrunk:
    """The model, from all that was read.

    Raises:
      ValueError: not the arrays, or not the bytes, that were saved.
    """
    leaves = by_name(variables)
    if about.sha256 not in (None, _digest(leaves)):
        raise ValueError("the arrays are not those that were saved")
    apply = None if code is None else _function(about, code)
    return Shrunk(nested(leaves) if nest else variables, about.coupling, about.kept, apply)


def _function(about: About, found: np.ndarray) -> Apply:
    """The saved code, as a function of the variables in any form that has their names."""
    code, known = found.tobytes(), about.code
    assert known is not None, "asked for where there is code"
    if len(code) != known.size or hashlib.sha256(code).hexdigest() != known.sha256:
        raise ValueError("the code has other bytes than were saved")
    try:
        exported = jax.export.deserialize(bytearray(code))
    except ImportError as error:
        raise _no_flatbuffers() from error

    def apply(variables: PyTree, /, *inputs: PyTree) -> PyTree:
        leaves = by_name(variables)
        if sorted(leaves) != sorted(known.names):
            raise ValueError(
                "These are not the variables of the saved model; missing: "
                f"{sorted(set(known.names) - set(leaves)) or 'none'}, too many: "
                f"{sorted(set(leaves) - set(known.names)) or 'none'}."
            )
        return exported.call(tuple(leaves[name] for name in known.names), *inputs)

    return apply


def nested(leaves: Mapping[str, Any]) -> Any:
    """Leaves by name as nested dictionaries, a bare array as itself.

    Where one leaf's name is the beginning of another's, what would be inside it stays beside it.

    Example:
      >>> nested({"a/b": 1, "a/c/0": 2, "d": 3, "d/e": 4})
      {'a': {'b': 1, 'c': {'0': 2}}, 'd': 3, 'd/e': 4}
    """
    if list(leaves) == [""]:
        return leaves[""]
    root: dict[str, Any] = {}
    for name, leaf in leaves.items():
        node, parts, prefix = root, name.split("/"), ""
        while len(parts) > 1:
            prefix = f"{prefix}{parts[0]}"
            if prefix in leaves:
                break
            node, prefix = node.setdefault(parts.pop(0), {}), f"{prefix}/"
        node["/".join(parts)] = leaf
    return root
