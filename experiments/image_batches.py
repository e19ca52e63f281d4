"""What happens to a batch of images before the network: shifts, mirroring, normalisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import Split

# Mean and standard deviation of each channel over the training images, pixels in [0, 1].
CHANNELS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "digits": ((0.3053,), (0.3760,)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2862,), (0.3531,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}


def normalise(inputs: jax.Array, dataset: str) -> jax.Array:
    """Subtract the mean of each channel and divide by its standard deviation.

    Args:
      inputs: [N, H, W, C] in [0, 1].
      dataset: whose constants; a name of `CHANNELS`.

    Example:
      >>> normalise(jnp.full((1, 2, 2, 1), 0.1307), "mnist").sum()
      Array(0., dtype=float32)
    """
    mean, deviation = (jnp.asarray(values, jnp.float32) for values in CHANNELS[dataset])
    return (inputs - mean) / deviation


def augment(inputs: jax.Array, dataset: str, key: jax.Array) -> jax.Array:
    """Images as a network sees them in training: photographs moved and mirrored; normalised.

    Others are not: a mirrored digit is another sign.
    """
    if dataset == "cifar10":
        inputs = shift(inputs, jax.random.fold_in(key, 0), 4)
        inputs = mirror(inputs, jax.random.fold_in(key, 1))
    return normalise(inputs, dataset)


def share_right(guesses: Callable[[Any], Any], split: Split, batch: int = 500) -> float:
    """Images of a split that are classified rightly, in per cent.

    Args:
      guesses: images [N, H, W, C] to classes [N].
      split: images and their classes.
      batch: images at once.
    """
    starts = range(0, len(split.targets), batch)
    parts = ((split.inputs[at : at + batch], split.targets[at : at + batch]) for at in starts)
    hits = sum(int(np.sum(np.asarray(guesses(images)) == classes)) for images, classes in parts)
    return 100 * hits / len(split.targets)


def shift(inputs: jax.Array, key: jax.Array, pixels: int) -> jax.Array:
    """Move every image by up to so many pixels along both axes; what comes in is 0.

    Args:
      inputs: [N, H, W, C].
      key: chooses the shifts.
      pixels: largest shift; 4 is the "random crop with padding 4" of CIFAR-10 recipes.
    """
    count, *shape = inputs.shape
    padded = jnp.pad(inputs, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))
    corners = jax.random.randint(key, (count, 2), 0, 2 * pixels + 1)
    crop = lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), shape)
    return jax.vmap(crop)(padded, corners)


def mirror(inputs: jax.Array, key: jax.Array) -> jax.Array:
    """Mirror every image left to right with probability 1/2."""
    chosen = jax.random.bernoulli(key, 0.5, (inputs.shape[0], 1, 1, 1))
    return jnp.where(chosen, inputs[:, :, ::-1], inputs)
