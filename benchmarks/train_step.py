"""What a mask costs in a train step: held on every step, and redrawn on every step.

    python benchmarks/train_step.py         # --save writes the committed table

Bounds to keep: a held mask in at most 1.01 plain steps (lower end of the interval), and a mask
redrawn on every step of a 400,000-parameter MLP in at most 1.5 plain steps.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measuring  # isort: skip  # sets XLA's threads: before jax

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from experiments.models import MLP, LeNet5, ResNet, lenet_300_100

CASES: dict[str, tuple[Any, tuple[int, ...], int]] = {
    "MLP: LeNet-300-100": (lenet_300_100(), (28, 28, 1), 128),
    "CNN: LeNet-5": (LeNet5(), (28, 28, 1), 64),
    "ResNet-8": (ResNet(depth=8), (32, 32, 3), 32),
}


def problem(model: Any, shape: tuple[int, ...], batch: int) -> tuple[Any, Any, Any]:
    """Parameters, everything else in the variables, and a batch."""
    inputs = jax.random.normal(jax.random.key(0), (batch, *shape))
    labels = jnp.arange(batch) % 10
    variables = jax.jit(model.init)(jax.random.key(1), inputs)
    return variables.pop("params"), variables, (inputs, labels)


def stepper(model: Any, optimizer: Any, params: Any, rest: Any, batch: Any) -> Callable[[], None]:
    """A call that takes one jitted, donated train step and waits for it."""
    has_statistics = bool(rest)

    def loss(params: Any, rest: Any) -> Any:
        inputs, labels = batch
        if has_statistics:
            variables = {"params": params, **rest}
            logits, rest = model.apply(variables, inputs, train=True, mutable=list(rest))
        else:
            logits = model.apply({"params": params}, inputs)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(each), rest

    @jax.jit(donate_argnums=(0, 1, 2))
    def step(params: Any, rest: Any, state: Any) -> Any:
        grads, rest = jax.grad(loss, has_aux=True)(params, rest)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), rest, state

    copy = lambda tree: jax.tree.map(lambda x: jnp.array(x, copy=True), tree)
    params, rest = copy(params), copy(rest)
    carried = [(params, rest, copy(optimizer.init(params)))]

    def call() -> None:
        carried[0] = jax.block_until_ready(step(*carried[0]))

    return call


def held(name: str) -> list[str]:
    """A mask at 90 % in the chain, against the plain chain."""
    model, shape, batch = CASES[name]
    params, rest, data = problem(model, shape, batch)
    prune = jp.one_shot(jp.saliency.magnitude(), jp.select.lowest())
    pruned = prune(params, sparsity=0.9)
    chain = optax.chain(optax.adam(1e-3), jp.freeze_pruned(pruned.mask))
    plain = stepper(model, optax.adam(1e-3), params, rest, data)
    masked = stepper(model, chain, pruned.params, rest, data)
    cells = measuring.ratio_cells(measuring.paired(plain, masked, pairs=60, least=0.1))
    return [name, "mask held at 90 %", *cells]


def redrawn() -> list[list[str]]:
    """A mask redrawn on every step, and every hundredth, by global and per-layer magnitude."""
    model = MLP((420, 170), 10)  # 402,000 parameters on 28 x 28
    params, rest, data = problem(model, (28, 28, 1), 128)
    rising = jp.schedule.linear(0.9, 100_000, initial=0.1)  # rises on every step measured
    rows = []
    cases: list[tuple[int, Any]] = [(1, "global"), (1, "layer"), (100, "global")]
    for every, scope in cases:
        gradual = jp.prune_gradually(
            jp.saliency.magnitude(), jp.select.lowest(scope), rising, every=every
        )
        plain = stepper(model, optax.adam(1e-3), params, rest, data)
        pruning = stepper(model, optax.chain(optax.adam(1e-3), gradual), params, rest, data)
        # With every=100 a measurement covers whole periods, so that it holds its share of updates.
        cells = measuring.ratio_cells(measuring.paired(plain, pruning, pairs=40, least=0.5))
        often = "every step" if every == 1 else f"every {every} steps"
        rows.append(
            [f"MLP of {jp.trees.count(params):,}", f"mask redrawn {often}, {scope}", *cells]
        )
    return rows


if __name__ == "__main__":
    header = ["network", "what", "x plain step", "95 %", "pairs", "ms", "plain ms"]
    rows = [held(name) for name in CASES] + redrawn()
    measuring.publish("train_step", "python benchmarks/train_step.py", header, rows)
