"""Networks with control flow, rematerialisation, and rules of differentiation inside."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from tests.structure.nets_kit import Parts, bare, floats, linen, net, relu


@net("remat_linen", 8, 10, 11)
def _() -> Parts:
    class Residual(nn.Module):
        hidden: int

        @nn.compact
        def __call__(self, x: Any) -> Any:
            return x + nn.Dense(8)(nn.gelu(nn.Dense(self.hidden)(x)))

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Dense(8)(x)
            for hidden in (10, 11):
                x = nn.remat(Residual)(hidden)(x)
            return nn.Dense(4)(x)

    return linen(Model(), floats(3, 6))


def residual(p: Any, x: Any) -> Any:
    return x + jnp.tanh(x @ p["up"] + p["bias"]) @ p["down"]


def residual_shapes(width: int, hidden: int, *layers: int) -> dict[str, tuple[int, ...]]:
    up, down = (*layers, width, hidden), (*layers, hidden, width)
    return {"up": up, "bias": (*layers, hidden), "down": down}


@net("checkpoint_and_jit", 7, 9, 10)
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        x = jax.jit(lambda p, x: relu(x @ p["embed"]))(p, x)
        x = jax.checkpoint(residual)(p["one"], x)
        return jax.jit(jax.checkpoint(residual))(p["two"], x) @ p["head"]

    shapes = {"one": residual_shapes(7, 9), "two": residual_shapes(7, 10)}
    return bare(shapes | {"embed": (6, 7), "head": (7, 4)}, apply, floats(3, 6))


@net("cond", 6, 7, 8, 9)  # a hidden layer of 7 or one of 9; each is taken once
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        h = jnp.tanh(x @ p["embed"])
        one = lambda h: relu(h @ p["up1"] + p["b1"]) @ p["down1"]
        two = lambda h: jnp.tanh(h @ p["up2"] + p["b2"]) @ p["down2"]
        first = lax.cond(x.sum() > 0, one, two, h)
        return relu(first + lax.cond(x.sum() > 0, two, one, h**2)) @ p["head"]

    shapes = {"embed": (5, 8), "up1": (8, 7), "b1": (7,), "down1": (7, 6), "up2": (8, 9)}
    shapes |= {"b2": (9,), "down2": (9, 6), "head": (6, 4)}
    return bare(shapes, apply, floats(3, 5))


@net("switch", 6, 8)  # the third branch has no layer: the stream of 8 is one group
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        h = jnp.tanh(x @ p["embed"])
        branches = [lambda h: relu(h @ p["w"]), lambda h: relu(h @ p["up"]) @ p["down"]]
        first = jnp.argmax(x.sum(0))
        for step in range(3):
            h = lax.switch((first + step) % 3, [*branches, lambda h: h * h], h)
        return h @ p["head"]

    shapes = {"embed": (5, 8), "w": (8, 8), "up": (8, 6), "down": (6, 8), "head": (8, 4)}
    return bare(shapes, apply, floats(3, 5, seed=1))


@net("while_loop", 8, 9)
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        x = x @ p["embed"] + p["b"]

        def step(state: Any) -> Any:
            count, h = state
            return count + 1, jnp.tanh(relu(h @ p["up"]) @ p["down"] + x)

        _, h = lax.while_loop(lambda state: state[0] < 4, step, (0, jnp.zeros_like(x)))
        return h @ p["head"]

    shapes = {"embed": (5, 8), "b": (8,), "up": (8, 9), "down": (9, 8), "head": (8, 4)}
    return bare(shapes, apply, floats(3, 5))


@net("while_loop_by_data", 8)  # the number of steps is computed, so the loop is no scan
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        steps = 2 + (x.sum() > 0).astype(int)
        step = lambda i, h: jnp.tanh(h @ p["again"] + p["b"])
        return lax.fori_loop(0, steps, step, x @ p["embed"]) @ p["head"]

    return bare({"embed": (5, 8), "again": (8, 8), "b": (8,), "head": (8, 4)}, apply, floats(3, 5))


@net("fori_loop_over_stack", 7, 9)  # the stack of 3 is indexed inside the loop
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        layer = lambda i, h: residual(jax.tree.map(lambda leaf: leaf[i], p["layers"]), h)
        return lax.fori_loop(0, 3, layer, x @ p["embed"]) @ p["head"]

    shapes = {"embed": (6, 7), "layers": residual_shapes(7, 9, 3), "head": (7, 4)}
    return bare(shapes, apply, floats(3, 6))


@net("scan_over_layers", 8, 10)
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        layer = lambda h, p: (residual(p, h), None)
        return lax.scan(layer, x @ p["embed"], p["layers"])[0] @ p["head"]

    shapes = {"embed": (6, 8), "layers": residual_shapes(8, 10, 3), "head": (8, 4)}
    return bare(shapes, apply, floats(3, 6))


@net("scan_over_square_layers", 9)  # [L, D, D]: what goes in comes out, and skips to the head
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        layer = jax.checkpoint(lambda h, wb: (jnp.tanh(h @ wb[0] + wb[1]),) * 2)
        h, states = lax.scan(layer, x @ p["embed"], (p["w"], p["b"]))
        return h @ p["head"] + states.mean((0, 1)) @ p["skip"]

    shapes = {"embed": (6, 9), "w": (4, 9, 9), "b": (4, 9), "head": (9, 3), "skip": (9, 3)}
    return bare(shapes, apply, floats(3, 6))


@net("scan_linen", 7, 10)
def _() -> Parts:
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: Any, _: None) -> Any:
            h = nn.BatchNorm(use_running_average=True)(x)
            return x + nn.Dense(7)(nn.silu(nn.Dense(10)(h))), None

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            axes = {"params": 0, "batch_stats": 0}
            layers = nn.scan(Layer, axes, split_rngs={"params": True}, length=3)
            return nn.Dense(4)(layers()(nn.Dense(7)(x), None)[0])

    return linen(Model(), floats(3, 6))


@net("vmap_ensemble", 8, 9)  # each of 3 members gives an output of its own
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        member = lambda p: jnp.tanh(relu(x @ p["w1"] + p["b1"]) @ p["w2"]) @ p["w3"]
        return jax.vmap(member)(p)

    shapes = {"w1": (3, 6, 8), "b1": (3, 8), "w2": (3, 8, 9), "w3": (3, 9, 4)}
    return bare(shapes, apply, floats(4, 6))


@net("vmap_over_examples", 7, 8)  # a function of one image
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        def one(x: Any) -> Any:
            axes = ("NHWC", "HWIO", "NHWC")
            conv = lambda x, w: lax.conv_general_dilated(
                x[None], w, (2, 2), "SAME", dimension_numbers=axes
            )[0]
            return relu(conv(relu(conv(x, p["one"]) + p["b"]), p["two"])).mean((0, 1)) @ p["out"]

        return jax.vmap(one)(x)

    shapes = {"one": (3, 3, 2, 7), "b": (7,), "two": (3, 3, 7, 8), "out": (8, 3)}
    return bare(shapes, apply, floats(3, 6, 6, 2))


@net("custom_derivatives", 7, 9)
def _() -> Parts:
    @jax.custom_jvp
    def bend(x: Any) -> Any:
        return x * jax.nn.sigmoid(x)

    bend.defjvp(lambda primals, tangents: (bend(*primals), tangents[0]))

    @jax.custom_vjp
    def layer(p: Any, x: Any) -> Any:
        return x @ p["w"] + p["b"]

    def back(kept: Any, g: Any) -> Any:  # twice the derivative: who differentiates inside differs
        p, x = kept
        return {"w": 2 * x.T @ g, "b": 2 * g.sum(0)}, 2 * g @ p["w"].T

    layer.defvjp(lambda p, x: (layer(p, x), (p, x)), back)

    def apply(layers: Any, x: Any) -> Any:
        for p in layers[:-1]:
            x = bend(layer(p, x))
        return layer(layers[-1], x)

    sizes = ((6, 7), (7, 9), (9, 4))
    return bare([{"w": size, "b": size[1:]} for size in sizes], apply, floats(3, 6))
