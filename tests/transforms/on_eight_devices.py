"""Run by test_sharded_masks.py in a process of its own, with eight CPU devices; prints JSON.

Gradients are elementwise functions of the weights here, so that scores have the same bits on any
sharding, and every mask must have them too.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from tests.transforms import zoo

LAYOUTS = {
    "rows": {"first": P("x", None), "bias": P(), "last": P("x", None)},
    "columns": {"first": P(None, "x"), "bias": P("x"), "last": P(None, "x")},
    "both": {"first": P("x", "y"), "bias": P("y"), "last": P(("x", "y"), None)},
}
SELECTIONS = {
    "global": jp.select.lowest(),
    "layer": jp.select.lowest("layer"),
    "output": jp.select.lowest("output"),
    "n_of_m": jp.select.n_of_m(2, 4),
}


def host_params():
    first, last = jax.random.split(jax.random.key(0))
    return {
        "first": jax.random.normal(first, (32, 16)),
        "bias": jnp.ones(16),
        "last": jnp.round(4 * jax.random.normal(last, (16, 8))) / 4,  # with many ties
    }


def train(tx, params, steps=4):
    """Shardings at every step, masks at every step, and how often the step was traced."""
    traces = []

    def step(params, state):
        traces.append(1)
        updates, state = tx.update(jax.tree.map(jnp.sign, params), state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    params = zoo.copied(params)
    state, history = tx.init(params), []
    placed = [is_placed_alike(params, state)]
    for _ in range(steps):
        params, state = step(params, state)
        placed.append(is_placed_alike(params, state))
        history.append(jax.tree.map(np.asarray, jp.mask_of(state)))
    return {"params": params, "placed": placed, "masks": history, "traces": len(traces)}


def is_placed_alike(params, state):
    """Is every mask where its parameter is?"""
    return all(
        keep.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
        for leaf, keep in zip(
            jax.tree.leaves(params), jax.tree.leaves(jp.mask_of(state)), strict=True
        )
    )


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        bool((np.asarray(x) == np.asarray(y)).all())
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def maskings():
    mask = jp.one_shot(jp.saliency.magnitude(), jp.select.lowest())(host_params(), sparsity=0.5)
    linear = jp.schedule.linear(0.5, 2)
    found = {
        "freeze_pruned": jp.freeze_pruned(mask.mask),
        "freeze_random": jp.freeze_random(jax.random.key(1), 0.5),
        "straight_through": jp.straight_through(
            jp.saliency.magnitude(), SELECTIONS["global"], jp.schedule.constant(0.5)
        ),
    }
    for grow in ("gradient", "random"):
        found[f"regrow/{grow}"] = jp.regrow(
            optax.trace(0.5), every=2, stop=9, sparsity=0.5, scope="layer", grow=grow,
            key=jax.random.key(2),
        )  # fmt: skip
    for name, select in SELECTIONS.items():
        found[f"prune_gradually/{name}"] = jp.prune_gradually(
            jp.saliency.magnitude(), select, linear
        )
    return found


FEW = [
    "freeze_pruned/rows/auto",
    "prune_gradually/global/both/explicit",
    "regrow/random/both/auto",
    "straight_through/columns/auto",
]
ALL = [f"{name}/{layout}/auto" for name in maskings() for layout in LAYOUTS] + [
    "freeze_pruned/both/explicit",
    "prune_gradually/global/both/explicit",
    "regrow/gradient/both/explicit",
    "regrow/random/both/explicit",
]


def main(cases):
    results, alone, one_device = {}, {}, host_params()
    for case in cases:
        name, layout, axis = case.rsplit("/", 2)
        kind = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}[axis]
        mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
        shardings = {n: NamedSharding(mesh, spec) for n, spec in LAYOUTS[layout].items()}
        tx = optax.chain(optax.sgd(0.01, momentum=0.9), maskings()[name])
        if name not in alone:
            alone[name] = train(tx, one_device)
        sharded = train(tx, jax.device_put(one_device, shardings))
        results[case] = {
            "masks_are_where_their_parameters_are": all(sharded["placed"]),
            "parameters_stay_where_they_were": all(
                sharded["params"][n].sharding.is_equivalent_to(s, sharded["params"][n].ndim)
                for n, s in shardings.items()
            ),
            "masks_have_the_bits_of_one_device": same(sharded["masks"], alone[name]["masks"]),
            "half_is_pruned": zoo.dropped(sharded["masks"][-1]) == 320,
            "pruned_weights_are_zero": int(zoo.alive(sharded["params"], sharded["masks"][-1])) == 0,
            "compiled_no_more_often_than_adam": sharded["traces"] <= 2,
        }
    print(json.dumps({"devices": jax.device_count(), "results": results}))


if __name__ == "__main__":
    main(ALL if sys.argv[1:] == ["all"] else FEW)
