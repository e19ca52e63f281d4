"""Curvature: its cost in gradients, beside BackPACK, and its accuracy on trained networks.

    python benchmarks/curvature.py                 # --save writes the committed tables
    python benchmarks/curvature.py --only speed    # or backpack, or accuracy
    python benchmarks/curvature.py --quick         # small networks, 3 pairs

One batch, float32, the same weights on both sides. The unit is one jitted gradient of the mean
loss of that batch. BackPACK's time is of a forward and a backward pass with its extension, and so
holds a gradient, which ours leaves out. Without torch or backpack that table is skipped.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measuring  # isort: skip  # sets XLA's threads: before jax


import jaxprune as jp
from benchmarks.curvature_accuracy import accuracy
from benchmarks.curvature_backpack import against_backpack
from benchmarks.curvature_cases import (
    COMMAND,
    FULL,
    INTERVAL,
    QUICK,
    QUICK_SPEED,
    Case,
    Function,
    along_params,
    compared,
    exact,
    fisher,
    gauss_newton,
    gradient,
    hutchinson,
    loss,
    problem,
    squared_gradients,
    waiting,
)


def speed(cases: dict[str, Case]) -> None:
    """Table 1: in gradients of the same batch."""
    rows = []
    for name, case in cases.items():
        apply, params, _, batch = problem(case)
        measured: dict[str, Function] = {
            "exact diagonal": exact(apply),
            "Gauss-Newton diagonal": gauss_newton(apply),
            "empirical Fisher diagonal": fisher(apply),
            "moments of gradients": jp.curvature.gradient_moments(apply, loss),
            "Hutchinson, 1 probe": hutchinson(apply, 1),
            "Hessian-vector product": partial(along_params, jp.curvature.hvp(apply, loss)),
        }
        if case.per_example:
            measured["jit(vmap(grad) ** 2)"] = squared_gradients(apply)
        one = waiting(gradient(apply), params, batch)
        for what, function in measured.items():
            ratio = compared(one, waiting(function, params, batch), case.pairs)
            cells = measuring.ratio_cells(ratio)
            rows.append([name, f"{jp.trees.count(params):,}", what, *cells])
    header = ["network", "parameters", "what", "x gradient", *INTERVAL, "ms", "gradient ms"]
    measuring.publish("curvature", f"{COMMAND} --only speed", header, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("speed", "backpack", "accuracy"))
    parser.add_argument("--quick", action="store_true", help="small networks, few pairs")
    parser.add_argument("--save", action="store_true", help="keep the tables")
    asked = parser.parse_args()
    if asked.quick and asked.save:
        parser.error("--quick measures nothing worth saving")
    cases = QUICK if asked.quick else FULL
    if asked.only in (None, "speed"):
        speed({n: case for n, case in cases.items() if not asked.quick or n in QUICK_SPEED})
    if asked.only in (None, "backpack"):
        against_backpack(cases)
    if asked.only in (None, "accuracy"):
        accuracy(asked.quick)
