"""Tiny models of every kind that users bring: what the tap engine must get right, one row each."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

N, CLASSES = 4, 3


class Net(NamedTuple):
    """`apply(params, inputs) -> logits [N, 3]`, and a batch with labels; all float64."""

    params: Any
    apply: Any
    batch: Any


class Row(NamedTuple):
    """A model of the zoo.

    Attributes:
      make: builds it; to be called with 64-bit types on.
      slow: names of the leaves in `fallback_paths`; None for all.
      hessian: is the Gauss-Newton diagonal said to be the Hessian's?
      differs: are the two known to differ?
    """

    make: Callable[[], Net]
    slow: tuple[str, ...] | None = ()
    hessian: bool = True
    differs: bool = False


ZOO: dict[str, Row] = {}
smooth = {"hessian": False, "differs": True}


def row(name: str, **columns: Any) -> Callable[[Any], Any]:
    def add(make: Callable[[], Net]) -> Callable[[], Net]:
        ZOO[name] = Row(make, **columns)
        return make

    return add


class Draw:
    def __init__(self, seed: int = 0):
        self.rng = np.random.default_rng(seed)

    def __call__(self, *shape: int) -> Any:
        return jnp.asarray(self.rng.normal(size=shape) * 0.7, jnp.float64)

    def integers(self, high: int, *shape: int) -> Any:
        return jnp.asarray(self.rng.integers(0, high, shape), jnp.int32)


def plain(shapes: dict[str, tuple[int, ...]], inputs: Any, apply: Any) -> Net:
    """A model over a dict of arrays; `inputs` is a shape, or the inputs themselves."""
    draw = Draw(len(shapes) + sum(map(len, shapes.values())))
    width = lambda shape: max(1, int(np.prod(shape[:-1]))) ** 0.5
    params = {name: draw(*shape) * 1.4 / width(shape) for name, shape in shapes.items()}
    x = draw(N, *inputs) if isinstance(inputs, tuple) else inputs
    return Net(params, apply, (x, draw.integers(CLASSES, N)))


def linen(module: nn.Module, inputs: Any, **options: Any) -> Net:
    """A Flax module; all its variables are the parameters."""
    draw = Draw(1)
    x = draw(N, *inputs) if isinstance(inputs, tuple) else inputs
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    fill = lambda v: draw(*v.shape) if len(v.shape) > 1 else 0.3 + jnp.abs(draw(*v.shape))
    variables = jax.tree.map(fill, shapes)  # vectors, variances among them, are positive

    def apply(variables: Any, x: Any) -> Any:
        out = module.apply(variables, x, **options)
        return out[0] if options else out

    return Net(variables, apply, (x, draw.integers(CLASSES, N)))


def flat(x: Any) -> Any:
    return x.reshape(x.shape[0], -1)


relu = jax.nn.relu

# Dense layers, and what a weight can go through before it enters one.


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


def conv(kernel: tuple[int, ...], inputs: tuple[int, ...], layout: Any, **options: Any) -> Net:
    """A convolution, ReLU and a dense readout."""
    strides = options.pop("strides", (1,) * (len(kernel) - 2))
    padding = options.pop("padding", "SAME")

    def maps(w: Any, x: Any) -> Any:
        return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=layout, **options)

    w, x = (jax.ShapeDtypeStruct(s, jnp.float64) for s in (kernel, (1, *inputs)))
    size = jax.eval_shape(maps, w, x).size
    apply = lambda p, x: flat(relu(maps(p["w"], x))) @ p["head"]
    return plain({"w": kernel, "head": (size, 3)}, inputs, apply)


NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")
CONVOLUTIONS: dict[str, Any] = {
    "conv": ((3, 3, 2, 3), (5, 4, 2), NHWC, {}),
    "conv, VALID, strided": (
        (3, 2, 2, 3), (7, 6, 2), NHWC, {"strides": (2, 3), "padding": "VALID"}
    ),
    "conv, SAME, strided": ((3, 3, 2, 2), (7, 6, 2), NHWC, {"strides": (2, 2)}),
    "conv, dilated": ((2, 3, 2, 2), (7, 6, 2), NHWC, {"rhs_dilation": (2, 2)}),
    "conv, odd padding": (
        (2, 3, 2, 2), (4, 5, 2), NHWC, {"padding": ((0, 3), (4, 1)), "strides": (1, 2)}
    ),
    "conv, negative padding": ((2, 2, 2, 2), (6, 6, 2), NHWC, {"padding": ((-1, 1), (0, -2))}),
    "conv, grouped": ((3, 3, 2, 6), (4, 4, 4), NHWC, {"feature_group_count": 2}),
    "conv, depthwise": ((3, 3, 1, 4), (4, 4, 4), NHWC, {"feature_group_count": 4}),
    "conv, depthwise, two each": (
        (2, 2, 1, 6), (4, 4, 3), NHWC, {"feature_group_count": 3, "strides": (2, 1)}
    ),
    "conv, transposed": (
        (3, 3, 2, 2), (3, 3, 2), NHWC, {"lhs_dilation": (2, 2), "padding": ((1, 2), (2, 1))}
    ),
    "conv, channels first": ((3, 2, 3, 3), (2, 5, 4), NCHW, {"strides": (2, 1)}),
    "conv, grouped, channels first": ((4, 2, 2, 2), (4, 4, 3), NCHW, {"feature_group_count": 2}),
    "conv, 1 by 1": ((1, 1, 3, 2), (4, 3, 3), NHWC, {}),
    "conv, strange layout": ((3, 2, 2, 3), (5, 4, 2), ("NHWC", "HOIW", "NCWH"), {}),
    "conv, 1-D": ((3, 2, 3), (9, 2), ("NHC", "HIO", "NHC"), {"strides": (2,)}),
    "conv, 3-D": ((2, 2, 2, 1, 2), (4, 3, 3, 1), ("NDHWC", "DHWIO", "NDHWC"), {}),
    "conv, whole image": ((4, 4, 2, 3), (4, 4, 2), NHWC, {"padding": "VALID"}),
}  # fmt: skip
for _name, (_kernel, _inputs, _layout, _options) in CONVOLUTIONS.items():
    row(_name)(partial(conv, _kernel, _inputs, _layout, **_options))


@row("flax transposed convolution")
def _() -> Net:
    class Up(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.ConvTranspose(2, (3, 3), (2, 2), param_dtype=jnp.float64)(x)
            return nn.Dense(3, param_dtype=jnp.float64)(flat(nn.relu(x)))

    return linen(Up(), (3, 3, 2))


def pooled(pool: Any) -> Net:
    def apply(p: Any, x: Any) -> Any:
        x = relu(lax.conv_general_dilated(x, p["w"], (1, 1), "SAME", dimension_numbers=NHWC))
        return flat(pool(x)) @ p["head"]

    size = jax.eval_shape(pool, jax.ShapeDtypeStruct((1, 6, 6, 2), jnp.float64)).size
    return plain({"w": (3, 3, 2, 2), "head": (size, 3)}, (6, 6, 2), apply)


POOLS = {
    "max-pool": lambda x: nn.max_pool(x, (2, 2), (2, 2)),
    "max-pool, overlapping": lambda x: nn.max_pool(x, (3, 3), (2, 2)),
    "max-pool, SAME": lambda x: nn.max_pool(x, (3, 2), (2, 2), "SAME"),
    "avg-pool": lambda x: nn.avg_pool(x, (2, 2), (2, 2)),
    "avg-pool, overlapping, SAME": lambda x: nn.avg_pool(x, (3, 3), (2, 2), "SAME"),
    "global average": lambda x: jnp.mean(x, (1, 2)),
    "global maximum": lambda x: jnp.max(x, (1, 2)),
}
for _name, _pool in POOLS.items():
    row(_name)(partial(pooled, _pool))


# Norms. Flax modules compute in float64 because their parameters are.


class Normed(nn.Module):
    norm: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Conv(4, (2, 2), param_dtype=jnp.float64)(x)
        x = nn.relu(self.norm()(x))
        return nn.Dense(3, param_dtype=jnp.float64)(flat(x))


@row("batch norm, evaluated", **smooth)
def _() -> Net:
    norm = partial(nn.BatchNorm, use_running_average=True, param_dtype=jnp.float64)
    return linen(Normed(norm), (3, 3, 2))


@row("batch norm, frozen statistics")
def _() -> Net:
    norm = partial(nn.BatchNorm, use_running_average=True, param_dtype=jnp.float64)
    net = linen(Normed(norm), (3, 3, 2))
    stats = net.params["batch_stats"]
    apply = lambda params, x: net.apply({"params": params, "batch_stats": stats}, x)
    return Net(net.params["params"], apply, net.batch)


@row("batch norm, training", slow=None, **smooth)
def _() -> Net:
    norm = partial(nn.BatchNorm, use_running_average=False, param_dtype=jnp.float64)
    return linen(Normed(norm), (3, 3, 2), mutable=["batch_stats"])


@row("layer norm", **smooth)
def _() -> Net:
    return linen(Normed(partial(nn.LayerNorm, param_dtype=jnp.float64)), (3, 3, 2))


@row("group norm", **smooth)
def _() -> Net:
    return linen(Normed(partial(nn.GroupNorm, 2, param_dtype=jnp.float64)), (3, 3, 2))


# Attention, embeddings, recurrence.


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
