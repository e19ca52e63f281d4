"""Run by test_quadratic.py in a process of its own, with four CPU devices; prints JSON."""

import json

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprune.surgeon import joint_surgeon
from jaxprune.surgeon.combinatorial import combinatorial_brain_surgeon
from jaxprune.surgeon.inverse_scores import woodfisher
from jaxprune.surgeon.local_model import LocalModel
from jaxprune.surgeon.one_by_one import optimal_brain_surgeon
from tests.surgeon import surgeon_doubles as doubles

PRUNERS = {
    "obs": lambda model: optimal_brain_surgeon(model, rounds=None),
    "woodfisher": woodfisher,
    "cbs": lambda model: combinatorial_brain_surgeon(model, draws=3),
    "joint": joint_surgeon,
}


def main():
    jax.config.update("jax_enable_x64", True)
    mesh = jax.make_mesh((4,), ("n",), axis_types=(AxisType.Auto,))
    case = doubles.dense(8, sizes=(6, 5, 2))
    placed = jax.device_put(case.batch, NamedSharding(mesh, P("n")))
    everywhere = jax.device_put(case.params, NamedSharding(mesh, P()))
    results = {}
    for name, make in PRUNERS.items():
        prune = make(LocalModel(case.apply, case.loss, damping=0.1))
        one = prune(case.params, case.batch, sparsity=0.6)
        four = prune(everywhere, placed, sparsity=0.6)
        a, b = one.info["objective"], four.info["objective"]
        results[name] = abs(a - b) / abs(a)
        pairs = zip(jax.tree.leaves(one.params), jax.tree.leaves(four.params), strict=True)
        results[f"{name} weights"] = max(float(np.abs(a - np.asarray(b)).max()) for a, b in pairs)
    print(json.dumps({"devices": jax.device_count(), "results": results}))


if __name__ == "__main__":
    main()
