"""Read a checkpoint without the tree, the code, or the devices it was saved from.

Those of `checkpoint`, and any that Orbax wrote: a pytree by itself, the items of a composite, the
steps of a CheckpointManager. Leaves come back by name, as NumPy arrays.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune import trees
from jaxprune.checkpoint_contents import UNFINISHED, by_name, damage, sha256
from jaxprune.checkpoint_contents import folder as as_folder

_STEP = re.compile(r"(?:.*[_-])?(\d+)")  # 7, 000007, checkpoint_7
_OURS = {"shrunk": "coupling and kept units", "function": "compiled code"}


class Shaped(NamedTuple):
    """Shape and dtype of a leaf that was not read."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


class Item(NamedTuple):
    """One pytree of a checkpoint: the metadata of its leaves by name, and their structure."""

    path: Path
    leaves: dict[str, Any]
    structure: Any


class Stored(NamedTuple):
    """A checkpoint that was found, with what is known before its arrays are read.

    Attributes:
      path: the checkpoint itself, not the folder of its steps.
      step: its step; None for one that stands alone.
      leaves: shape and dtype of every array, by name.
      left_out: what is in it and no array: name and kind.
      items: where they are.
      hashes: SHA-256 of arrays, where the checkpoint knows them.
    """

    path: Path
    step: int | None
    leaves: dict[str, Shaped]
    left_out: dict[str, str]
    items: dict[str, Item]
    hashes: dict[str, str | None]

    def read(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """The arrays of these leaves, whole, on the host.

        Raises:
          Damaged: the files are, a ValueError.
        """
        wanted = dict.fromkeys(names)
        found: dict[str, np.ndarray] = {}
        for prefix, item in self.items.items():
            inside = {name: prefix + name for name in item.leaves if prefix + name in wanted}
            if inside:
                data = _read(self.path, item, inside)
                found |= {whole: data[name] for name, whole in inside.items()}
        with damage(self.path):
            for name, array in found.items():
                if self.hashes.get(name) not in (None, sha256(array)):
                    raise ValueError(f"{trees.label(name)} has other bytes than were saved")
        # Checkpoints of `checkpoint` hold empty leaves by their shapes alone.
        empty = {n: np.zeros(*self.leaves[n]) for n in wanted if n not in found}
        return {name: (found | empty)[name] for name in wanted}


def find(path: str | Path, step: int | None = None) -> Stored:
    """Find a checkpoint and list what it holds.

    Args:
      path: a checkpoint, or the folder of those of several steps.
      step: which of several (default: the newest).

    Raises:
      FileNotFoundError: no such folder, or no such step. ValueError: no checkpoint is there, it
        was never finished, or it is damaged.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> from jaxprune import checkpoint
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     checkpoint.save(directory, {"net": {"w": jnp.arange(3.0)}}, step=7)
      ...     stored = find(directory)
      ...     stored.step, stored.leaves["net/w"].shape, stored.read(["net/w"])["net/w"]
      (7, (3,), array([0., 1., 2.], dtype=float32))
    """
    folder = as_folder(path).absolute()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"{path} {what}. Give the folder that the checkpoint was saved to.")
    if UNFINISHED in folder.name:
        raise ValueError(f"{path} was never finished: what saved it stopped half-way.")
    if _is_checkpoint(folder):
        if step is not None:
            raise ValueError(f"{path} is one checkpoint, without steps. Leave the step out.")
        return _opened(folder, None)
    known = _steps(folder)
    if not known or (step is not None and step not in known):
        raise _missing(path, folder, step, sorted(known))
    step = max(known) if step is None else step
    return _opened(known[step], step)


def _missing(path: Any, folder: Path, step: int | None, known: list[int]) -> Exception:
    """What to say of a folder without the checkpoint that was asked for."""
    unfinished = sorted(p.name for p in folder.glob(f"*{UNFINISHED}*"))
    half = f" Never finished, what saved them stopped half-way: {unfinished}." if unfinished else ""
    if known:
        return FileNotFoundError(
            f"{path} has no checkpoint of step {step}; complete ones: {known}.{half}"
        )
    if half:
        return ValueError(f"{path} has no complete checkpoint.{half}")
    return ValueError(
        f"{path} is no checkpoint and holds none. Give the folder that `jaxprune.checkpoint.save` "
        "or Orbax saved to."
    )


