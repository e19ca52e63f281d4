"""Save and restore any pytree of arrays by step: parameters, masks, optimizer state. No pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprune import trees
from jaxprune.types import PyTree


def _described(tree: PyTree) -> dict[str, list[Any]]:
    """Name, shape and dtype of every leaf; what a checkpoint is checked against."""
    return {
        name: [list(np.shape(leaf)), str(trees.dtype_of(leaf))]
        for name, leaf in trees.named_leaves(tree)
    }


def _manager(directory: str | Path, keep: int | None = None) -> Any:
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    return ocp.CheckpointManager(Path(directory).absolute(), options=options)


def save(directory: str | Path, tree: PyTree, *, step: int, keep: int | None = None) -> None:
    """Save a pytree of arrays under a step number; done, and complete, when it returns.

    A checkpoint that was interrupted half-way is never seen by `latest_step` or `restore`.

    Args:
      directory: where checkpoints live; made if missing.
      tree: any pytree of arrays, for example `{"params": .., "mask": .., "opt_state": ..}`.
        Masks of the transformations here live in `opt_state` already.
      step: the step number, >= 0.
      keep: how many checkpoints to keep, the newest ones (default: all).

    Raises:
      ValueError: a checkpoint of that step exists.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     save(directory, {"w": jnp.arange(3.0)}, step=7)
      ...     restore(directory, {"w": jnp.zeros(3)})["w"]
      Array([0., 1., 2.], dtype=float32)
    """
    import orbax.checkpoint as ocp

    if latest_step(directory) is not None and step in steps(directory):
        raise ValueError(f"{directory} has a checkpoint of step {step} already.")
    with _manager(directory, keep) as manager:
        manager.save(
            step,
            args=ocp.args.Composite(
                tree=ocp.args.StandardSave(jax.tree.map(_as_data, tree)),
                leaves=ocp.args.JsonSave(_described(tree)),
            ),
        )
        manager.wait_until_finished()


def _as_data(leaf: Any) -> Any:
    """PRNG keys travel as their integers; everything else as it is."""
    if jax.dtypes.issubdtype(trees.dtype_of(leaf), jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return leaf


def steps(directory: str | Path) -> list[int]:
    """The steps of all complete checkpoints, rising; empty if there is none."""
    if not Path(directory).is_dir():
        return []
    with _manager(directory) as manager:
        return sorted(manager.all_steps())


def latest_step(directory: str | Path) -> int | None:
    """The newest complete checkpoint, or None."""
    found = steps(directory)
    return found[-1] if found else None


def restore(directory: str | Path, like: PyTree, *, step: int | None = None) -> PyTree:
    """Restore a checkpoint into a tree like the one it was saved from, bit for bit.

    Args:
      directory: where checkpoints live.
      like: a tree of the same structure, shapes and dtypes (arrays, or abstract ones from
        `jax.eval_shape`); where its leaves carry a sharding, the restored ones get it.
      step: which checkpoint (default: the newest).

    Returns:
      A tree with the structure of `like`.

    Raises:
      FileNotFoundError: no such checkpoint.
      ValueError: `like` differs from what was saved; the leaf is named.
    """
    import orbax.checkpoint as ocp

    known = steps(directory)
    if not known or (step is not None and step not in known):
        wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise FileNotFoundError(f"{directory} has {wanted}; complete ones: {known or 'none'}.")
    step = known[-1] if step is None else step
    with _manager(directory) as manager:
        saved = manager.restore(step, args=ocp.args.Composite(leaves=ocp.args.JsonRestore()))
        _check_saved(saved["leaves"], _described(like), directory)
        target = jax.tree.map(_abstract, like)
        found = manager.restore(
            step, args=ocp.args.Composite(tree=ocp.args.StandardRestore(target))
        )["tree"]
    return jax.tree.map(_as_saved, like, found)


def _abstract(leaf: Any) -> Any:
    if jax.dtypes.issubdtype(trees.dtype_of(leaf), jax.dtypes.prng_key):
        data = jax.eval_shape(jax.random.key_data, leaf)
        return jax.ShapeDtypeStruct(data.shape, data.dtype)
    sharding = getattr(leaf, "sharding", None)
    return jax.ShapeDtypeStruct(np.shape(leaf), trees.dtype_of(leaf), sharding=sharding)


def _as_saved(like: Any, found: Any) -> Any:
    if jax.dtypes.issubdtype(trees.dtype_of(like), jax.dtypes.prng_key):
        return jax.random.wrap_key_data(found, impl=str(jax.random.key_impl(like)))
    return found


def _check_saved(saved: dict[str, Any], wanted: dict[str, Any], directory: Any) -> None:
    for name in [*wanted, *saved]:
        if name not in saved:
            problem = "is not in the checkpoint"
        elif name not in wanted:
            problem = "is in the checkpoint but not in the tree to restore into"
        elif saved[name] != wanted[name]:
            (shape, dtype), (shape_now, dtype_now) = saved[name], wanted[name]
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
