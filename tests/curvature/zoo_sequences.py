"""Rows of the zoo: attention, embeddings, recurrence and loops."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from tests.curvature.zoo_rows import (
    CLASSES,
    NHWC,
    Draw,
    N,
    Net,
    flat,
    linen,
    plain,
    relu,
    row,
    smooth,
)


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        wide = {"param_dtype": jnp.float64}
        x = nn.Embed(5, 4, **wide)(tokens)
        x = x + self.param("position", nn.initializers.normal(), (6, 4), jnp.float64)
        y = nn.LayerNorm(**wide)(x)
        x = x + nn.MultiHeadDotProductAttention(2, **wide)(y, mask=nn.make_causal_mask(tokens))
        x = x + nn.Dense(4, **wide)(nn.gelu(nn.Dense(5, **wide)(x)))
        return nn.Dense(3, **wide)(jnp.mean(x, axis=1))


@row("transformer", hessian=False)
def _() -> Net:
    return linen(Transformer(), Draw(4).integers(5, N, 6))


@row("embedding with repeated tokens")
def _() -> Net:
    tokens = jnp.array([[0, 0, 0, 1], [2, 1, 2, 1], [4, 3, -1, 0], [2, 2, 2, 2]])
    apply = lambda p, x: relu(flat(p["table"][x] + p["position"])) @ p["head"]
    return plain({"table": (5, 3), "position": (4, 3), "head": (12, 3)}, tokens, apply)


@row("embedding, averaged", **smooth)
def _() -> Net:
    tokens = jnp.array([[0, 0, 0, 1], [2, 1, 2, 1], [4, 3, 3, 0], [2, 2, 2, 2]])
    apply = lambda p, x: jnp.tanh(jnp.mean(jnp.take(p["table"], x, axis=0), 1)) @ p["head"]
    return plain({"table": (6, 3), "head": (3, 3)}, tokens, apply)


@row("embedding with tokens out of bounds")
def _() -> Net:
    tokens = jnp.array([[0, 9, 0, 1], [2, 1, 2, -7], [4, 3, 5, 0], [2, 2, 7, 2]])

    def apply(p: Any, x: Any) -> Any:
        clipped = jnp.take(p["table"], x, axis=0, mode="clip")
        filled = jnp.take(p["other"], x, axis=0, mode="fill", fill_value=0.5)
        return relu(flat(clipped + filled)) @ p["head"]

    return plain({"table": (5, 3), "other": (5, 3), "head": (12, 3)}, tokens, apply)


@row("part of each row looked up", slow=("table", "other"))
def _() -> Net:
    tokens = jnp.array([[0, 0, 2], [2, 1, 2], [4, 3, 0], [2, 2, 2]])
    apply = lambda p, x: relu(flat(p["table"][x, :2] + p["other"][x, 1:3])) @ p["head"]
    return plain({"table": (5, 3), "other": (5, 4), "head": (6, 3)}, tokens, apply)


@row("columns looked up", slow=("table",))
def _() -> Net:
    tokens = jnp.array([[0, 0, 2], [2, 1, 2], [4, 3, 0], [2, 2, 2]])
    apply = lambda p, x: relu(flat(jnp.take(p["table"], x, axis=1).transpose(1, 0, 2))) @ p["head"]
    return plain({"table": (3, 5), "head": (9, 3)}, tokens, apply)


@row("transposed table")
def _() -> Net:
    tokens = jnp.array([[0, 0, 2], [2, 1, 2], [4, 3, 0], [2, 2, 2]])
    apply = lambda p, x: relu(flat(p["table"].T[x])) @ p["head"]
    return plain({"table": (3, 5), "head": (9, 3)}, tokens, apply)


@row("scalars looked up")
def _() -> Net:
    tokens = jnp.array([[0, 0, 2], [2, 1, 2], [4, 3, 0], [2, 2, 2]])
    apply = lambda p, x: relu(p["table"][x]) @ p["head"]
    return plain({"table": (5,), "head": (3, 3)}, tokens, apply)


@row("embedding that is also the head", **smooth)
def _() -> Net:
    tokens = jnp.array([[0, 0, 2], [2, 1, 2], [2, 1, 0], [2, 2, 2]])

    def apply(p: Any, x: Any) -> Any:
        return jnp.sum(jnp.tanh(p["table"][x] @ p["w"]), axis=1) @ p["table"].T

    return plain({"table": (3, 4), "w": (4, 4)}, tokens, apply)


@row("tied layers", **smooth)
def _() -> Net:
    apply = lambda p, x: jnp.tanh(x @ p["w"] @ p["m"]) @ p["w"].T @ p["head"]
    return plain({"w": (4, 5), "m": (5, 5), "head": (4, 3)}, (4,), apply)


@row("siamese", **smooth)
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        left, right = (jnp.tanh(x[:, i] @ p["w"]) for i in (0, 1))
        return (left - right) @ p["head"]

    return plain({"w": (4, 5), "head": (5, 3)}, (2, 4), apply)


def recurrent(cell: Any) -> Net:
    class Recurrent(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            wide = {"param_dtype": jnp.float64}
            return nn.Dense(3, **wide)(nn.RNN(cell(3, **wide))(x)[:, -1])

    return linen(Recurrent(), (4, 2))


CONCATENATED = tuple(  # this cell joins its kernels before it multiplies
    f"params/OptimizedLSTMCell_0/{side}{gate}/{leaf}"
    for side, gate, leaf in itertools.product("ih", "ifgo", ("kernel", "bias"))
    if (side, leaf) != ("i", "bias")
)
row("LSTM", hessian=False)(partial(recurrent, nn.LSTMCell))
row("LSTM, optimised", hessian=False, slow=CONCATENATED)(partial(recurrent, nn.OptimizedLSTMCell))
row("GRU", hessian=False)(partial(recurrent, nn.GRUCell))


@row("recurrent network in a loop", **smooth)
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        h = jnp.zeros((x.shape[0], 3))
        for t in range(x.shape[1]):
            h = jnp.tanh(x[:, t] @ p["in"] + h @ p["h"])
        return h

    return plain({"in": (2, 3), "h": (3, 3)}, (4, 2), apply)


@row("reversed scan with outputs at every step", hessian=False)
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        def step(h: Any, v: Any) -> Any:
            h = jnp.tanh(v @ p["in"] + h @ p["h"] + p["bias"])
            return h, h @ p["out"]

        h = jnp.zeros((x.shape[0], 3))
        ys = lax.scan(step, h, jnp.swapaxes(x, 0, 1), reverse=True, unroll=2)[1]
        return jnp.sum(ys, axis=0)

    shapes = {"in": (2, 3), "h": (3, 3), "bias": (3,), "out": (3, 3)}
    return plain(shapes, (4, 2), apply)


@row("stacked layers in a scan", **smooth)
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        def layer(h: Any, own: Any) -> Any:
            return h + jnp.tanh(h @ own["w"] + own["bias"]), None

        return lax.scan(layer, x, p["layers"])[0] @ p["head"]

    draw = Draw(7)
    layers = {"w": draw(3, 4, 4), "bias": draw(3, 4)}
    params = {"layers": layers, "head": draw(4, 3)}
    return Net(params, apply, (draw(N, 4), draw.integers(CLASSES, N)))


@row("stacked convolutions in a scan", **smooth)
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        def layer(h: Any, w: Any) -> Any:
            return jnp.tanh(lax.conv_general_dilated(h, w, (1, 1), "SAME",
                                                     dimension_numbers=NHWC)), None  # fmt: skip

        return flat(lax.scan(layer, x, p["w"])[0]) @ p["head"]

    return plain({"w": (2, 3, 2, 2, 2), "head": (18, 3)}, (3, 3, 2), apply)


@row("a scan over layers in a scan over time", hessian=False)
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        def now(h: Any, v: Any) -> Any:
            layer = lambda g, w: (jnp.tanh(g @ w.T + v @ p["in"]), None)
            return lax.scan(layer, h, p["w"])[0], None

        h = jnp.zeros((x.shape[0], 3))
        return lax.scan(now, h, jnp.swapaxes(x, 0, 1))[0] @ p["head"]

    return plain({"w": (2, 3, 3), "in": (2, 3), "head": (3, 3)}, (3, 2), apply)


@row("embeddings in a scan", **smooth)
def _() -> Net:
    tokens = jnp.array([[0, 0, 2], [2, 1, 2], [4, 3, 0], [2, 2, 2]])

    def apply(p: Any, x: Any) -> Any:
        step = lambda h, v: (jnp.tanh(h @ p["h"] + p["table"][v]), None)
        return lax.scan(step, jnp.zeros((x.shape[0], 3)), x.T)[0]

    return plain({"table": (5, 3), "h": (3, 3)}, tokens, apply)


@row("a table for each layer in a scan", hessian=False)
def _() -> Net:
    tokens = jnp.array([[0, 0, 2], [2, 1, 2], [4, 3, 0], [2, 2, 2]])

    def apply(p: Any, x: Any) -> Any:
        layer = lambda h, own: (jnp.tanh(h @ p["w"] + jnp.sum(own[x], axis=1)), None)
        return lax.scan(layer, jnp.zeros((x.shape[0], 3)), p["tables"])[0]

    return plain({"tables": (2, 5, 3), "w": (3, 3)}, tokens, apply)


@row("a weight that a scan carries", slow=("w",), **smooth)
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        step = lambda carry, _: ((jnp.tanh(carry[0] @ carry[1]), carry[1] * 0.9), None)
        return lax.scan(step, (x, p["w"]), None, length=3)[0][0] @ p["head"]

    return plain({"w": (4, 4), "head": (4, 3)}, (4,), apply)


# Wrappers, custom rules, control flow.
