"""Networks of Flax NNX: the variables are a state, merged again in `apply`."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from tests.structure.nets_kit import Parts, flat, floats, net, pooled, relu, stateful, tokens, zeros


class MLP(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        sizes = ((6, 9), (9, 14), (14, 5))
        self.layers = nnx.List([nnx.Linear(*size, rngs=rngs) for size in sizes])

    def __call__(self, x: Any) -> Any:
        first, second, last = self.layers
        return last(relu(second(relu(first(x)))))


@net("nnx_mlp", 9, 14)
def _() -> Parts:
    return stateful(MLP, floats(4, 6))


class CNN(nnx.Module):
    """Convolutions with norms, one of them depthwise; flattened before the dense layers."""

    def __init__(self, rngs: nnx.Rngs):
        self.one = nnx.Conv(3, 5, (3, 3), rngs=rngs)
        self.norm1 = nnx.BatchNorm(5, rngs=rngs)
        self.each = nnx.Conv(5, 5, (3, 3), feature_group_count=5, rngs=rngs)
        self.two = nnx.Conv(5, 7, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(7, rngs=rngs)
        self.dense = nnx.Linear(2 * 2 * 7, 10, rngs=rngs)
        self.head = nnx.Linear(10, 4, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.each(relu(self.norm1(self.one(x))))
        x = nnx.max_pool(relu(self.norm2(self.two(x))), (2, 2), (2, 2))
        return self.head(relu(self.dense(flat(x))))


@net("nnx_cnn", 5, 7, 10)
def _() -> Parts:
    return stateful(CNN, floats(2, 8, 8, 3))


class Normed(nnx.Module):
    def __init__(self, width: int, out: int, size: int, stride: int, rngs: nnx.Rngs):
        sizes, options = (size, size), {"use_bias": False, "rngs": rngs}
        self.conv = nnx.Conv(width, out, sizes, strides=stride, **options)
        self.norm = nnx.BatchNorm(out, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.norm(self.conv(x))


class Block(nnx.Module):
    def __init__(self, width: int, inner: int, out: int, stride: int, rngs: nnx.Rngs):
        self.one = Normed(width, inner, 3, stride, rngs)
        self.two = Normed(inner, out, 3, 1, rngs)
        self.shortcut = nnx.data(None)
        if width != out:
            self.shortcut = Normed(width, out, 1, stride, rngs)

    def __call__(self, x: Any) -> Any:
        h = self.two(relu(self.one(x)))
        return relu(h + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.stem = Normed(3, 6, 3, 1, rngs)
        sizes = ((6, 5, 6, 1), (6, 7, 6, 1), (6, 9, 8, 2), (8, 10, 8, 1), (8, 4, 11, 2))
        self.blocks = nnx.List([Block(*size, rngs) for size in sizes])
        self.head = nnx.Linear(11, 4, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(pooled(x))


@net("nnx_resnet18", *(6, 5, 7), *(8, 9, 10), *(11, 4))
def _() -> Parts:
    return stateful(ResNet, floats(2, 8, 8, 3))


def embedding(words: int, width: int, rngs: nnx.Rngs) -> nnx.Embed:
    embed = nnx.Embed(words, width, rngs=rngs)
    embed.dtype = None  # that of its table, whatever this becomes
    return embed


class Transformer(nnx.Module):
    """Two blocks; the second norms its queries and keys, whose width stays."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = embedding(9, 10, rngs)
        attend = lambda heads, width, **options: nnx.MultiHeadAttention(
            heads, 10, heads * width, decode=False, keep_rngs=False, rngs=rngs, **options
        )
        self.attend = nnx.List([attend(3, 4), attend(2, 6, normalize_qk=True)])
        self.norms = nnx.List([nnx.LayerNorm(10, rngs=rngs) for _ in range(5)])
        self.up = nnx.List([nnx.Linear(10, width, rngs=rngs) for width in (13, 15)])
        self.down = nnx.List([nnx.Linear(width, 10, rngs=rngs) for width in (13, 15)])

    def __call__(self, words: Any) -> Any:
        x = self.embed(words)
        for i in range(2):
            x = x + self.attend[i](self.norms[2 * i](x))
            x = x + self.down[i](relu(self.up[i](self.norms[2 * i + 1](x))))
        return self.embed.attend(self.norms[4](x))


@net("nnx_transformer", *(3, 4, 4), 13, *(2, 6), 15)
def _() -> Parts:
    return stateful(Transformer, tokens(9, 2, 5))


class Recurrent(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.embed = embedding(9, 5, rngs)
        self.lstm = nnx.RNN(nnx.LSTMCell(5, 6, rngs=rngs), rngs=False)
        self.gru = nnx.RNN(nnx.GRUCell(6, 8, rngs=rngs), rngs=False)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, words: Any) -> Any:
        x = self.embed(words)
        x = self.lstm(x, initial_carry=(zeros(x, 6),) * 2)
        return self.head(self.gru(x, initial_carry=zeros(x, 8))[:, -1])


@net("nnx_lstm_gru", 5, 6, 8)
def _() -> Parts:
    return stateful(Recurrent, tokens(9, 3, 5))


class Shared(nnx.Module):
    """The same layer twice in a row: its inputs and outputs are one group of 8."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Linear(6, 8, rngs=rngs)
        self.twice = nnx.Linear(8, 8, rngs=rngs)
        self.norm = nnx.GroupNorm(10, num_groups=5, rngs=rngs)
        self.mix = nnx.Linear(8, 10, rngs=rngs)
        self.head = nnx.LinearGeneral(10, (2, 3), rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = jnp.tanh(self.twice(jnp.tanh(self.twice(self.embed(x)))))
        return self.head(relu(self.norm(self.mix(x)[:, None])))


@net("nnx_shared_layer", 5, 8)
def _() -> Parts:
    return stateful(Shared, floats(3, 6))
