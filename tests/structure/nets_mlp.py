"""Networks of dense layers, and what they put between two of them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tests.structure.nets_kit import Parts, bare, fill, floats, linen, net, relu, shape


class MLP(nn.Module):
    widths: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for width in self.widths[:-1]:
            x = relu(nn.Dense(width, param_dtype=self.dtype)(x))
        return nn.Dense(self.widths[-1], param_dtype=self.dtype)(x)


@net("mlp_linen", 11, 13)
def _() -> Parts:
    return linen(MLP((11, 13, 5)), floats(4, 7))


@net("mlp_list", 9, 10)
def _() -> Parts:
    def apply(layers: Any, x: Any) -> Any:
        for w, b in layers[:-1]:
            x = jnp.tanh(x @ w + b)
        return x @ layers[-1][0] + layers[-1][1]

    return bare([((6, 9), (9,)), ((9, 10), (10,)), ((10, 4), (4,))], apply, floats(3, 6))


@jax.tree_util.register_dataclass
@dataclass
class Weights:
    """A dataclass pytree, with one field that is no array."""

    first: Any
    second: Any
    biases: dict[str, Any]
    bend: str = field(metadata={"static": True})


@net("mlp_dataclass", 8, 12)
def _() -> Parts:
    def apply(p: Weights, x: Any) -> Any:
        bend = getattr(jax.nn, p.bend)
        return bend(bend(x @ p.first + p.biases["one"]) @ p.second) @ p.biases["out"]

    biases = {"one": (8,), "out": (12, 3)}
    return bare(Weights((5, 8), (8, 12), biases, "silu"), apply, floats(4, 5))


@net("bfloat16_mlp", 9, 14)
def _() -> Parts:
    return linen(MLP((9, 14, 5), jnp.bfloat16), floats(4, 6))


@net("glu", 9, 10)  # unit i of the first: columns i and 9 + i
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.glu(nn.Dense(18)(x))
            return nn.Dense(5)(relu(nn.Dense(10)(x)))

    return linen(Model(), floats(4, 7))


@net("glu_interleaved", 6, 8)  # unit i: columns 2i and 2i + 1
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        pairs = (relu(x @ p["first"] + p["b"]) @ p["pairs"]).reshape(x.shape[0], 6, 2)
        return pairs[..., 0] * jnp.tanh(pairs[..., 1]) @ p["out"]

    shapes = {"first": (7, 8), "b": (8,), "pairs": (8, 12), "out": (6, 5)}
    return bare(shapes, apply, floats(4, 7))


@net("crelu", 7, 9)  # each unit enters the next layer twice, negated the second time
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for width in (7, 9):
                x = nn.Dense(width)(x)
                x = jnp.concatenate([relu(x), relu(-x)], -1)
            return nn.Dense(4)(x)

    return linen(Model(), floats(4, 6))


@net("maxout", 6, 8)  # a unit has all its pieces: the max is over these
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Dense(6 * 3)(x).reshape(-1, 6, 3).max(-1)
            x = nn.Dense(2 * 8)(x).reshape(-1, 2, 8).max(-2)
            return nn.Dense(5)(x)

    return linen(Model(), floats(4, 7))


@net("highway", 8, 11)  # carry and transform gates: the stream of 8 is one group
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Dense(8)(x)
            for _ in range(2):
                gate = nn.sigmoid(nn.Dense(8)(x))
                x = gate * relu(nn.Dense(8)(x)) + (1 - gate) * x
            return nn.Dense(3)(nn.tanh(nn.Dense(11)(x)))

    return linen(Model(), floats(4, 6))


@net("tied_autoencoder", 5, 8)  # the decoder has the encoder's kernels, turned round
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        h = jnp.tanh(x @ p["outer"] + p["b"])
        code = jnp.tanh(h @ p["inner"] + p["c"])
        return jnp.tanh(code @ p["inner"].T + p["d"]) @ p["outer"].T + p["e"]

    shapes = {"outer": (10, 8), "inner": (8, 5), "b": (8,), "c": (5,), "d": (8,), "e": (10,)}
    return bare(shapes, apply, floats(4, 10))


@net("weight_norm", 9, 12)  # the norm is a plain sum of squares over the layer's inputs
def _() -> Parts:
    def apply(layers: Any, x: Any) -> Any:
        for layer in layers:
            kernel = layer["v"] / jnp.sqrt(jnp.sum(layer["v"] ** 2, 0) + 1e-6)
            x = jnp.tanh(x) @ (kernel * layer["scale"]) + layer["bias"]
        return x

    sizes = [6, 9, 12, 4]
    pairs = itertools.pairwise(sizes)
    shapes = [{"v": (a, b), "scale": (b,), "bias": (b,)} for a, b in pairs]
    return bare(shapes, apply, floats(4, 6))


@net("low_rank_adapters", 2, 3, 10)  # w + a @ b: the two ranks, and the hidden width
def _() -> Parts:
    def apply(layers: Any, x: Any) -> Any:
        first, second = (p["w"] + p["a"] @ p["b"] for p in layers)
        return relu(x @ first + layers[0]["bias"]) @ second

    shapes = [
        {"w": (6, 10), "a": (6, 3), "b": (3, 10), "bias": (10,)},
        {"w": (10, 4), "a": (10, 2), "b": (2, 4)},
    ]
    return bare(shapes, apply, floats(4, 6))


@net("factorization_machine", 5, 8)  # the factors are summed away: five units
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        pairs = (x @ p["v"]) ** 2 - (x**2) @ (p["v"] ** 2)
        return 0.5 * pairs.sum(-1) + (relu(x @ p["w"] + p["b"]) @ p["out"])[:, 0]

    return bare({"v": (9, 5), "w": (9, 8), "b": (8,), "out": (8, 1)}, apply, floats(4, 9))


@net("sums_of_relu_and_softplus", 7, 9)  # softplus(0) is not 0: the 8 are pinned
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        h = jnp.tanh(x @ p["trunk"] + p["b"])
        kept = jax.nn.softplus(h @ p["kept"] + p["d"]).sum(-1)
        return {"relu": relu(h @ p["free"] + p["c"]).sum(-1), "softplus": kept}

    shapes = {"trunk": (6, 9), "b": (9,), "free": (9, 7), "c": (7,), "kept": (9, 8), "d": (8,)}
    return bare(shapes, apply, floats(4, 6))


@net("multi_task", 6, 10, 12)
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            trunk = relu(nn.Dense(10)(relu(nn.Dense(12)(x))))
            return {
                "class": nn.Dense(5)(nn.gelu(nn.Dense(6)(trunk))),
                "box": nn.Dense(4)(trunk),
                "score": nn.Dense(1)(trunk)[:, 0],
            }

    return linen(Model(), floats(4, 7))


@net("siamese_cosine", 6, 9)  # products and norms are plain sums over the embedding
def _() -> Parts:
    def apply(p: Any, a: Any, b: Any) -> Any:
        embed = lambda x: relu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]
        a, b = embed(a), embed(b)
        length = lambda v: jnp.sqrt(jnp.sum(v * v, -1) + 1e-3)
        return jnp.sum(a * b, -1) / (length(a) * length(b))

    shapes = {"w1": (7, 9), "b1": (9,), "w2": (9, 6), "b2": (6,)}
    return bare(shapes, apply, floats(4, 7), floats(4, 7, seed=1))


@net("activations", 6, 7, 8, 9, 10, 11)
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            slopes = self.param("slopes", nn.initializers.ones, (6,))
            x = nn.Dense(6)(x)
            x = nn.Dense(7)(jnp.where(x > 0, x, slopes * x))
            x = nn.Dense(8)(nn.PReLU()(x))
            x = nn.Dense(9)(nn.leaky_relu(x))
            x = nn.Dense(10)(nn.sigmoid(x))
            x = nn.Dense(11)(nn.gelu(x))
            return nn.Dense(4)(nn.softplus(x))

    return linen(Model(), floats(4, 5))


@net("constant_table", 7, 9)  # the table is no parameter: the 8 channels it joins stay
def _() -> Parts:
    table = np.linspace(-1, 1, 8)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Dense(8)(relu(nn.Dense(7)(x)))
            return nn.Dense(4)(relu(nn.Dense(9)(relu(x + jnp.asarray(table, x.dtype)))))

    return linen(Model(), floats(4, 6))


@net("expert_gate", 7, 9)  # a softmax over 4 experts, each with 7 hidden neurons
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        x = jnp.tanh(x @ p["embed"] + p["b"])
        gate = jax.nn.softmax(x @ p["gate"])
        hidden = relu(jnp.einsum("nd,edh->neh", x, p["one"]) + p["c"])
        return jnp.einsum("neh,eho,ne->no", hidden, p["two"], gate)

    shapes = {"embed": (6, 9), "b": (9,), "gate": (9, 4), "one": (4, 9, 7), "c": (4, 7)}
    return bare(shapes | {"two": (4, 7, 5)}, apply, floats(4, 6))


@net("channel_gate", 10, 11)  # a softmax over the 8 channels it gates
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = relu(nn.Dense(8)(relu(nn.Dense(11)(x))))
            x = x * nn.softmax(nn.Dense(8)(x))
            return nn.Dense(4)(relu(nn.Dense(10)(x)))

    return linen(Model(), floats(4, 6))


@net("sorted_channels", 11)  # top-k over 8 channels, a sort over 9
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Dense(8)(relu(nn.Dense(11)(x)))
            x = jnp.where(x >= jax.lax.top_k(x, 3)[0][:, -1:], x, 0)
            return nn.Dense(4)(jnp.sort(nn.Dense(9)(x), -1))

    return linen(Model(), floats(4, 6))


@net("unused_and_integers", 9)  # the axes [5, 7] that nobody reads are no units
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        h = relu(x @ p["w"] + p["b"])
        return h @ p["out"] + p["shift"].astype(x.dtype)

    shapes = {"w": (6, 9), "b": (9,), "out": (9, 4), "unused": (5, 7)}
    run, variables, inputs = bare(shapes, apply, floats(4, 6))
    integers = {"step": shape(dtype=jnp.int32), "shift": shape(4, dtype=jnp.int32)}
    return run, variables | fill(integers), inputs


@net("deep_sets", 6, 8, 10)
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Dense(8)(relu(nn.Dense(6)(x))).sum(1)
            return nn.Dense(3)(relu(nn.Dense(10)(x)))

    return linen(Model(), floats(3, 5, 4))


@net("graph_network", 7, 9)
def _() -> Parts:
    def apply(p: Any, x: Any, edges: Any) -> Any:
        x = relu(edges @ (x @ p["w1"]) + p["b1"])
        x = relu(edges @ (x @ p["w2"]) + x @ p["own"] + p["b2"])
        return x.mean(1) @ p["out"]

    shapes = {"w1": (4, 7), "b1": (7,), "w2": (7, 9), "own": (7, 9), "b2": (9,), "out": (9, 3)}
    return bare(shapes, apply, floats(3, 5, 4), jnp.abs(floats(3, 5, 5, seed=1)) / 3)
