"""Networks that see an image as patches: ViT, MLP-Mixer, ConvNeXt, FNet."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from tests.structure.nets_attention import Block, Sizes
from tests.structure.nets_kit import (
    Parts,
    abstract,
    floats,
    full,
    linen,
    net,
    pooled,
    relu,
    shape,
)


class ViT(nn.Module):
    patch: int
    width: int
    blocks: Sizes
    classes: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Conv(self.width, (self.patch,) * 2, strides=self.patch, padding="VALID")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        ones = nn.initializers.ones
        cls = self.param("cls", ones, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, self.width)), x], 1)
        x = x + self.param("positions", ones, (1, *x.shape[1:]))
        for sizes in self.blocks:
            x = Block(*sizes)(x)
        return nn.Dense(self.classes)(nn.LayerNorm()(x)[:, 0])


@net("vit", *(2, 5, 5, 13), *(3, 4, 4, 15))
def _() -> Parts:
    return linen(ViT(4, 9, ((2, 5, 13), (3, 4, 15)), 6), floats(2, 8, 8, 3))


@full("vit_s16", *(6, 64, 64, 1536) * 12)
def _() -> Parts:
    return abstract(ViT(16, 384, ((6, 64, 1536),) * 12, 1000), shape(2, 224, 224, 3))


@net("vit_without_norms", 8, *(2, 5, 5, 13), 11)  # the token and the places join the stream
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Conv(8, (4, 4), strides=4)(x).reshape(x.shape[0], 4, 8)
            ones = nn.initializers.ones
            cls = self.param("cls", ones, (1, 1, 8))
            x = jnp.concatenate([jnp.tile(cls, (x.shape[0], 1, 1)), x], 1)
            x = x + self.param("positions", ones, (5, 8))
            x = x + nn.MultiHeadAttention(2, qkv_features=10, out_features=8)(x)
            x = x + nn.Dense(8)(nn.gelu(nn.Dense(13)(x)))
            return nn.Dense(4)(nn.tanh(nn.Dense(11)(x[:, 0])))

    return linen(Model(), floats(2, 8, 8, 3))


@net("mlp_mixer", *(5, 11), *(6, 13))  # the tokens are places of the image, so they stay
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Conv(9, (3, 3), strides=3, padding="VALID")(x).reshape(x.shape[0], -1, 9)
            for tokens, channels in ((5, 11), (6, 13)):
                h = nn.LayerNorm()(x).swapaxes(1, 2)
                h = nn.Dense(x.shape[1])(nn.gelu(nn.Dense(tokens)(h)))
                x = x + h.swapaxes(1, 2)
                h = nn.gelu(nn.Dense(channels)(nn.LayerNorm()(x)))
                x = x + nn.Dense(9)(h)
            return nn.Dense(4)(nn.LayerNorm()(x).mean(1))

    return linen(Model(), floats(2, 6, 6, 3))


@net("convnext", 11, 13)  # norms over the streams of 8 and 10
def _() -> Parts:
    class Model(nn.Module):
        def block(self, x: Any, inner: int, name: str) -> Any:
            width = x.shape[-1]
            h = nn.Conv(width, (7, 7), feature_group_count=width)(x)
            h = nn.gelu(nn.Dense(inner)(nn.LayerNorm()(h)))
            scale = self.param(f"{name}_scale", nn.initializers.ones, (width,))
            return x + nn.Dense(width)(h) * scale

        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = self.block(nn.Conv(8, (4, 4), strides=4)(x), 11, "one")
            x = nn.Conv(10, (2, 2), strides=2)(nn.LayerNorm()(x))
            x = self.block(x, 13, "two")
            return nn.Dense(4)(nn.LayerNorm()(pooled(x)))

    return linen(Model(), floats(2, 16, 16, 3))


@net("fourier_mixer", 9, 11)  # a transform over places and channels, which pins the channels
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Dense(8)(x)
            for inner in (9, 11):
                x = x + jnp.fft.fft2(x).real / 4
                x = x + nn.Dense(8)(nn.gelu(nn.Dense(inner)(x)))
            return nn.Dense(4)(x.mean(1))

    return linen(Model(), floats(2, 5, 6))


@net("fourier_places", 6, 9)  # a transform over the image's places leaves the channels free
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Conv(6, (3, 3))(x)
            x = x + relu(jnp.fft.fft2(x, axes=(1, 2)).real) / 6
            return nn.Dense(4)(relu(nn.Dense(9)(pooled(x))))

    return linen(Model(), floats(2, 6, 6, 3))
