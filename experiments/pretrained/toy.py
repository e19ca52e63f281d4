"""A network in place of a pretrained one: 64-64-10 on digits, trained here in a second."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import data
from experiments.pretrained.model import Pretrained
from jaxprune.types import Params

WIDTHS = (64, 64, 10)
STEPS = 150


def apply(params: Params, x: jax.Array) -> jax.Array:
    """Logits [N, 10] of images [N, 8, 8, 1]."""
    x = x.reshape(len(x), -1)
    x = jax.nn.relu(x @ params["first/kernel"] + params["first/bias"])
    return x @ params["last/kernel"] + params["last/bias"]


def init(key: jax.Array) -> dict[str, jax.Array]:
    """New weights, variance 2 / inputs."""
    params = {}
    sizes = zip(("first", "last"), WIDTHS[:-1], WIDTHS[1:], strict=True)
    for number, (layer, inputs, outputs) in enumerate(sizes):
        draw = jax.random.normal(jax.random.fold_in(key, number), (inputs, outputs))
        params[f"{layer}/kernel"] = draw * (2 / inputs) ** 0.5
        params[f"{layer}/bias"] = jnp.zeros(outputs)
    return params


def distill(logits: jax.Array, dense: jax.Array) -> jax.Array:
    """KL(dense | pruned) of each example [N]."""
    return optax.kl_divergence(jax.nn.log_softmax(logits), jax.nn.softmax(dense))


@jax.jit
def fitted(x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    """Weights after `STEPS` steps of Adam on all examples."""
    tx, params = optax.adam(1e-2), init(jax.random.key(0))
    loss = optax.softmax_cross_entropy_with_integer_labels
    objective = lambda p: loss(apply(p, x), y).mean()

    def step(_: jax.Array, carry: tuple[Params, optax.OptState]) -> tuple[Params, optax.OptState]:
        params, state = carry
        updates, state = tx.update(jax.grad(objective)(params), state)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, STEPS, step, (params, tx.init(params)))[0]


@jax.jit
def said(params: Params, images: jax.Array) -> jax.Array:
    """The classes [N] of images."""
    return apply(params, images).argmax(-1)


def load(calibration: int, test: int, seed: int, data_dir: Path | None) -> Pretrained:
    """The network, trained on all training digits whatever the seed."""
    digits = data.load("digits", data_dir=data_dir)
    drawn = np.random.default_rng(seed).permutation(len(digits.train.inputs))[:calibration]
    images, classes = digits.test.inputs[:test], digits.test.targets[:test]
    return Pretrained(
        name="toy",
        source="64-64-10, trained here on the digits of scikit-learn",
        params=fitted(*digits.train),
        apply=apply,
        inputs=jnp.asarray(digits.train.inputs[drawn]),
        targets=jnp.asarray(digits.train.targets[drawn]),
        loss=optax.softmax_cross_entropy_with_integer_labels,
        distill=distill,
        prunable=lambda name, leaf: name.endswith("kernel"),
        quality=lambda params: {"accuracy": 100 * float(np.mean(said(params, images) == classes))},
    )
