"""Rows of the zoo: dense layers, moved weights, biases and branches."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.curvature.zoo_rows import (
    Draw,
    N,
    Net,
    flat,
    plain,
    relu,
    row,
    smooth,
)


@row("dense")
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        return relu(x @ p["a"] + p["bias"]) @ p["b"]

    return plain({"a": (4, 5), "bias": (5,), "b": (5, 3)}, (4,), apply)


@row("dense, tanh", **smooth)
def _() -> Net:
    return plain({"a": (4, 5), "b": (5, 3)}, (4,), lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"])


@row("tokens")
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        return jnp.mean(relu(x @ p["a"] + p["bias"]) @ p["b"], axis=1)

    return plain({"a": (4, 5), "bias": (5,), "b": (5, 3)}, (6, 4), apply)


@row("time major", slow=None)
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        rows = jnp.swapaxes(x, 0, 1).reshape(-1, x.shape[-1])
        rows = relu(rows @ p["a"]) @ p["b"]
        return jnp.sum(rows.reshape(x.shape[1], x.shape[0], -1), axis=0)

    return plain({"a": (4, 5), "b": (5, 3)}, (6, 4), apply)


@row("weight on the left")
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        hidden = relu(lax.dot_general(p["a"], x, (((1,), (1,)), ((), ()))))
        return lax.dot_general(p["b"], hidden, (((0,), (0,)), ((), ()))).T

    return plain({"a": (5, 4), "b": (5, 3)}, (4,), apply)


@row("several contracted axes")
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        hidden = relu(jnp.einsum("nthk,khde->ntde", x, p["a"]))
        return jnp.einsum("ntde,teod->no", hidden, p["b"])

    return plain({"a": (3, 2, 2, 3), "b": (4, 3, 3, 2)}, (4, 2, 3), apply)


@row("a weight for each head")
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        hidden = relu(jnp.einsum("nthi,hio->ntho", x, p["a"]))
        return jnp.einsum("ntho,hoc->nc", hidden, p["b"])

    return plain({"a": (2, 3, 4), "b": (2, 4, 3)}, (5, 2, 3), apply)


@row("a weight for each position")
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        return jnp.einsum("nto,to->no", relu(jnp.einsum("nti,tio->nto", x, p["a"])), p["b"])

    return plain({"a": (4, 2, 3), "b": (4, 3)}, (4, 2), apply)


@row("vector times matrix")
def _() -> Net:
    one = lambda p, v: p["b"] @ relu(p["a"] @ v)
    apply = lambda p, x: jax.vmap(partial(one, p))(x)
    return plain({"a": (5, 4), "b": (3, 5)}, (4,), apply)


@row("transposed and reshaped")
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        hidden = relu(x @ p["a"].reshape(5, 4).T[::-1])
        return hidden @ jnp.squeeze(p["b"][None].transpose(0, 2, 1), 0)

    return plain({"a": (2, 2, 5), "b": (3, 5)}, (4,), apply)


@row("one kernel, two layers", **smooth)
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        hidden = jnp.tanh(x @ p["w"][:, :5])
        return hidden @ p["w"][:, 5:8].repeat(2, axis=0)[:5]

    return plain({"w": (4, 9)}, (4,), apply)


@row("queries, keys and values in one kernel", **smooth)
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        q, k, v = jnp.split(x @ p["qkv"], 3, axis=-1)
        return jnp.mean(jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2)) @ v, axis=1)

    return plain({"qkv": (4, 9)}, (5, 4), apply)


@row("sliced into two layers", hessian=False)
def _() -> Net:
    """Linear in every entry, but not in the leaf: the flag is cautious."""

    def apply(p: Any, x: Any) -> Any:
        return relu(x @ p["w"][:, :5]) @ p["w"][:, 5:].reshape(-1)[:15].reshape(5, 3)

    return plain({"w": (4, 9)}, (4,), apply)


@row("strided slice of a weight")
def _() -> Net:
    return plain(
        {"a": (7, 10), "b": (5, 3)}, (3,), lambda p, x: relu(x @ p["a"][1:7:2, ::2]) @ p["b"]
    )


@row("broadcast weight")
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        kernel = jnp.broadcast_to(p["a"][:, None], (4, 5))
        return relu(x @ kernel * p["scale"]) @ p["b"]

    return plain({"a": (4,), "scale": (5,), "b": (5, 3)}, (4,), apply)


@row("a weight twice in one product", slow=("w",), **smooth)
def _() -> Net:
    return plain({"w": (4, 3)}, (4,), lambda p, x: x @ p["w"] @ (p["w"].T @ p["w"]))


@row("a layer and a sum", slow=("w",))
def _() -> Net:
    return plain({"w": (4, 3)}, (4,), lambda p, x: relu(x @ p["w"]) + jnp.sum(p["w"]))


@row("a weight that is its own output", slow=None)
def _() -> Net:
    return plain({"b": (3,)}, (4,), lambda p, x: jnp.broadcast_to(p["b"], (x.shape[0], 3)))


@row("unread leaves")
def _() -> Net:
    net = plain({"a": (4, 3), "idle": (2, 2)}, (4,), lambda p, x: relu(x @ p["a"]))
    return net._replace(params={**net.params, "step": jnp.int32(3), "empty": jnp.zeros((0, 2))})


@row("biases of every shape")
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        hidden = relu(x @ p["a"] + p["each"] - p["scalar"])
        return jnp.sum((hidden * p["column"]) @ p["b"] / 3 + p["last"], axis=1)

    shapes = {"a": (4, 5), "each": (6, 5), "scalar": (), "column": (6, 1), "b": (5, 3)}
    return plain({**shapes, "last": (3,)}, (6, 4), apply)


@row("scale under a division", **smooth)
def _() -> Net:
    apply = lambda p, x: relu(x @ p["a"]) / (3 + p["d"]) @ p["b"]
    return plain({"a": (4, 5), "d": (5,), "b": (5, 3)}, (4,), apply)


@row("weight standardisation", slow=("a",), **smooth)
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        w = (p["a"] - jnp.mean(p["a"], 0)) / jnp.std(p["a"], 0)
        return relu(x @ w) @ p["b"]

    return plain({"a": (4, 5), "b": (5, 3)}, (4,), apply)


@row("masks inside the model", slow=("b",))
def _() -> Net:
    mask = jnp.asarray(np.random.default_rng(3).random((4, 5)) < 0.5)

    def apply(p: Any, x: Any) -> Any:
        return relu(x @ (p["a"] * mask)) @ jnp.where(jnp.arange(15).reshape(5, 3) % 2, p["b"], 0)

    return plain({"a": (4, 5), "b": (5, 3)}, (4,), apply)


@row("two outputs of one layer", **smooth)
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        gate, value = jnp.split(x @ p["a"], 2, axis=-1)
        return (jax.nn.sigmoid(gate) * value) @ p["b"]

    return plain({"a": (4, 6), "b": (3, 3)}, (4,), apply)


@row("deep residual")
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        for name in ("a", "b"):
            x = x + relu(x @ p[name])
        return x @ p["c"]

    return plain({"a": (4, 4), "b": (4, 4), "c": (4, 3)}, (4,), apply)


@row("dense blocks")
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        x = jnp.concatenate([x, relu(x @ p["a"])], axis=-1)
        x = jnp.concatenate([x, relu(x @ p["b"])], axis=-1)
        return x @ p["c"]

    return plain({"a": (4, 2), "b": (6, 2), "c": (8, 3)}, (4,), apply)


@row("inputs and outputs in trees")
def _() -> Net:
    draw = Draw(9)
    inputs = {"left": draw(N, 3), "right": [draw(N, 2, 2)]}

    def apply(p: Any, x: Any) -> Any:
        return relu(x["left"] @ p["a"]) @ p["b"] + flat(x["right"][0]) @ p["c"]

    return plain({"a": (3, 4), "b": (4, 3), "c": (4, 3)}, inputs, apply)


# Convolutions and pooling.
