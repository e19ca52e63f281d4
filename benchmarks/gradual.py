"""What pruning while a network trains costs a step, averaged over the steps between two updates.

    python benchmarks/gradual.py [--save]
    python benchmarks/gradual.py --quick     # tiny networks, 3 pairs

Each network of `experiments/to_prune_or_not.py` takes whole steps (loss, gradient, clipping, Adam),
jitted, its state donated, on random data: plain, with `prune_gradually` on the steps between mask
updates, and with a mask update in every step. A schedule with an update every 100 steps costs
`between + (update - between) / 100` plain steps. Intervals are those of the median of pairs, 95 %.
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
import numpy as np
import optax

import jaxprune as jp
from experiments.models import (
    LSTMLM,
    LanguageModel,
    MobileNetV1,
    Seq2Seq,
    Translator,
    lstm_lm,
    mobilenet,
    seq2seq,
)
from experiments.training import cross_entropy
from jaxprune.types import Params, Predicate

EVERY = 100
NEVER = 10**9
Loss = Callable[[Params], jax.Array]


class Case(NamedTuple):
    """A network: its parameters, the loss of one batch, and what is pruned."""

    params: Params
    loss: Loss
    prunable: Predicate


def mobile(width: float, batch: int, side: int) -> Case:
    """MobileNetV1 with a CIFAR stem."""
    model = MobileNetV1(10, width, mobilenet.CIFAR_STRIDES)
    images = jax.random.normal(jax.random.key(0), (batch, side, side, 3))
    labels = jnp.arange(batch) % 10
    variables = jax.jit(model.init)(jax.random.key(1), images)

    def loss(params: Params) -> jax.Array:
        used = {"params": params, "batch_stats": variables["batch_stats"]}
        logits, _ = model.apply(used, images, train=True, mutable=["batch_stats"])
        return jnp.mean(cross_entropy(logits, labels))

    return Case(variables["params"], loss, mobilenet.prunable)


def language(vocabulary: int, width: int, batch: int, length: int) -> Case:
    """Two LSTM layers and a softmax."""
    model = LanguageModel(LSTMLM(vocabulary, width))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, vocabulary, (batch, length + 1)))

    def loss(params: Params) -> jax.Array:
        logits, _ = model.apply(params, tokens[:, :-1])
        each = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return jnp.mean(each)

    return Case(model.init(jax.random.key(0)), loss, lstm_lm.prunable)


def translation(vocabulary: int, width: int, batch: int, length: int) -> Case:
    """Encoder, attention, decoder."""
    model = Translator(Seq2Seq(vocabulary, vocabulary, width))
    random = np.random.default_rng(0)
    source, target = (jnp.asarray(random.integers(3, vocabulary, (batch, length))) for _ in "st")

    def loss(params: Params) -> jax.Array:
        return model.loss(model.apply(params, source, target[:, :-1]), target[:, 1:])

    return Case(model.init(jax.random.key(0)), loss, seq2seq.prunable)


FULL: dict[str, Callable[[], Case]] = {
    "MobileNetV1, width 0.5, batch 64": lambda: mobile(0.5, 64, 32),
    "LSTM, 10,000 words, width 128, 32 x 20": lambda: language(10_000, 128, 32, 20),
    "seq2seq, width 96, 64 x 14": lambda: translation(72, 96, 64, 14),
}
QUICK: dict[str, Callable[[], Case]] = {
    "MobileNetV1": lambda: mobile(0.0625, 2, 8),
    "LSTM": lambda: language(40, 8, 2, 3),
    "seq2seq": lambda: translation(9, 8, 2, 3),
}


def stepping(case: Case, every: int | None) -> Callable[[], None]:
    """A call that takes one step; with masks, updated at step 0 and then `every` steps."""
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-5))
    if every is not None:
        select = jp.select.lowest("layer", prunable=case.prunable)
        rise = jp.schedule.linear(0.9, 100_000, initial=0.1)  # a redraw at every update measured
        tx = optax.chain(tx, jp.prune_gradually(jp.saliency.magnitude(), select, rise, every=every))

    def step(params: Params, state: Any) -> tuple[Params, Any]:
        updates, state = tx.update(jax.grad(case.loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1))
    params = jax.tree.map(jnp.copy, case.params)
    now = [jitted(params, tx.init(params))]

    def call() -> None:
        now[0] = jax.block_until_ready(jitted(*now[0]))

    return call


def main() -> None:
    """Measure every network."""
    quick = measuring.is_quick(__doc__)
    rows = []
    for name, make in (QUICK if quick else FULL).items():
        case = make()
        pairs = 3 if quick else 13
        calls = [stepping(case, every) for every in (None, NEVER, 1)]
        rows.append(
            [
                name,
                f"{jp.trees.count(case.params):,}",
                *measuring.schedule_cells(*calls, every=EVERY, pairs=pairs),
            ]
        )
    head = ["network", "parameters", "plain ms", "between updates", "with an update",
            f"average, every {EVERY}"]  # fmt: skip
    measuring.publish("gradual", "python benchmarks/gradual.py", head, rows)


if __name__ == "__main__":
    main()
