"""Run by test_microbatch.py in a process of its own, with four CPU devices; prints JSON."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.curvature import test_microbatch as cases

ROWS = 20


def distance(found, expected):
    """The largest difference, relative to the largest entry of its leaf."""
    pairs = zip(cases.arrays(found), cases.arrays(expected), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def main():
    mesh = jax.make_mesh((4,), ("n",), axis_types=(AxisType.Auto,))
    results = {}
    for name, apply in cases.APPLIES.items():
        params, batch = cases.case(name, jnp.float32)
        batch = jax.tree.map(lambda x: x[:ROWS], batch)
        placed = jax.device_put(batch, NamedSharding(mesh, P("n")))
        everywhere = jax.device_put(params, NamedSharding(mesh, P()))
        for measure in ("gauss_newton", "layer_moments"):
            run = cases.MEASURES[measure](apply, None)
            expected = run(params, batch)
            results[f"{name} {measure}"] = distance(run(everywhere, placed), expected)
            results[f"{name} {measure} jit"] = distance(jax.jit(run)(everywhere, placed), expected)
    print(json.dumps({"devices": jax.device_count(), "results": results}))


if __name__ == "__main__":
    main()
