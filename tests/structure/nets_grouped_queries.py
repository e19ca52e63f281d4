"""Transformers of many queries to one key, with rotary places, and of fused kernels."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from tests.structure.nets_kit import Parts, bare, floats, net, tokens


def rms(x: Any, scale: Any) -> Any:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale


def rotated(x: Any) -> Any:
    """Turns the two halves of each head [n, t, h, d] by angles that grow with the place."""
    half = x.shape[-1] // 2
    speed = 10.0 ** -(jnp.arange(half) / half)
    angle = (jnp.arange(x.shape[1])[:, None] * speed)[:, None].astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    turned = [a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)]
    return jnp.concatenate(turned, -1)


def causal(logits: Any) -> Any:
    return jnp.where(jnp.tril(jnp.ones(logits.shape[-2:], bool)), logits, -1e9)


def swiglu(p: Any, x: Any) -> Any:
    return (jax.nn.silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"]


def block_shapes(width: int, heads: int, kv: int, depth: int, hidden: int) -> Any:
    return {
        "norm1": {"scale": (width,)},
        "query": (width, heads * depth),
        "key": (width, kv * depth),
        "value": (width, kv * depth),
        "out": (heads * depth, width),
        "norm2": {"scale": (width,)},
        "gate": (width, hidden),
        "up": (width, hidden),
        "down": (hidden, width),
    }


# A unit of 2: a head of keys and values with the 3 heads of queries that read it.
@net("gqa_transformer", 2, 10, 2, 11)
def _() -> Parts:
    def attend(p: Any, x: Any) -> Any:
        split = lambda name: (x @ p[name]).reshape(*x.shape[:2], -1, 4)
        q, k, v = rotated(split("query")), rotated(split("key")), split("value")
        k, v = jnp.repeat(k, 3, 2), jnp.repeat(v, 3, 2)
        weights = jax.nn.softmax(causal(jnp.einsum("nthd,nshd->nhts", q, k) / 2))
        h = jnp.einsum("nhts,nshd->nthd", weights, v)
        return h.reshape(*x.shape[:2], -1) @ p["out"]

    def apply(p: Any, words: Any) -> Any:
        x = p["embedding"][words]
        for layer in p["layers"]:
            x = x + attend(layer, rms(x, layer["norm1"]["scale"]))
            x = x + swiglu(layer, rms(x, layer["norm2"]["scale"]))
        return rms(x, p["scale"]) @ p["head"]

    layers = [block_shapes(8, 6, 2, 4, hidden) for hidden in (10, 11)]
    shapes = {"embedding": (9, 8), "layers": layers, "scale": (8,), "head": (8, 9)}
    return bare(shapes, apply, tokens(9, 2, 5))


# The same by a reshape of the queries to [kv, queries of it]: 3 units, each of 2 heads.
@net("gqa_by_reshape", 3, 7, 9)
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        x = jnp.tanh(x @ p["embed"])
        q = (x @ p["query"]).reshape(*x.shape[:2], 3, 2, 4)
        k, v = ((x @ p[name]).reshape(*x.shape[:2], 3, 4) for name in ("key", "value"))
        weights = jax.nn.softmax(causal(jnp.einsum("ntkgd,nskd->nkgts", q, k) / 2))
        h = jnp.einsum("nkgts,nskd->ntkgd", weights, v).reshape(*x.shape[:2], -1)
        x = x + h @ p["out"]
        return (x + swiglu(p, x)) @ p["head"]

    shapes = block_shapes(7, 6, 3, 4, 9) | {"embed": (6, 7), "head": (7, 3)}
    shapes = {name: size for name, size in shapes.items() if isinstance(size, tuple)}
    return bare(shapes, apply, floats(2, 5, 6))


# JAX's own attention, which groups the queries itself; 2 units, and the stream is not normed.
@net("gqa_of_jax", 2, 6)
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        x = jnp.tanh(x @ p["embed"])
        split = lambda name: (x @ p[name]).reshape(*x.shape[:2], -1, 4)
        h = jax.nn.dot_product_attention(
            split("query"), split("key"), split("value"), is_causal=True
        )
        return (x + h.reshape(*x.shape[:2], -1) @ p["out"]) @ p["head"]

    shapes = {"embed": (5, 6), "query": (6, 16), "key": (6, 8), "value": (6, 8)}
    return bare(shapes | {"out": (16, 6), "head": (6, 3)}, apply, floats(2, 5, 5))


# One head of keys and values for all 3 of queries; the width 4 of the keys is turned, so stays.
@net("multi_query_attention", 3, 5, 10)
def _() -> Parts:
    def apply(p: Any, words: Any) -> Any:
        x = p["embedding"][words]
        h = rms(x, p["norm1"]["scale"])
        q = rotated(jnp.einsum("ntd,dhk->nthk", h, p["query"]))
        k = rotated((h @ p["keys"])[:, :, None])[:, :, 0]
        weights = jax.nn.softmax(causal(jnp.einsum("nthd,nsd->nhts", q, k) / 2))
        x = x + jnp.einsum("nhts,nsd,hde->nte", weights, h @ p["values"], p["out"])
        x = x + swiglu(p, rms(x, p["norm2"]["scale"]))
        return x @ p["embedding"].T

    shapes = block_shapes(8, 3, 1, 4, 10) | {"embedding": (9, 8), "query": (8, 3, 4)}
    del shapes["key"], shapes["value"]
    shapes |= {"keys": (8, 4), "values": (8, 5), "out": (3, 5, 8)}
    return bare(shapes, apply, tokens(9, 2, 5))


# Rotary places with heads as an axis: 3 heads, 5 of the values; 4 of the keys are turned.
@net("rotary_heads", 3, 5, 6)
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        x = jnp.tanh(x @ p["embed"])
        q, k, v = (jnp.einsum("ntd,dhk->nthk", x, p[n]) for n in ("query", "key", "value"))
        weights = jax.nn.softmax(jnp.einsum("nthd,nshd->nhts", rotated(q), rotated(k)) / 2)
        h = jnp.einsum("nhts,nshd,hde->nte", weights, v, p["out"])
        return (x + h) @ p["head"]

    shapes = {"query": (6, 3, 4), "key": (6, 3, 4), "value": (6, 3, 5), "out": (3, 5, 6)}
    return bare(shapes | {"embed": (5, 6), "head": (6, 4)}, apply, floats(2, 5, 5))


# One kernel [D, 3 H Dh], reshaped to [3, H, Dh] in one step: 4 heads.
@net("fused_by_reshape", 4, 7)
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        x = jnp.tanh(x @ p["embed"])
        qkv = (x @ p["qkv"] + p["bias"]).reshape(*x.shape[:2], 3, 4, 5)
        q, k, v = (qkv[:, :, i] for i in range(3))
        weights = jax.nn.softmax(jnp.einsum("nthd,nshd->nhts", q, k) / 2)
        h = jnp.einsum("nhts,nshd->nthd", weights, v).reshape(*x.shape[:2], 20)
        return (x + h @ p["out"]) @ p["head"]

    shapes = {"embed": (6, 7), "qkv": (7, 60), "bias": (60,), "out": (20, 7), "head": (7, 3)}
    return bare(shapes, apply, floats(2, 5, 6))


# Stacked kernels [3, D, H, Dh], and a gate for each head: 4 heads, width 5.
@net("stacked_qkv_gated_heads", 4, 5, 6)
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        x = jnp.tanh(x @ p["embed"])
        q, k, v = jnp.einsum("ntd,adhk->anthk", x, p["qkv"])
        weights = jax.nn.softmax(jnp.einsum("nthd,nshd->nhts", q, k) / 2)
        h = jnp.einsum("nhts,nshd->nthd", weights, v)
        h = h * jax.nn.sigmoid(x @ p["gate"])[..., None]
        return jnp.einsum("nthd,hde->nte", h, p["out"])

    shapes = {"embed": (7, 6), "qkv": (3, 6, 4, 5), "gate": (6, 4), "out": (4, 5, 3)}
    return bare(shapes, apply, floats(2, 5, 7))
