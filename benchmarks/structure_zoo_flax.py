"""Small networks in Flax, one for each kind of coupling; `structure_zoo_torch` has their twins."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measuring  # isort: skip  # sets XLA's threads: before jax  # noqa: F401

import jax
import jax.numpy as jnp
from flax import linen as nn

from benchmarks.structure_nets import conv, norm, pooled

WORDS, PLACES = 24, 6


class Dense(nn.Module):
    """Two dense blocks with a transition between them."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = conv(16)(x)
        for block in range(2):
            for _ in range(3):
                h = conv(24, 1)(nn.relu(norm()(x)))
                h = conv(12)(nn.relu(norm()(h)))
                x = jnp.concatenate([x, h], -1)
            x = nn.relu(norm()(x))
            if not block:
                x = nn.avg_pool(conv(26, 1)(x), (2, 2), (2, 2))
        return nn.Dense(10)(pooled(x))


class ResNeXt(nn.Module):
    """Bottlenecks whose inner convolution has 4 groups."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(norm()(conv(32)(x)))
        for _ in range(2):
            h = nn.relu(norm()(conv(32, 1)(x)))
            h = nn.relu(norm()(conv(32, 3, 1, 4)(h)))
            x = nn.relu(x + norm()(conv(32, 1)(h)))
        return nn.Dense(10)(pooled(x))


class MobileNet(nn.Module):
    """Inverted residuals: a channel of a depthwise convolution is one of both sides."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu6(norm()(conv(16)(x)))
        for width, stride in ((16, 1), (24, 2), (24, 1)):
            inner = 4 * x.shape[-1]
            h = nn.relu6(norm()(conv(inner, 1)(x)))
            h = nn.relu6(norm()(conv(inner, 3, stride, inner)(h)))
            h = norm()(conv(width, 1)(h))
            x = x + h if x.shape == h.shape else h
        return nn.Dense(10)(pooled(x))


class SqueezeExcite(nn.Module):
    """Channels weighted by a sigmoid of all channels' means."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(norm()(conv(16)(x)))
        for _ in range(2):
            h = norm()(conv(16)(x))
            gate = nn.relu(nn.Conv(8, (1, 1))(jnp.mean(h, (1, 2), keepdims=True)))
            x = nn.relu(x + h * nn.sigmoid(nn.Conv(16, (1, 1))(gate)))
        return nn.Dense(10)(pooled(x))


class UNet(nn.Module):
    """One step down, one up, and what was there before beside it."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        skip = nn.relu(norm()(conv(16)(x)))
        h = nn.relu(norm()(conv(32)(nn.max_pool(skip, (2, 2), (2, 2)))))
        h = nn.ConvTranspose(16, (2, 2), (2, 2))(h)
        h = nn.relu(norm()(conv(16)(jnp.concatenate([skip, h], -1))))
        return nn.Conv(2, (1, 1))(h)


class TiedAutoencoder(nn.Module):
    """The decoder is the encoder's transpose."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        encoder = nn.Dense(32)
        h = nn.relu(encoder(x))
        kernel = encoder.variables["params"]["kernel"]
        return h @ kernel.T + self.param("bias", nn.initializers.ones, (x.shape[-1],))


class TiedLM(nn.Module):
    """A language model whose logits are by the embedding; no norm, no attention."""

    @nn.compact
    def __call__(self, words: jax.Array) -> jax.Array:
        embed = nn.Embed(WORDS, 16)
        x = embed(words)
        x = x + nn.Dense(16)(nn.relu(nn.Dense(32)(x)))
        return embed.attend(x)


class Attention(nn.Module):
    """Flax's multi-head attention in a residual stream, without norms."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(32)(x)
        x = x + nn.MultiHeadDotProductAttention(4)(x, x)
        return nn.Dense(10)(x)


class FusedAttention(nn.Module):
    """Queries, keys and values by one kernel, written by hand."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(32)(x)
        qkv = nn.Dense(96)(x).reshape(*x.shape[:2], 3, 4, 8)
        q, k, v = jnp.moveaxis(qkv, 2, 0)
        weights = nn.softmax(jnp.einsum("nthd,nshd->nhts", q, k) * 8**-0.5)
        h = jnp.einsum("nhts,nshd->nthd", weights, v).reshape(*x.shape[:2], -1)
        return nn.Dense(10)(x + nn.Dense(32)(h))


class GroupedQueries(nn.Module):
    """8 heads of queries to 2 of keys and values."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(32)(x)
        q = nn.Dense(64, use_bias=False)(x).reshape(*x.shape[:2], 8, 8)
        k, v = (nn.Dense(16, use_bias=False)(x).reshape(*x.shape[:2], 2, 8) for _ in range(2))
        k, v = jnp.repeat(k, 4, 2), jnp.repeat(v, 4, 2)
        weights = nn.softmax(jnp.einsum("nthd,nshd->nhts", q, k) * 8**-0.5)
        h = jnp.einsum("nhts,nshd->nthd", weights, v).reshape(*x.shape[:2], -1)
        return nn.Dense(10)(x + nn.Dense(32, use_bias=False)(h))


class PreNorm(nn.Module):
    """A block of a transformer, LayerNorm before attention and before the dense layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(32)(x)
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(4)(h, h)
        x = x + nn.Dense(32)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))
        return nn.Dense(10)(nn.LayerNorm()(x))


class LSTM(nn.Module):
    """The last state of an LSTM, then a dense layer."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        states: Any = nn.RNN(nn.OptimizedLSTMCell(32))(x)
        return nn.Dense(10)(states[:, -1])


class GLU(nn.Module):
    """A gated layer: gate and value are two layers, or the halves of one."""

    fused: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(32)(x)
        if self.fused:
            gate, value = jnp.split(nn.Dense(128)(x), 2, -1)
        else:
            gate, value = nn.Dense(64)(x), nn.Dense(64)(x)
        return nn.Dense(10)(x + nn.Dense(32)(nn.silu(gate) * value))
