"""Run twice by test_two_processes.py: one of two processes with two CPU devices each; prints JSON.

Each process holds half of every kernel, and compares its shards with what one device alone finds.
"""

import json
import sys

import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from tests import doubles

SPECS = {"first": P("x", "y"), "bias": P("y"), "last": P(("x", "y"), None)}


def host_params():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return {"first": draw(8, 6), "bias": draw(6), "last": np.round(4 * draw(8, 4)) / 4}


def functions():
    magnitude, select = jp.saliency.magnitude(), jp.select.lowest()
    tx = optax.chain(optax.sgd(0.5), jp.prune_gradually(magnitude, select, lambda step: 0.5))

    def step(params):
        updates, state = tx.update(params, tx.init(params), params)
        return {"params": optax.apply_updates(params, updates), "mask": jp.mask_of(state)}

    prune = jp.one_shot(magnitude, select)
    return {
        "one_shot, jit": jax.jit(lambda params: prune(params, sparsity=0.5)),
        "one_shot, eager": lambda params: prune(params, sparsity=0.5),
        "prune_gradually, jit": jax.jit(step),
        "report": lambda params: jp.report(
            params, jax.tree.map(lambda leaf: leaf > 0, params)
        ).totals.as_dict(),
    }


def same(found, alone):
    """Do all shards of this process have the bits of the array on one device?"""
    alone = np.asarray(alone)
    if not isinstance(found, jax.Array):
        return found == alone.item()
    return all(
        np.asarray(shard.data).tobytes() == alone[shard.index].tobytes()
        for shard in found.addressable_shards
    )


def main(number, address):
    jax.distributed.initialize(address, num_processes=2, process_id=number)
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    here = jax.device_put(host_params(), jax.local_devices()[0])
    params = {
        name: jax.make_array_from_callback(
            leaf.shape, NamedSharding(mesh, SPECS[name]), lambda index, leaf=leaf: leaf[index]
        )
        for name, leaf in host_params().items()
    }
    results = {"cut over both": not params["last"].is_fully_addressable}
    for name, function in functions().items():
        found, alone = function(params), function(here)
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True)
        results[name] = all(same(a, b) for a, b in pairs)
    kernels = [host_params()[name] for name in ("first", "last")]
    double = doubles.one_ranking([np.abs(leaf) for leaf in kernels], 0.5)
    mask = functions()["one_shot, jit"](params).mask
    pairs = zip([mask["first"], mask["last"]], double, strict=True)
    results["the mask of a sort in numpy"] = all(same(a, b) for a, b in pairs)
    print(json.dumps({"devices": jax.device_count(), "results": results}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
