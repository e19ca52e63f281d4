"""Save and restore any pytree of arrays by step: parameters, masks, optimizer state. No pickle.

A checkpoint is two Orbax items: `tree`, a flat dictionary from the names of leaves to arrays, and
`leaves`, a JSON with the shape, dtype and SHA-256 of each, which a restore is checked against.
Orbax's own nested trees will not do: they refuse bare arrays and empty ones, and mix up `a.b` with
`a/b`; and it reads back a flipped bit without a word.

That of a shrunk model has two more, `shrunk` and `function`, see `shrunk_checkpoint`.
"""

from __future__ import annotations

import operator
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprune import checkpoint_contents as contents
from jaxprune import shrunk_checkpoint
from jaxprune.checkpoint_contents import Damaged, by_name
from jaxprune.coupling import Coupling
from jaxprune.coupling.groups import Kept
from jaxprune.shrunk_checkpoint import Shrunk
from jaxprune.types import Apply, PyTree

__all__ = [
    "Damaged", "latest_step", "restore", "restore_shrunk", "save", "save_shrunk", "steps",
]  # fmt: skip

_HALF_WRITTEN = f"{contents.UNFINISHED}*"
_DROPPED = ".dropped"


def _orbax() -> Any:
    import orbax.checkpoint as ocp

    # Not its CheckpointManager, which skips a step older than the newest without a word, takes an
    # empty directory for a checkpoint, and fails if another process deletes one while it lists.
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler())


def _path(directory: str | Path, step: int) -> Path:
    return contents.folder(directory).absolute() / str(step)


def save(directory: str | Path, tree: PyTree, *, step: int, keep: int | None = None) -> None:
    """Save a pytree of arrays under a step number; done, and complete, when it returns.

    A checkpoint that was interrupted half-way is never seen by `latest_step` or `restore`.

    Args:
      directory: where checkpoints live; made if missing.
      tree: any pytree of arrays and numbers, for example `{"params": .., "opt_state": ..}`.
        Masks of the transformations here live in `opt_state` already.
      step: the step number, >= 0.
      keep: how many checkpoints to keep, the newest ones (default: all). What killed processes
        left half-written goes too, so that no other process may save there.

    Raises:
      ValueError: a checkpoint of that step exists (with `keep`, of a later one), a negative step,
        `keep` < 1, or a leaf that was donated and is gone; the leaf is named.
      TypeError: a leaf that is neither array nor number; the leaf is named.
      OSError: the disk is full or cannot be written; nothing half-written is left.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     save(directory, {"w": jnp.arange(3.0)}, step=7)
      ...     restore(directory, {"w": jnp.zeros(3)})["w"]
      Array([0., 1., 2.], dtype=float32)
    """
    _save(directory, tree, {}, step, keep)


def _save(
    directory: str | Path, tree: PyTree, more: dict[str, Any], step: int, keep: int | None = None
) -> None:
    """Save a tree, and more items under their names: JSON, or one array of bytes."""
    import orbax.checkpoint as ocp

    step, leaves = operator.index(step), by_name(tree)
    contents.check_step(directory, steps(directory), step, keep)
    for name, leaf in leaves.items():
        contents.check_leaf(name, leaf)
    data = {name: contents.as_data(leaf) for name, leaf in leaves.items() if np.size(leaf)}
    items = {"leaves": ocp.args.JsonSave(contents.described(leaves, data))}
    if data:
        items["tree"] = ocp.args.StandardSave(data)
    for name, item in more.items():
        is_json = isinstance(item, dict)
        items[name] = ocp.args.JsonSave(item) if is_json else ocp.args.StandardSave({"bytes": item})
    checkpoint = _path(directory, step)
    with _all_or_nothing(checkpoint):
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        with _orbax() as orbax:
            orbax.save(checkpoint, args=ocp.args.Composite(**items))
    if keep is not None:
        _keep_newest(checkpoint.parent, keep)


@contextmanager
def _all_or_nothing(checkpoint: Path) -> Iterator[None]:
    """A save that fails leaves nothing, and if the disk is to blame the error names the path."""
    try:
        yield
    except Exception as error:
        _sweep(checkpoint.parent, f"{checkpoint.name}{_HALF_WRITTEN}")
        code = re.search(r"os_error_code='(\d+)'", str(error))  # tensorstore raises ValueErrors
        number = int(code[1]) if code else getattr(error, "errno", None)
        if number is None:
            raise
        told = f"{os.strerror(number)}; the checkpoint was not saved"
        raise OSError(number, told, str(checkpoint)) from error


def _keep_newest(directory: Path, keep: int) -> None:
    """Delete older checkpoints; of several processes the first does, and the others wait."""
    try:
        if jax.process_index() == 0:
            _drop_older(directory, keep)
    finally:
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("jaxprune.checkpoint dropped older ones")


