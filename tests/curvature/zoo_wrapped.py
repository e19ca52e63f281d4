"""Rows of the zoo: wrappers, custom rules, frameworks, and examples that meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from tests.curvature.zoo_rows import (
    CLASSES,
    Draw,
    N,
    Net,
    flat,
    plain,
    relu,
    row,
    smooth,
)


@row("jit and remat inside", **smooth)
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        block = jax.checkpoint(lambda w, h: h + jnp.tanh(h @ w))
        return jax.jit(lambda p, x: block(p["b"], jax.jit(block)(p["a"], x)))(p, x) @ p["head"]

    return plain({"a": (4, 4), "b": (4, 4), "head": (4, 3)}, (4,), apply)


@row("remat in a scan", **smooth)
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        layer = jax.checkpoint(lambda h, w: (jnp.tanh(h @ w), None))
        return lax.scan(layer, x, p["w"])[0] @ p["head"]

    return plain({"w": (3, 4, 4), "head": (4, 3)}, (4,), apply)


@row("custom_jvp activation", hessian=False)
def _() -> Net:
    @jax.custom_jvp
    def cube(x: Any) -> Any:
        return x**3

    cube.defjvp(lambda primals, tangents: (cube(*primals), 2.5 * primals[0] ** 2 * tangents[0]))
    return plain({"a": (4, 5), "b": (5, 3)}, (4,), lambda p, x: cube(x @ p["a"]) @ p["b"])


@row("custom_vjp layer", slow=("a",), hessian=False)
def _() -> Net:
    @jax.custom_vjp
    def layer(w: Any, x: Any) -> Any:
        return x @ w

    layer.defvjp(lambda w, x: (x @ w, (w, x)), lambda kept, c: (kept[1].T @ c * 2, c @ kept[0].T))
    return plain({"a": (4, 5), "b": (5, 3)}, (4,), lambda p, x: relu(layer(p["a"], x)) @ p["b"])


@row("straight-through quantised weight")
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        step = lax.stop_gradient(jnp.round(p["a"] * 4) / 4 - p["a"])
        return relu(x @ (p["a"] + step)) @ p["b"]

    return plain({"a": (4, 5), "b": (5, 3)}, (4,), apply)


@row("a weight inside a branch", slow=("a", "c", "switch"))
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        small = lambda x: relu(x @ p["a"])
        hidden = lax.cond(jnp.sum(p["switch"]) > 1e6, lambda x: relu(x @ p["c"]), small, x)
        return hidden @ p["b"]

    return plain({"a": (4, 5), "b": (5, 3), "c": (4, 5), "switch": (2,)}, (4,), apply)


@row("nnx module", hessian=False)
def _() -> Net:
    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            wide = {"param_dtype": jnp.float64, "rngs": rngs}
            self.conv = nnx.Conv(2, 3, (2, 2), **wide)
            self.norm = nnx.LayerNorm(3, **wide)
            self.head = nnx.Linear(27, 3, **wide)

        def __call__(self, x: Any) -> Any:
            return self.head(flat(nnx.gelu(self.norm(self.conv(x)))))

    graph, state = nnx.split(Model(nnx.Rngs(0)))
    draw = Draw(2)
    apply = lambda state, x: nnx.merge(graph, state)(x)
    return Net(state, apply, (draw(N, 3, 3, 2), draw.integers(CLASSES, N)))


@row("registered dataclass")
def _() -> Net:
    @jax.tree_util.register_dataclass
    @dataclass
    class Linear:
        weight: Any
        bias: Any

        def __call__(self, v: Any) -> Any:
            return self.weight @ v + self.bias

    @jax.tree_util.register_dataclass
    @dataclass
    class Model:
        layers: list[Linear]

        def __call__(self, v: Any) -> Any:
            return self.layers[1](relu(self.layers[0](v)))

    draw = Draw(5)
    model = Model([Linear(draw(5, 4), draw(5)), Linear(draw(3, 5), draw(3))])
    apply = lambda model, x: jax.vmap(model)(x)
    return Net(model, apply, (draw(N, 4), draw.integers(CLASSES, N)))


# Examples that meet, or seem to.


@row("centred over the batch", slow=None)
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        x = relu(x @ p["a"])
        return (x - jnp.mean(x, axis=0)) @ p["b"]

    return plain({"a": (4, 5), "b": (5, 3)}, (4,), apply)


@row("one mask for the batch", slow=None)
def _() -> Net:
    def apply(p: Any, x: Any) -> Any:
        x = relu(x @ p["a"])
        return jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, x.shape), x, 0) @ p["b"]

    return plain({"a": (4, 5), "b": (5, 3)}, (4,), apply)


@row("divided by the size of the batch", slow=None)
def _() -> Net:
    apply = lambda p, x: relu(x @ p["a"]) / x.shape[0] @ p["b"]
    return plain({"a": (4, 5), "b": (5, 3)}, (4,), apply)
