"""MobileNetV1 on images."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data
from experiments.gradual.task import Config, Network, Task
from experiments.image_batches import CHANNELS, augment, normalise, share_right
from experiments.models import MobileNetV1, mobilenet
from experiments.naming import check_known
from experiments.orders import Orders
from experiments.training import cross_entropy


def task(config: Config, data_dir: Path | None = None) -> Task:
    """MobileNetV1 with a CIFAR stem on a set of images; all pointwise kernels are pruned."""
    check_known("set of images", [config.dataset], CHANNELS)
    found = data.load(config.dataset, data_dir=data_dir)
    inputs, targets = (np.asarray(part[: config.examples]) for part in found.train)
    parts = {"validation": found.validation, "test": found.test}

    @cache  # one object a width, so that jit compiles once
    def network(width: float) -> Network:
        model = MobileNetV1(found.num_classes, width, mobilenet.CIFAR_STRIDES)

        def init(key: jax.Array) -> tuple[Any, Any]:
            variables = model.init(key, jnp.zeros((1, *inputs.shape[1:])))
            return variables["params"], variables["batch_stats"]

        def loss(params: Any, stats: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
            images, labels = batch
            images = augment(images, config.dataset, key)
            variables = {"params": params, "batch_stats": stats}
            logits, new = model.apply(variables, images, train=True, mutable=["batch_stats"])
            return jnp.mean(cross_entropy(logits, labels)), new["batch_stats"]

        @jax.jit
        def guesses(params: Any, stats: Any, images: jax.Array) -> jax.Array:
            variables = {"params": params, "batch_stats": stats}
            logits: Any = model.apply(variables, normalise(images, config.dataset))
            return jnp.argmax(logits, axis=-1)

        def measure(params: Any, stats: Any, part: str) -> dict[str, float]:
            return {"accuracy": share_right(partial(guesses, params, stats), parts[part])}

        return Network(init, loss, measure, fixed=lambda stats: stats)

    def batches(seed: int) -> Any:
        orders = Orders(len(targets), config.batch, seed)
        return lambda step: (inputs[orders.at(step)], targets[orders.at(step)])

    title = f"MobileNetV1 on {config.dataset}"
    about = (
        "Seeds differ in first weights, the order of the images and what happens to them. The "
        "first and all depthwise convolutions, biases and BatchNorm stay; bytes have the running "
        "statistics."
    )
    return Task(title, about, "accuracy", False, mobilenet.prunable, network, batches)
