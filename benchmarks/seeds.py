"""Training several seeds as one program, against one after the other.

    python benchmarks/seeds.py         # --save writes the committed table

Masked networks at 90 % sparsity, five seeds, as the experiments train them. One after the other is
a call of a jitted step a step, as training loops are written, or a program a seed that holds all
its steps. What seeds can share is the cost of calls; on one core the rest is arithmetic. Half the
time was hoped for.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measuring  # isort: skip  # sets XLA's threads: before jax

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from experiments import training
from experiments.data import Split
from experiments.models import MLP, lenet_300_100
from experiments.training import Budget

SEEDS = 5
CASES: dict[str, tuple[Any, tuple[int, ...], int, int]] = {
    "digits: 64-100-50-10": (MLP((100, 50), 10), (8, 8, 1), 64, 1000),
    "LeNet-300-100": (lenet_300_100(), (28, 28, 1), 64, 200),
    "LeNet-300-100, large batch": (lenet_300_100(), (28, 28, 1), 256, 60),
}


def rows(name: str) -> list[list[str]]:
    """Ratio of one program to steps, and to programs, one after the other."""
    model, shape, batch, steps = CASES[name]
    inputs = jax.random.normal(jax.random.key(0), (2048, *shape))
    split = jax.tree.map(jnp.asarray, Split(np.asarray(inputs), np.arange(2048) % 10))
    apply = lambda params, x: model.apply({"params": params}, x)
    init = lambda key: model.init(key, inputs[:1])["params"]
    keys = jnp.stack([jax.random.key(seed) for seed in range(SEEDS)])
    params = training.init_runs(init, keys)
    masks = jax.vmap(lambda p: jp.select.lowest()(p, jp.saliency.magnitude()(p), sparsity=0.9))(
        params
    )
    budget, adam = Budget(steps, batch, 1e-3), optax.adam(1e-3)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, masks: Any, rows: jax.Array) -> Any:
        x, y = split.inputs[rows], split.targets[rows]
        objective = lambda p: jnp.mean(training.cross_entropy(apply(p, x), y))
        updates, state = optimizer(masks).update(jax.grad(objective)(params), state, params)
        return optax.apply_updates(params, updates), state

    optimizer = lambda masks: optax.chain(adam, jp.freeze_pruned(masks))
    chosen = np.random.default_rng(0).integers(0, 2048, (steps, batch))
    one = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], (params, masks)) for i in range(SEEDS)]

    def train(params: Any, masks: Any, keys: jax.Array) -> None:
        jax.block_until_ready(training.train_runs(apply, params, masks, keys, split, budget))

    def programs() -> None:
        for i, (params, masks) in enumerate(one):
            train(params, masks, keys[i : i + 1])

    def loops() -> None:
        for params, masks in one:
            params, masks = jax.tree.map(lambda leaf: jnp.copy(leaf[0]), (params, masks))
            state = optimizer(masks).init(params)
            for rows in chosen:
                params, state = step(params, state, masks, rows)
            jax.block_until_ready(params)

    found = []
    for what, apart in (("a call a step", loops), ("a program a seed", programs)):
        ratio = measuring.paired(apart, lambda: train(params, masks, keys), pairs=15, least=0.05)
        found.append([name, str(batch), str(steps), what, *measuring.ratio_cells(ratio)])
    return found


def main() -> None:
    """Print the table."""
    header = ["network", "batch", "steps", "one by one", "together / one by one", "95 %", "pairs",
              "together, ms", "one by one, ms"]  # fmt: skip
    table = [row for name in CASES for row in rows(name)]
    measuring.publish("seeds", "python benchmarks/seeds.py", header, table)


if __name__ == "__main__":
    main()
