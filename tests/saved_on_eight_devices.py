"""Run by test_command_line.py in a process of its own: a sharded checkpoint, of eight devices."""

import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from tests.stored_trees import sharded

if __name__ == "__main__":
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    tree = {
        name: jax.device_put(array, NamedSharding(mesh, P(*"xy"[: np.ndim(array)])))
        for name, array in sharded().items()
    }
    assert len(tree["w"].addressable_shards) == 8
    jp.checkpoint.save(sys.argv[1], tree, step=0)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(sys.argv[2], tree)
