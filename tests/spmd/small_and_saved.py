"""Run by the tests of shrinking and of checkpoints, with some number of devices; prints JSON."""

import hashlib
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from tests.spmd import meshes


def shrunk(kind):
    """`shrink` of a sharded network: where its arrays lie, and whether they are one device's."""
    full = meshes.problem()
    mesh = meshes.mesh_of(AxisType[kind])
    coupling = jp.couple(full.apply, full.params, full.batch[0])
    # Of 8 channels 4 stay, which 4 devices divide; of 16 hidden units 9, which none divide.
    kept = {name: np.arange(group.units) for name, group in coupling.groups.items()}
    kept = {name: units < {8: 4, 16: 9}[len(units)] for name, units in kept.items()}
    params = jax.tree.map(jnp.asarray, full.params)
    mask = coupling.mask(kept, params)
    trace = optax.trace(0.9)
    alone = jp.shrink(params, mask, coupling, trace.init(params))
    results = {}
    for layout in meshes.LAYOUTS:
        placed = jax.device_put(full.params, meshes.shardings(full.params, layout, mesh))
        found = jp.shrink(placed, mask, coupling, trace.init(placed))
        results[layout] = {
            "bits": all(
                np.asarray(a).tobytes() == np.asarray(b).tobytes()
                for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True)
            ),
            "specs": {n: str(leaf.sharding.spec) for n, leaf in jp.trees.named_leaves(found[0])},
            "lies": all(
                leaf.sharding.is_equivalent_to(expected(old, leaf, mesh), leaf.ndim)
                for old, leaf in zip(
                    jax.tree.leaves(placed) * 2, jax.tree.leaves(found), strict=True
                )
            ),
        }
    return results


def expected(old, small, mesh):
    """The old spec, without the axes that the new sizes do not divide."""
    spec = [*old.sharding.spec] + [None] * (old.ndim - len(old.sharding.spec))
    over = lambda axes: int(np.prod([mesh.shape[a] for a in np.atleast_1d(axes)]))
    left = [
        axes if axes is None or size % over(axes) == 0 else None
        for axes, size in zip(spec, small.shape, strict=True)
    ]
    return NamedSharding(mesh, P(*left))


def tree_on_all_devices():
    mesh = jax.make_mesh((jax.device_count(),), ("x",), axis_types=(AxisType.Auto,))
    draw = lambda key, *shape: jax.random.normal(jax.random.key(key), shape)
    params = {"a": draw(0, 16, 8), "b": draw(1, 8, 4).astype(jnp.bfloat16)}
    return jax.device_put(params, NamedSharding(mesh, P("x")))


def trained(params):
    tx = optax.chain(
        optax.adam(0.1),
        jp.prune_gradually(jp.saliency.magnitude(), jp.select.lowest(), jp.schedule.constant(0.5)),
    )

    @jax.jit
    def step(params, state):
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    params, state = step(params, jax.jit(tx.init)(params))
    return {"params": params, "opt_state": state}


def digest(tree):
    found = hashlib.sha256()
    for name, leaf in jp.trees.named_leaves(tree):
        found.update(name.encode() + np.asarray(leaf).tobytes())
    return found.hexdigest()


def told(tree):
    cut = [len(leaf.sharding.device_set) for leaf in jax.tree.leaves(tree["params"])]
    return {"devices": jax.device_count(), "cut": cut, "digest": digest(tree),
            "dropped": jp.trees.drop(jp.mask_of(tree["opt_state"]))}  # fmt: skip


def saved(directory):
    """The same tree saved by `checkpoint.save`, and by Orbax in the background."""
    import orbax.checkpoint as ocp

    tree = trained(tree_on_all_devices())
    jp.checkpoint.save(Path(directory) / "ours", tree, step=1)
    with ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler()) as background:
        background.save(Path(directory) / "background", args=ocp.args.StandardSave(tree))
    return told(tree)


def restored(directory):
    import orbax.checkpoint as ocp

    like = trained(tree_on_all_devices())
    ours = jp.checkpoint.restore(Path(directory) / "ours", like)
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
        theirs = reader.restore(Path(directory) / "background", args=ocp.args.StandardRestore(like))
    return {**told(ours), "background": told(theirs)}


if __name__ == "__main__":
    job, argument = sys.argv[1:]
    print(json.dumps({"shrunk": shrunk, "saved": saved, "restored": restored}[job](argument)))