def _drop_older(directory: Path, keep: int) -> None:
    """Delete older checkpoints, and what killed processes have left half-written."""
    for old in steps(directory)[:-keep]:
        # Renamed first: a half-deleted checkpoint must not look like one.
        _sweep(directory, f"{old}{_DROPPED}")
        _path(directory, old).rename(directory / f"{old}{_DROPPED}")
    _sweep(directory, f"*{_DROPPED}")
    _sweep(directory, f"*{_HALF_WRITTEN}")


def _sweep(directory: Path, pattern: str) -> None:
    for left in directory.glob(pattern):
        shutil.rmtree(left, ignore_errors=True)


def steps(directory: str | Path) -> list[int]:
    """The steps of all complete checkpoints, rising; empty if there is none."""
    # Orbax renames a checkpoint to its number when it is complete.
    inside = contents.folder(directory).glob("*")
    return sorted(int(p.name) for p in inside if p.name.isdecimal() and (p / "leaves").is_dir())


def latest_step(directory: str | Path) -> int | None:
    """The newest complete checkpoint, or None."""
    found = steps(directory)
    return found[-1] if found else None


def restore(directory: str | Path, like: PyTree, *, step: int | None = None) -> PyTree:
    """Restore a checkpoint into a tree like the one it was saved from, bit for bit.

    Args:
      directory: where checkpoints live.
      like: a tree with the same names, shapes and dtypes (arrays, or abstract ones from
        `jax.eval_shape`); a Python number is as good as a scalar array. Where its arrays are
        committed to a sharding, the restored ones get it, whatever they were saved with; the
        others go where the first jitted step wants them.
      step: which checkpoint (default: the newest).

    Returns:
      A tree with the structure of `like`.

    Raises:
      FileNotFoundError: no such checkpoint.
      Damaged: files of the checkpoint are missing, cut short or altered; a ValueError.
      ValueError: `like` differs from what was saved; the leaf is named.
    """
    import orbax.checkpoint as ocp

    step = _existing(directory, step)
    leaves = by_name(like)
    saved = _read(directory, step, leaves=ocp.args.JsonRestore())
    with contents.damage(directory, step):
        found: contents.Described = {name: list(about) for name, about in saved["leaves"].items()}
    contents.check_described(found, contents.described(leaves), directory)
    target = {name: contents.target(leaf) for name, leaf in leaves.items() if np.size(leaf)}
    data: dict[str, Any] = {}
    if target:
        data = _read(directory, step, tree=ocp.args.StandardRestore(target))["tree"]
    if again := contents.other_scalars(found, data):
        stored = _read_as_stored(directory, step, data, again)
        with contents.damage(directory, step):
            contents.check_bytes(found, stored)
    with contents.damage(directory, step):
        contents.check_bytes(found, {name: data[name] for name in data if name not in again})
    for name in again:
        data[name] = contents.cast(name, stored[name], data[name].dtype)
    restored = [contents.as_saved(leaf, data.get(name)) for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(like), restored)


def save_shrunk(
    directory: str | Path,
    small: PyTree,
    coupling: Coupling,
    kept: Kept,
    *,
    step: int = 0,
    apply: Apply | None = None,
    inputs: Any = None,
    platforms: Sequence[str] | None = None,
) -> None:
    """Save a shrunk model so that a process without its code, or its tree, can restore it.

    Args:
      directory: where checkpoints live; made if missing.
      small: the shrunk variables.
      coupling: what lives together in the dense model; saved without the model.
      kept: the units that were kept, `{group: bool[units]}`.
      step: the step number, >= 0.
      apply: the shrunk model, `apply(small, *inputs)`, such as `shrunk_apply(coupling, kept)`. It
        is saved as compiled code (StableHLO, by `jax.export`), for inputs of these shapes.
      inputs: what it is called on, a tuple, or the only input; arrays or shapes.
      platforms: what it is compiled for, such as `("cpu", "cuda")` (default: what it runs on).

    Raises:
      ValueError: as `save`; `small` that does not have the shapes that `kept` leaves (the leaf is
        named); only one of `apply` and `inputs`; inputs or outputs of a custom pytree type.
      TypeError: as `save`. ImportError: with `apply`, if flatbuffers is not installed.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> from jaxprune.coupling import couple, shrunk_apply
      >>> from jaxprune.structure import shrink_units
      >>> apply = lambda w, x: jax.nn.relu(x @ w["in"]) @ w["out"]
      >>> w, x = {"in": jnp.ones((3, 4)), "out": jnp.ones((4, 2))}, jnp.ones((1, 3))
      >>> coupling, kept = couple(apply, w, x), {"in": np.array([True, False, True, False])}
      >>> small, code = shrink_units(w, kept, coupling), shrunk_apply(coupling, kept)
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     save_shrunk(directory, small, coupling, kept, apply=code, inputs=x)
      ...     found = restore_shrunk(directory)
      >>> found.variables["in"].shape, found.apply(found.variables, x)
      ((3, 2), Array([[6., 6.]], dtype=float32))
    """
    leaves = by_name(small)
    for name, leaf in leaves.items():
        contents.check_leaf(name, leaf)
    about, code = shrunk_checkpoint.pack(leaves, coupling, kept, apply, small, inputs, platforms)
    more = {"shrunk": about} | ({} if code is None else {"function": code})
    _save(directory, small, more, step)


