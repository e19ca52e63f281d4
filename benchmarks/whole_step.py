"""The experiments' train steps against the plainest of the same network.

    python benchmarks/whole_step.py [--save]
    python benchmarks/whole_step.py --quick     # tiny networks, 3 pairs

The plain one is what a Flax tutorial writes: forward pass in training, mean cross-entropy,
gradient, SGD with Nesterov momentum and decay of the kernels, images ready. The experiment's
(`nip_it_in_the_bud.py`) does that, moves, mirrors and normalises the images, smooths labels, keeps
a running mean of the loss and counts; that it costs no more is the bound: at most 1.02. Both are
jitted, their state donated. Intervals are those of the median of pairs, 95 %.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measuring  # isort: skip  # sets XLA's threads: before jax

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import Dataset, Split
from experiments.dense_training import kernels
from experiments.nip_it_in_the_bud import PRESETS
from experiments.nipping.fitting import Program
from experiments.nipping.task import Problem, Shape
from experiments.training import cross_entropy

FULL = {
    "WRN-16-2, batch 32": (Shape("wrn", 16, 2), 32, 32),
    "WRN-10-1, batch 64": (Shape("wrn", 10, 1), 64, 32),
    "DenseNet-BC-40, k = 12, batch 32": (Shape("densenet", 40, 12), 32, 32),
}
QUICK = {"WRN-10-1": (Shape("wrn", 10, 1), 2, 8)}


def images(side: int, count: int) -> Dataset:
    """Random images as photographs of CIFAR-10 come."""
    draw = np.random.default_rng(0)
    part = lambda: Split(
        draw.random((count, side, side, 3), np.float32), np.arange(count, dtype=np.int32) % 10
    )
    return Dataset("random", part(), part(), part(), num_classes=10, source="drawn")


def steps(shape: Shape, batch: int, side: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Calls that take a step: the plain one, and the experiment's."""
    config = replace(PRESETS["full"]["wrn"], batch=batch)
    problem = Problem(config, found=images(side, batch))
    program = Program(problem, shape, 10**6)
    inputs, targets = (jnp.asarray(part) for part in problem.train)
    model, key = problem.model(shape), jax.random.key(0)
    tx = optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=kernels),
        optax.sgd(config.learning_rate, momentum=0.9, nesterov=True),
    )

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def plain(params: Any, stats: Any, state: Any) -> Any:
        def objective(params: Any) -> Any:
            variables = {"params": params, "batch_stats": stats}
            logits, new = model.apply(variables, inputs, train=True, mutable=["batch_stats"])
            return jnp.mean(cross_entropy(logits, targets)), new["batch_stats"]

        gradient, new = jax.grad(objective, has_aux=True)(params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), new, state

    variables = problem.init(shape, key)
    params, stats = variables["params"], variables["batch_stats"]
    now = [jax.tree.map(jnp.array, (params, stats, tx.init(params)))]
    state = [program.start(variables)]

    def first() -> None:
        now[0] = jax.block_until_ready(plain(*now[0]))

    def second() -> None:
        state[0] = jax.block_until_ready(program.update(state[0], inputs, targets, key))

    return first, second


def main() -> None:
    """Measure every network."""
    quick = measuring.is_quick(__doc__)
    rows = []
    for name, case in (QUICK if quick else FULL).items():
        plain, ours = steps(*case)
        ratio = measuring.paired(plain, ours, pairs=3 if quick else 25)
        rows.append([name, *measuring.ratio_cells(ratio)])
    head = ["network", "the experiment's step, of a plain one", "95 %", "pairs", "ms", "plain ms"]
    measuring.publish("whole_step", "python benchmarks/whole_step.py", head, rows)


if __name__ == "__main__":
    main()
