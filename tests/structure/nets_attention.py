"""Attention by Flax's module, and written out with heads as an axis of the kernels.

A norm over the stream pins it. Heads are a group; so is the width of queries and keys, and that
of values and outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tests.structure.nets_kit import (
    Parts,
    abstract,
    bare,
    floats,
    full,
    linen,
    net,
    shape,
    tokens,
)


class Block(nn.Module):
    """Norm, attention, norm, two dense layers. `heads` of `depth` each."""

    heads: int
    depth: int
    hidden: int
    bend: Callable[[Any], Any] = nn.gelu

    @nn.compact
    def __call__(self, x: Any, memory: Any = None, mask: Any = None) -> Any:
        width = x.shape[-1]
        attend = lambda: nn.MultiHeadDotProductAttention(
            self.heads, qkv_features=self.heads * self.depth, out_features=width
        )
        h = nn.LayerNorm()(x)
        x = x + attend()(h, h, mask=mask)
        if memory is not None:
            x = x + attend()(nn.LayerNorm()(x), memory)
        h = self.bend(nn.Dense(self.hidden)(nn.LayerNorm()(x)))
        return x + nn.Dense(width)(h)


Sizes = tuple[tuple[int, int, int], ...]


class Encoder(nn.Module):
    words: int
    width: int
    blocks: Sizes
    classes: int

    @nn.compact
    def __call__(self, words: Any) -> Any:
        places = jnp.arange(words.shape[1])
        x = nn.Embed(self.words, self.width)(words) + nn.Embed(16, self.width)(places)
        for sizes in self.blocks:
            x = Block(*sizes)(x)
        return nn.Dense(self.classes)(nn.LayerNorm()(x).mean(1))


@net("transformer_encoder", *(3, 4, 4), 14, *(2, 5, 5), 16)
def _() -> Parts:
    return linen(Encoder(9, 10, ((3, 4, 14), (2, 5, 16)), 3), tokens(9, 2, 6))


class PostNorm(nn.Module):
    """The norm comes after each sum, as in the first transformer."""

    @nn.compact
    def __call__(self, words: Any) -> Any:
        x = nn.Embed(9, 10)(words) + self.param("positions", nn.initializers.ones, (1, 5, 10))
        for heads, depth, hidden in ((3, 4, 11), (2, 6, 13)):
            attend = nn.MultiHeadAttention(heads, qkv_features=heads * depth, out_features=10)
            x = nn.LayerNorm()(x + attend(x))
            x = nn.LayerNorm()(x + nn.Dense(10)(nn.relu(nn.Dense(hidden)(x))))
        return nn.Dense(4)(x)


@net("transformer_post_norm", *(3, 4, 4), 11, *(2, 6, 6), 13)
def _() -> Parts:
    return linen(PostNorm(), tokens(9, 2, 5))


class Unnormed(nn.Module):
    """Scalars before the sums in place of norms: the stream, too, is a group."""

    @nn.compact
    def __call__(self, words: Any) -> Any:
        x = nn.Embed(9, 7)(words)
        for i, (heads, depth, hidden) in enumerate(((3, 4, 11), (2, 6, 13))):
            alpha = self.param(f"alpha{i}", nn.initializers.ones, ())
            attend = nn.MultiHeadAttention(heads, qkv_features=heads * depth, out_features=7)
            x = x + alpha * attend(x)
            x = x + alpha * nn.Dense(7)(nn.gelu(nn.Dense(hidden)(x)))
        return nn.Dense(5)(x)


@net("transformer_without_norms", 7, *(3, 4, 4), 11, *(2, 6, 6), 13)
def _() -> Parts:
    return linen(Unnormed(), tokens(9, 2, 5))


class Decoder(nn.Module):
    """A causal transformer whose embedding is its output layer; fused queries, keys, values."""

    words: int
    places: int
    width: int
    heads: int
    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, words: Any) -> Any:
        length, split = words.shape[1], (self.heads, self.width // self.heads)
        embed, places = nn.Embed(self.words, self.width), nn.Embed(self.places, self.width)
        x = embed(words) + places(jnp.arange(length))
        causal = jnp.tril(jnp.ones((length, length), bool))
        for hidden in self.hidden:
            qkv = nn.Dense(3 * self.width)(nn.LayerNorm()(x))
            q, k, v = (part.reshape(*x.shape[:2], *split) for part in jnp.split(qkv, 3, -1))
            logits = jnp.einsum("nthd,nshd->nhts", q, k) / split[1] ** 0.5
            weights = nn.softmax(jnp.where(causal, logits, -1e9))
            h = jnp.einsum("nhts,nshd->nthd", weights, v).reshape(x.shape)
            x = x + nn.Dense(self.width)(h)
            h = nn.Dense(hidden)(nn.LayerNorm()(x))
            x = x + nn.Dense(self.width)(nn.gelu(h))
        return embed.attend(nn.LayerNorm()(x))


@net("gpt_tied_fused", 3, 10, 3, 11)  # a unit: a head, with its columns in all three parts
def _() -> Parts:
    return linen(Decoder(9, 7, 12, 3, (10, 11)), tokens(9, 2, 5))


@full("gpt2_small", *(12, 3072) * 12)
def _() -> Parts:
    return abstract(Decoder(50257, 1024, 768, 12, (3072,) * 12), shape(2, 128, dtype=jnp.int32))


class Translator(nn.Module):
    """An encoder, and a causal decoder that looks at it; logits by the target's table."""

    @nn.compact
    def __call__(self, source: Any, target: Any) -> Any:
        memory = Block(3, 4, 9, nn.relu)(nn.Embed(7, 8)(source))
        memory = nn.LayerNorm()(memory)
        embed = nn.Embed(11, 10)
        x = embed(target)
        x = Block(2, 5, 13, nn.relu)(x, memory, nn.make_causal_mask(target))
        return nn.LayerNorm()(x) @ embed.embedding.T


