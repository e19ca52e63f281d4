"""Run by test_checkpoint_restart.py on eight devices: restores what one device saved, and back."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp

SPECS = {"kernel": P("d", None), "mask": P(None, "d"), "count": P()}


def saved_on_one_device():
    kernel = jax.random.normal(jax.random.key(0), (16, 8))
    return {"kernel": kernel, "mask": kernel > 0, "count": jnp.int32(3)}


def main(one, eight):
    mesh = jax.make_mesh((8,), ("d",))
    expected = saved_on_one_device()
    like = jax.device_put(
        jax.tree.map(jnp.zeros_like, expected),
        {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()},
    )
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like
    )
    results = {"devices": jax.device_count()}
    for kind, wanted in (("arrays", like), ("abstract", abstract)):
        found = jp.checkpoint.restore(one, wanted)
        results[kind] = {
            name: bool((np.asarray(found[name]) == np.asarray(expected[name])).all())
            and found[name].sharding == like[name].sharding
            and len(found[name].sharding.device_set) == 8
            for name in SPECS
        }
    jp.checkpoint.save(eight, found, step=0)
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
