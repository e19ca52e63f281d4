"""Networks of published size for the structure benchmark, and random variables for any network."""

from __future__ import annotations

import sys
import zlib
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measuring  # isort: skip  # sets XLA's threads: before jax  # noqa: F401

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxprune import trees

COMMAND = "python benchmarks/structure.py"
norm = partial(nn.BatchNorm, use_running_average=True)


def conv(width: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Module:
    """A convolution without biases, as they stand before a BatchNorm."""
    return nn.Conv(width, (size, size), stride, feature_group_count=groups, use_bias=False)


def pooled(x: jax.Array) -> jax.Array:
    return jnp.mean(x, axis=(1, 2))


class ResNet(nn.Module):
    """ResNets of ImageNet (He et al. 2016, table 1), shortcuts by projection.

    Attributes:
      depths: blocks of each stage.
      bottleneck: blocks of three convolutions, the last four times as wide.
      stem: widths of the convolutions at the start; several are 3 x 3, one is 7 x 7.
      width: of the first stage, doubled by each one after it.
      classes: number of logits.
    """

    depths: tuple[int, ...]
    bottleneck: bool = False
    stem: tuple[int, ...] = (64,)
    width: int = 64
    classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for place, width in enumerate(self.stem):
            x = conv(width, 7 if len(self.stem) == 1 else 3, 1 if place else 2)(x)
            x = nn.relu(norm()(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, depth in enumerate(self.depths):
            for place in range(depth):
                x = self.block(x, self.width * 2**stage, 2 if stage and not place else 1)
        return nn.Dense(self.classes)(pooled(x))

    def block(self, x: jax.Array, inner: int, stride: int) -> jax.Array:
        if self.bottleneck:
            h = nn.relu(norm()(conv(inner, 1)(x)))
            h = nn.relu(norm()(conv(inner, 3, stride)(h)))
            h = norm()(conv(4 * inner, 1)(h))
        else:
            h = nn.relu(norm()(conv(inner, 3, stride)(x)))
            h = norm()(conv(inner)(h))
        return nn.relu(h + (x if x.shape == h.shape else norm()(conv(h.shape[-1], 1, stride)(x))))


class WideResNet(nn.Module):
    """Wide ResNets (Zagoruyko and Komodakis 2016) for images of 32 x 32; by default WRN-16-4.

    Attributes:
      blocks: of each stage.
      stem: channels of the first convolution.
      widths: of the stages.
      classes: number of logits.
    """

    blocks: int = 2
    stem: int = 16
    widths: tuple[int, ...] = (64, 128, 256)
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = conv(self.stem)(x)
        for stage, width in enumerate(self.widths):
            for block in range(self.blocks):
                stride = 2 if stage and not block else 1
                h = nn.relu(norm()(x))
                x = x if x.shape[-1] == width else conv(width, 1, stride)(h)
                h = nn.relu(norm()(conv(width, 3, stride)(h)))
                x = x + conv(width)(h)
        return nn.Dense(self.classes)(pooled(nn.relu(norm()(x))))


class DenseNet(nn.Module):
    """DenseNet-BC (Huang et al. 2017): three blocks, each of the layers before it side by side."""

    layers: int = 16
    growth: int = 12
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = conv(2 * self.growth)(x)
        for block in range(3):
            for _ in range(self.layers):
                h = conv(4 * self.growth, 1)(nn.relu(norm()(x)))
                h = conv(self.growth)(nn.relu(norm()(h)))
                x = jnp.concatenate([x, h], -1)
            x = nn.relu(norm()(x))
            if block < 2:
                x = nn.avg_pool(conv(x.shape[-1] // 2, 1)(x), (2, 2), (2, 2))
        return nn.Dense(self.classes)(pooled(x))


class ViT(nn.Module):
    """A Vision Transformer (Dosovitskiy et al. 2021); by default ViT-S/16."""

    patch: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(self.width, (self.patch,) * 2, strides=self.patch, padding="VALID")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        first = self.param("class", nn.initializers.ones, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, self.width)), x], 1)
        x = x + self.param("positions", nn.initializers.ones, (1, *x.shape[1:]))
        for _ in range(self.depth):
            h = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(self.heads)(h, h)
            h = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(h)
        return nn.Dense(self.classes)(nn.LayerNorm()(x)[:, 0])


def shapes_of(module: nn.Module, *inputs: Any) -> Any:
    """The variables' shapes; nothing is allocated."""
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)


def filled(shapes: Any) -> Any:
    """Random variables, of BatchNorm too; no bias is zero. The same name draws the same."""

    def draw(path: Any, leaf: Any) -> jax.Array:
        name = jax.tree_util.keystr(path)
        random = np.random.default_rng(zlib.crc32(name.encode()))
        return jnp.asarray(values(random, name, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def values(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    normal = random.normal(size=shape)
    last = name.rpartition("['")[2].rstrip("']")
    if last in ("var", "scale"):
        return random.uniform(0.5, 1.5, shape)
    if len(shape) < 2 or last == "bias":
        return 0.3 * normal
    return 1.4 * normal / np.sqrt(fan_in(name, shape))


def fan_in(name: str, shape: tuple[int, ...]) -> float:
    if "embedding" in name:
        return 1.0
    if len(shape) == 3 and any(word in name for word in ("query", "key", "value")):
        return float(shape[0])  # [D, heads, depth]
    return float(np.prod(shape[:-1]))


def images(batch: int, size: int, channels: int = 3) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.normal(size=(batch, size, size, channels)).astype(np.float32)


def count(tree: Any) -> int:
    return trees.count(tree)