# The encoder's block; the decoder's to itself, to the encoder; its hidden layer.
@net("transformer_translator", *(3, 4, 4), 9, *(2, 5, 5), *(2, 5, 5), 13)
def _() -> Parts:
    return linen(Translator(), tokens(7, 2, 6), tokens(11, 2, 4, seed=1))


def weigh(q: Any, k: Any, bias: Any = 0.0) -> Any:
    """Softmax of products over the places of `k`; [n, t, h, d] and [n, s, h, d]."""
    return jax.nn.softmax(jnp.einsum("nthd,nshd->nhts", q, k) * 0.5 + bias)


def heads(p: Any, name: str, x: Any) -> Any:
    return jnp.einsum("ntd,dhk->nthk", x, p[name])


def mix(p: Any, weights: Any, v: Any) -> Any:
    return jnp.einsum("nhts,nshd,hde->nte", weights, v, p["out"])


def attention(width: int, count: int, depth: int, values: int) -> dict[str, tuple[int, ...]]:
    key = (width, count, depth)
    return {
        "query": key,
        "key": key,
        "value": (width, count, values),
        "out": (count, values, width),
    }


@net("einsum_attention", 3, 4, 5, 6)  # no norms: 6 of the stream; heads 3, keys 5, values 4
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        x = jnp.tanh(x @ p["embed"])
        q, k, v = (heads(p, name, x) for name in ("query", "key", "value"))
        q = q + p["bias"]
        return (x + mix(p, weigh(q, k), v)) @ p["head"]

    shapes = {"embed": (5, 6), "head": (6, 4), "bias": (3, 5)} | attention(6, 3, 5, 4)
    return bare(shapes, apply, floats(2, 5, 5))


@net("relative_bias", 3, 4, 5)  # a table [distances, heads]: its columns go with the heads
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        places = np.arange(6)
        distance = np.clip(places[:, None] - places + 2, 0, 4)
        bias = p["table"][distance].transpose(2, 0, 1)
        q, k, v = (heads(p, name, x) for name in ("query", "key", "value"))
        return mix(p, weigh(q, k, bias), v)

    return bare({"table": (5, 3)} | attention(7, 3, 4, 5), apply, floats(2, 6, 7))


@net("linear_bias_by_head", 4, 5)  # ALiBi: a constant slope for each of the heads
def _() -> Parts:
    slopes = 2.0 ** -np.arange(1, 4)

    def apply(p: Any, x: Any) -> Any:
        places = jnp.arange(6)
        distance = jnp.abs(places[:, None] - places)
        bias = -jnp.asarray(slopes, x.dtype)[:, None, None] * distance
        q, k, v = (heads(p, name, x) for name in ("query", "key", "value"))
        return mix(p, weigh(q, k, bias), v)

    return bare(attention(7, 3, 4, 5), apply, floats(2, 6, 7))


# 3 heads make the logits, which a matrix mixes to those of the 4 that weigh the values.
@net("talking_heads", 3, 4, 5, 6)
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        q, k, v = (heads(p, name, x) for name in ("query", "key", "value"))
        logits = jnp.einsum("nthd,nshd,hg->ngts", q, k, p["mix"])
        return mix(p, jax.nn.softmax(logits * 0.5), v)

    shapes = {"query": (7, 3, 5), "key": (7, 3, 5), "mix": (3, 4), "value": (7, 4, 6)}
    return bare(shapes | {"out": (4, 6, 7)}, apply, floats(2, 5, 7))


@net("linear_attention", 3, 4)  # elu(0) + 1 is not 0, so the width of queries and keys stays
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        q, k, v = (heads(p, name, x) for name in ("query", "key", "value"))
        q, k = jax.nn.elu(q) + 1, jax.nn.elu(k) + 1
        state = jnp.einsum("nshd,nshe->nhde", k, v)
        h = jnp.einsum("nthd,nhde->nthe", q, state)
        h = h / jnp.einsum("nthd,nhd->nth", q, k.sum(1))[..., None]
        return jnp.einsum("nthe,heo->nto", h, p["out"])

    return bare(attention(7, 3, 5, 4), apply, floats(2, 5, 7))


@net("learned_queries", 3, 4, 5, 8)  # the 6 queries are places of the output
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        q = jnp.einsum("md,dhk->mhk", p["learned"], p["query"])[None]
        q = jnp.broadcast_to(q, (x.shape[0], *q.shape[1:]))
        k, v = (heads(p, name, x) for name in ("key", "value"))
        return mix(p, weigh(q, k), v)

    keys = {"learned": (6, 8), "query": (8, 3, 4), "key": (7, 3, 4)}
    shapes = keys | {"value": (7, 3, 5), "out": (3, 5, 2)}
    return bare(shapes, apply, floats(2, 5, 7))
