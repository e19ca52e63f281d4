"""Recurrent networks: a unit is one hidden index, with all its gates, row and columns."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from tests.structure.nets_kit import Parts, bare, floats, linen, net, relu, tokens, zeros


def lstm(width: int, x: Any, **options: Any) -> Any:
    """An LSTM over axis 1; its state starts in the type of `x`, which Flax leaves at float32."""
    start = (zeros(x, width),) * 2
    return nn.RNN(nn.OptimizedLSTMCell(width), **options)(x, initial_carry=start)


def gru(width: int, x: Any, **options: Any) -> Any:
    return nn.RNN(nn.GRUCell(width), **options)(x, initial_carry=zeros(x, width))


@net("lstm", 5, 6, 7)
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, words: Any) -> Any:
            x = lstm(7, lstm(6, nn.Embed(9, 5)(words)))
            return nn.Dense(4)(x[:, -1])

    return linen(Model(), tokens(9, 3, 5))


@net("lstm_plain_cell", 6, 8)
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            cell = nn.RNN(nn.LSTMCell(6), return_carry=True)
            (cell_state, hidden), _ = cell(x, initial_carry=(zeros(x, 6),) * 2)
            return nn.Dense(4)(nn.tanh(nn.Dense(8)(jnp.concatenate([cell_state, hidden], -1))))

    return linen(Model(), floats(3, 5, 4))


@net("lstm_fused", 5, 6)  # kernels [D + H, 4 H], and a learned state to start from
def _() -> Parts:
    def layer(p: Any, x: Any) -> Any:
        def step(state: Any, x: Any) -> Any:
            c, h = state
            gates = jnp.concatenate([x, h], -1) @ p["kernel"] + p["bias"]
            i, f, g, o = jnp.split(gates, 4, -1)
            c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (c, h), h

        start = [jnp.broadcast_to(p[name], (x.shape[1], p[name].size)) for name in "ch"]
        return lax.scan(step, tuple(start), x)[1]

    def apply(p: Any, x: Any) -> Any:
        x = jnp.swapaxes(x, 0, 1)
        return layer(p["two"], layer(p["one"], x))[-1] @ p["out"]

    cell = lambda d, h: {"kernel": (d + h, 4 * h), "bias": (4 * h,), "c": (h,), "h": (h,)}
    return bare({"one": cell(4, 5), "two": cell(5, 6), "out": (6, 3)}, apply, floats(3, 5, 4))


@net("gru", 6, 7, 8)
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = gru(8, gru(7, nn.Dense(6)(x)))
            return nn.Dense(4)(x.mean(1))

    return linen(Model(), floats(3, 5, 4))


@net("bidirectional_lstm", 5, 7, 8)
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            both = [lstm(5, x), lstm(7, x, reverse=True, keep_order=True)]
            x = relu(nn.Dense(8)(jnp.concatenate(both, -1)))
            return nn.Dense(4)(x.max(1))

    return linen(Model(), floats(3, 5, 4))


@net("bidirectional_gru_sum", 6, 9)  # both directions are added: one group
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            directions = [nn.RNN(nn.GRUCell(6)), nn.RNN(nn.GRUCell(6))]
            merged = nn.Bidirectional(*directions, merge_fn=lambda a, b: a + b)
            x = merged(x, initial_carry=(zeros(x, 6),) * 2)
            return nn.Dense(4)(relu(nn.Dense(9)(x)))

    return linen(Model(), floats(3, 5, 4))


@net("residual_simple_rnn", 7)  # the state is added to the stream that feeds it
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Dense(7)(x)
            for _ in range(2):
                x = x + nn.RNN(nn.SimpleCell(7))(x, initial_carry=zeros(x, 7))
            return nn.Dense(4)(x)

    return linen(Model(), floats(3, 5, 4))


@net("diagonal_state_space", 3, 6, 8)  # 6 channels with 3 states each, which are summed away
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        u = jnp.swapaxes(x @ p["into"] + p["b"], 0, 1)
        decay = jax.nn.sigmoid(p["decay"])

        def step(state: Any, u: Any) -> Any:
            state = decay * state + p["drive"] * u[..., None]
            return state, jnp.sum(state * p["read"], -1)

        start = jnp.zeros((*u.shape[1:], 3), u.dtype)
        y = lax.scan(step, start, u)[1][-1]
        return relu(y @ p["mix"] + p["c"]) @ p["out"]

    states = {"decay": (6, 3), "drive": (6, 3), "read": (6, 3)}
    shapes = {"into": (4, 6), "b": (6,), "mix": (6, 8), "c": (8,), "out": (8, 3)}
    return bare(shapes | states, apply, floats(3, 5, 4))


# The decoder starts in the encoder's state and attends to it by products: one group of 7.
@net("seq2seq_dot_attention", 5, 6, 7, 9)
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, source: Any, target: Any) -> Any:
            source, target = nn.Embed(8, 5)(source), nn.Embed(11, 6)(target)
            start = (zeros(source, 7),) * 2
            encoder = nn.RNN(nn.OptimizedLSTMCell(7), return_carry=True)
            state, memory = encoder(source, initial_carry=start)
            x = nn.RNN(nn.OptimizedLSTMCell(7))(target, initial_carry=state)
            weights = nn.softmax(jnp.einsum("nth,nsh->nts", x, memory))
            context = jnp.einsum("nts,nsh->nth", weights, memory)
            x = nn.tanh(nn.Dense(9)(jnp.concatenate([context, x], -1)))
            return nn.Dense(11)(x)

    return linen(Model(), tokens(8, 2, 5), tokens(11, 2, 4, seed=1))


# Embeddings 5 and 3, the encoder's two directions 4 and 6, the decoder 7, the scorer 8.
@net("seq2seq_additive_attention", 5, 3, 4, 6, 7, 8)
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, source: Any, target: Any) -> Any:
            source, target = nn.Embed(9, 5)(source), nn.Embed(11, 3)(target)
            backward = gru(6, source, reverse=True, keep_order=True)
            memory = jnp.concatenate([gru(4, source), backward], -1)
            x = gru(7, target)
            both = nn.Dense(8)(x)[:, :, None] + nn.Dense(8, use_bias=False)(memory)[:, None]
            scores = nn.Dense(1, use_bias=False)(nn.tanh(both))[..., 0]
            context = jnp.einsum("nts,nsh->nth", nn.softmax(scores), memory)
            return nn.Dense(11)(jnp.concatenate([x, context], -1))

    return linen(Model(), tokens(9, 2, 5), tokens(11, 2, 4, seed=1))


# In the loop: attention to the encoder's 6, fed back into a decoder of 5 beside its own 4.
@net("seq2seq_input_feeding", 4, 5, 6)
def _() -> Parts:
    def apply(p: Any, source: Any, target: Any) -> Any:
        memory = jnp.tanh(source @ p["encode"] + p["b"])

        def step(h: Any, word: Any) -> Any:
            weights = jax.nn.softmax(jnp.einsum("nh,hk,nsk->ns", h, p["score"], memory))
            context = jnp.einsum("ns,nsk->nk", weights, memory)
            seen = jnp.concatenate([p["table"][word], context], -1)
            h = jnp.tanh(seen @ p["from"] + h @ p["again"] + p["c"])
            return h, h @ p["out"]

        start = memory.mean(1) @ p["start"]
        return lax.scan(step, start, target.T)[1]

    shapes = {"encode": (3, 6), "b": (6,), "score": (5, 6), "table": (7, 4), "from": (10, 5)}
    shapes |= {"again": (5, 5), "c": (5,), "out": (5, 7), "start": (6, 5)}
    return bare(shapes, apply, floats(2, 5, 3), tokens(7, 2, 4, seed=1))