def _is_checkpoint(folder: Path) -> bool:
    """One checkpoint, not a folder of steps."""
    if any((folder / name).is_file() for name in ("_METADATA", "_CHECKPOINT_METADATA")):
        return True
    inside = [p.parent for p in folder.glob("*/_METADATA")]  # as older versions of Orbax left it
    is_item = lambda p: not (_STEP.fullmatch(p.name) or (p / "_CHECKPOINT_METADATA").is_file())
    return bool(inside) and all(map(is_item, inside))


def _steps(folder: Path) -> dict[int, Path]:
    """Complete checkpoints by step."""
    matches = [(_STEP.fullmatch(p.name), p) for p in sorted(folder.iterdir()) if p.is_dir()]
    return {int(match[1]): p for match, p in matches if match and _is_checkpoint(p)}


def _opened(folder: Path, step: int | None) -> Stored:
    if (folder / "leaves").is_dir() and not (folder / "leaves" / "_METADATA").is_file():
        return _of_ours(folder, step)
    if (folder / "_METADATA").is_file():
        items = {"": folder}
    else:
        items = {p.parent.name: p.parent for p in sorted(folder.glob("*/_METADATA"))}
    prefix = lambda name: f"{name}/" if len(items) > 1 else ""
    found = {prefix(name): _item(folder, path) for name, path in items.items()}
    leaves, left_out = {}, {}
    for start, item in found.items():
        for name, leaf in item.leaves.items():
            if hasattr(leaf, "shape"):
                leaves[start + name] = Shaped(tuple(leaf.shape), np.dtype(leaf.dtype))
            else:
                left_out[start + name] = type(leaf).__name__.removesuffix("Metadata").lower()
    if items.keys() != {""}:
        others = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name not in items)
        left_out |= dict.fromkeys(others, "an item without arrays")
    return Stored(folder, step, leaves, left_out, found, {})


def _of_ours(folder: Path, step: int | None) -> Stored:
    """A checkpoint of `checkpoint`: names are whole paths, `leaves` has their order."""
    with damage(folder):
        described = json.loads((folder / "leaves" / "metadata").read_text("utf-8"))
        items = {"": _item(folder, folder / "tree")} if (folder / "tree").is_dir() else {}
        stored = items[""].leaves if items else {}
        leaves, hashes = {}, {}
        for name, (shape, dtype, *more) in described.items():  # a hash, if it was stored
            hashes[name] = more[0] if more else None
            if 0 not in shape:  # as it is stored: PRNG keys as integers, Python's with 64 bits
                shape, dtype = stored[name].shape, stored[name].dtype
            elif dtype.startswith("key<"):
                dtype = "uint32"
            leaves[name] = Shaped(tuple(shape), jax.numpy.dtype(dtype))
    left_out = {name: what for name, what in _OURS.items() if (folder / name).is_dir()}
    return Stored(folder, step, leaves, left_out, items, hashes)


def _item(folder: Path, path: Path) -> Item:
    import orbax.checkpoint as ocp

    with damage(folder):
        found = ocp.PyTreeCheckpointHandler().metadata(path)
        tree = getattr(found, "tree", found)
        return Item(path, by_name(tree), jax.tree.structure(tree))


def _read(folder: Path, item: Item, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Leaves of one item; the others stay on disk."""
    import orbax.checkpoint as ocp

    wanted = set(names)
    target = [leaf if name in wanted else ocp.PLACEHOLDER for name, leaf in item.leaves.items()]
    host = [ocp.RestoreArgs(restore_type=np.ndarray)] * len(target)
    tree, how = (jax.tree.unflatten(item.structure, x) for x in (target, host))
    with damage(folder):
        found = ocp.PyTreeCheckpointHandler().restore(
            item.path, args=ocp.args.PyTreeRestore(item=tree, restore_args=how)
        )
        leaves = dict(zip(item.leaves, jax.tree.leaves(found), strict=True))
        return {name: np.asarray(leaves[name]) for name in wanted}
