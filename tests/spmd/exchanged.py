"""Run by test_counts_cross_devices.py in a process of its own, with eight CPU devices; prints JSON.

Compiles functions for sharded parameters of 1 MiB a leaf, and lists what devices exchange.
"""

import json
import sys

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from tests.spmd import meshes
from tests.spmd.collectives import collectives

select = jp.select
ROOM = 64 * 1024  # bytes
MAGNITUDE = jp.saliency.magnitude()


def update(tx):
    def run(params, scores):
        state = tx.init(params)
        return tx.update(scores, state, params)

    return run


def chosen(select, sparsity=0.5):
    return lambda params, scores: select(params, scores, sparsity=sparsity)


FUNCTIONS = {
    "select global": chosen(select.lowest()),
    "select layer": chosen(select.lowest("layer")),
    "select output": chosen(select.lowest("output")),
    "select erk": chosen(select.lowest("erk")),
    "select mapping": chosen(select.lowest({"dense/kernel": 0.25})),
    "select 2:4": chosen(select.n_of_m(2, 4), None),
    "select blocks": chosen(select.blocks((4, 4))),
    "one_shot": lambda params, _: jp.one_shot(MAGNITUDE, select.lowest())(params, sparsity=0.5),
    "one_shot random": lambda params, _: jp.one_shot(
        jp.saliency.random(jax.random.key(0)), select.lowest()
    )(params, sparsity=0.5),
    "prune_gradually": update(
        jp.prune_gradually(MAGNITUDE, select.lowest(), jp.schedule.linear(0.5, 10))
    ),
    "straight_through": update(
        jp.straight_through(MAGNITUDE, select.lowest(), jp.schedule.constant(0.5))
    ),
    "regrow": update(
        jp.regrow(optax.trace(0.5), every=2, stop=9, sparsity=0.5, key=jax.random.key(0))
    ),
    "freeze_random": update(jp.freeze_random(jax.random.key(0), 0.5)),
    "uniform 8 bits": lambda params, _: jp.quantize.uniform(8)(params),
    "uniform 4 bits mse": lambda params, _: jp.quantize.uniform(4, calibration="mse")(params),
    "lamp": lambda params, _: jp.saliency.lamp()(params),  # sorts
    "shared values": lambda params, _: jp.quantize.shared_values(4)(params),  # sorts
}


def abstract(layout):
    """Parameters of 1 MiB a leaf, as shapes that know where they lie."""
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)
    params = {
        "dense": {"kernel": shape(512, 512), "bias": shape(512)},
        "head": {"kernel": shape(1024, 256)},
    }
    places = meshes.shardings(params, layout, meshes.mesh_of())
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        params,
        places,
    )


def main(cases):
    found = {}
    for case in cases:
        name, layout = case.split("/")
        params = abstract(layout)
        compiled = jax.jit(FUNCTIONS[name]).lower(params, params).compile()
        sent = collectives(compiled.as_text())
        found[case] = {"number": len(sent), "large": [call for call in sent if call[1] > ROOM]}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