def restore_shrunk(
    directory: str | Path, step: int | None = None, *, like: PyTree = None
) -> Shrunk:
    """Restore what `save_shrunk` saved; needs neither the model's code nor a tree like it.

    Args:
      directory: where checkpoints live.
      step: which checkpoint (default: the newest).
      like: a tree to restore into, as for `restore`. Without one the variables come back as
        nested dictionaries, a leaf's name being its path: `layers/0/kernel` is at
        `["layers"]["0"]["kernel"]`, whatever lists, dataclasses or NNX states there were (an NNX
        variable without its `.value`); a bare array as itself.

    Returns:
      Variables, coupling (without a model, see `coupling.with_model`), kept units, and `apply`,
      which takes the variables in either form; None if none was saved. It cannot be
      differentiated, and takes inputs of the shapes it was saved with.

    Raises:
      FileNotFoundError: no such checkpoint. ImportError: flatbuffers is needed, not installed.
      Damaged: as `restore`; a ValueError.
      ValueError: a checkpoint of another kind; `like` differs from what was saved.
    """
    import orbax.checkpoint as ocp

    step = _existing(directory, step)
    if not (_path(directory, step) / "shrunk").is_dir():
        raise ValueError(
            f"The checkpoint of step {step} in {directory} holds no shrunk model, but a tree: "
            "restore it by `restore`, or save by `save_shrunk`."
        )
    json = {name: ocp.args.JsonRestore() for name in ("leaves", "shrunk")}
    found = _read(directory, step, **json)
    with contents.damage(directory, step):
        about = shrunk_checkpoint.unpack(found["leaves"], found["shrunk"])
    variables = restore(directory, about.leaves if like is None else like, step=step)
    code = None
    if about.code:
        target = {"bytes": np.zeros(about.code.size, np.uint8)}
        found = _read(directory, step, function=ocp.args.StandardRestore(target))
        code = np.asarray(found["function"]["bytes"])
    with contents.damage(directory, step):
        return shrunk_checkpoint.restored(about, variables, code, nest=like is None)


def _existing(directory: str | Path, step: int | None) -> int:
    """The step of a complete checkpoint, the newest one by default."""
    try:
        step = None if step is None else operator.index(step)
    except TypeError:
        raise TypeError(
            f"`step` is a step number, an integer; got a {type(step).__name__}. Pass a tree to "
            "restore into as `like=`."
        ) from None
    known = steps(directory)
    if not known or (step is not None and step not in known):
        wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        there = f"complete ones: {known or 'none'}.{'' if known else _what_else(Path(directory))}"
        raise FileNotFoundError(f"{directory} has {wanted}; {there}")
    return known[-1] if step is None else step


def _what_else(folder: Path) -> str:
    """What a folder without a checkpoint of ours is, where that can be told."""
    parent = folder.absolute().parent
    if folder.absolute().name.isdecimal() and (folder / "leaves").is_dir():
        return f" It is one itself: restore from {parent} with `step={folder.absolute().name}`."
    found = (p for depth in range(3) for p in folder.glob(f"{'*/' * depth}_METADATA"))
    if any(contents.UNFINISHED not in str(p.relative_to(folder)) for p in found):
        return " What is there Orbax wrote, not `jaxprune.checkpoint`: restore it by Orbax."
    return ""


def _read(directory: str | Path, step: int, **items: Any) -> Any:
    """Items of a checkpoint that is complete, so that an error means it was damaged."""
    import orbax.checkpoint as ocp

    with _orbax() as orbax, contents.damage(directory, step):
        return orbax.restore(_path(directory, step), args=ocp.args.Composite(**items))


def _read_as_stored(
    directory: str | Path, step: int, names: Iterable[str], wanted: Iterable[str]
) -> dict[str, Any]:
    """Some leaves of the names there are, in the types they have on disk."""
    import orbax.checkpoint as ocp

    wanted = set(wanted)
    item = {name: np.zeros(()) if name in wanted else ocp.PLACEHOLDER for name in names}
    how = dict.fromkeys(item, ocp.RestoreArgs(restore_type=np.ndarray))
    tree = _read(directory, step, tree=ocp.args.PyTreeRestore(item=item, restore_args=how))["tree"]
    return {name: tree[name] for name in wanted}
