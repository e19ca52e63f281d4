"""What it costs a train step to say what every unit is worth, and to remove one.

    python benchmarks/removing.py [--save]
    python benchmarks/removing.py --quick     # tiny networks, 3 pairs

Whole steps (loss in training, gradient, SGD with momentum, BatchNorm's statistics), jitted, their
state donated, on random images: plain; with gates of single examples on the units between every
block's two convolutions and `remove_units`, between removals; and with a removal in every step.
Removing a unit every 100 steps costs `between + (removal - between) / 100` plain steps. Bound to
keep: at most 1.1. Intervals are those of the median of pairs, 95 %.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measuring  # isort: skip  # sets XLA's threads: before jax

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from experiments.models import DenseNet, ResNet, WideResNet
from experiments.training import cross_entropy

EVERY = 100
NEVER = 10**9


class Case(NamedTuple):
    """A network, how many images a step takes, their side, and which groups lose units."""

    model: Any
    batch: int
    side: int
    inner: Callable[[str], bool]


_first = lambda name: name.endswith("/first")
FULL = {
    "ResNet-20, batch 32": Case(ResNet(20), 32, 32, lambda name: name.endswith("/Conv_0")),
    "WRN-16-2, batch 32": Case(WideResNet(16, 2), 32, 32, _first),
    "DenseNet-BC-40, k = 12, batch 32": Case(DenseNet(40, 12), 32, 32, _first),
}
QUICK = {
    "WRN-10-1": Case(WideResNet(10, 1), 2, 8, _first),
    "DenseNet-BC-10": Case(DenseNet(10, 4), 2, 8, _first),
}


def stepping(case: Case, every: int | None) -> Callable[[], None]:
    """A call that takes one step; with `every`, one that removes a unit every so many."""
    images = jax.random.normal(jax.random.key(0), (case.batch, case.side, case.side, 3))
    labels = jnp.arange(case.batch) % 10
    variables = jax.jit(case.model.init)(jax.random.key(1), images)
    train = lambda v, x: case.model.apply(v, x, train=True, mutable=["batch_stats"])
    tx: Any = optax.sgd(1e-4, momentum=0.9)
    gates: dict[str, jax.Array] = {}
    run = lambda v, gates, x: train(v, x)
    if every is not None:
        coupling = jp.couple(case.model.apply, variables, images)
        inner = [name for name in coupling.groups if case.inner(name)]
        part = coupling.part(lambda v: v["params"], variables)
        tx = optax.chain(tx, jp.remove_units(part, every=every, groups=inner))
        gates = jp.coupling.ones(coupling, groups=inner, examples=case.batch)
        run = jp.coupling.gated_apply(coupling, train, has_aux=True)

    def step(params: Any, statistics: Any, state: Any) -> Any:
        def objective(params: Any, gates: Any) -> Any:
            logits, new = run({"params": params, "batch_stats": statistics}, gates, images)
            return jnp.mean(cross_entropy(logits, labels)), new["batch_stats"]

        if every is None:
            gradient, new = jax.grad(objective, has_aux=True)(params, gates)
            updates, state = tx.update(gradient, state, params)
        else:
            (gradient, slopes), new = jax.grad(objective, (0, 1), has_aux=True)(params, gates)
            updates, state = tx.update(gradient, state, params, gates=slopes)
        return optax.apply_updates(params, updates), new, state

    jitted = jax.jit(step, donate_argnums=(0, 1, 2))
    params = variables["params"]
    now = [jitted(params, variables["batch_stats"], tx.init(params))]

    def call() -> None:
        now[0] = jax.block_until_ready(jitted(*now[0]))

    return call


def main() -> None:
    """Measure every network."""
    quick = measuring.is_quick(__doc__)
    rows = []
    for name, case in (QUICK if quick else FULL).items():
        pairs = 3 if quick else 25
        calls = [stepping(case, every) for every in (None, NEVER, 1)]
        rows.append([name, *measuring.schedule_cells(*calls, every=EVERY, pairs=pairs)])
    head = ["network", "plain ms", "between removals", "with a removal", f"average, every {EVERY}"]
    measuring.publish("removing", "python benchmarks/removing.py", head, rows)


if __name__ == "__main__":
    main()
