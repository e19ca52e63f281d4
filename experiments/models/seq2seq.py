"""Translation by LSTMs with attention, in the shape of GNMT (Wu et al. 2016), at any size.

Parameters are where the TensorFlow NMT tutorial has them, whose model Zhu and Gupta 2017 prune:
decoder layers all read the attention's context, and embeddings and softmax are three matrices. At
4 layers, 36,549 tokens and widths 256, 512, 768, 1024 that is 34, 81, 140 and 211 million.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax

from experiments.models import lstm
from experiments.models.attention import Additive, Attended, Attention
from experiments.models.lstm import LSTM, Carry, Weights
from jaxprune.trees import is_inexact
from jaxprune.types import Params


def prunable(name: str, leaf: Any) -> bool:
    """LSTM kernels, both embeddings and the softmax; not the attention.

    [Inferred] With it the nonzeros that Zhu and Gupta 2017 publish come out: 44, 33 and 23 million
    at 80, 85 and 90 %.
    """
    return is_inexact(leaf) and np.ndim(leaf) >= 2 and "attention" not in name.split("/")


class State(NamedTuple):
    """The decoder between two steps.

    Attributes:
      carries: of every layer, [B, H].
      context: [B, H], what was attended to last.
    """

    carries: tuple[Carry, ...]
    context: jax.Array


class Loop(NamedTuple):
    """Greedy decoding, token by token.

    Attributes:
      place: how many tokens there are.
      token: int [B], the last ones.
      done: bool [B], True after `end`.
      state: of the decoder.
      tokens: int [B, max_len].
    """

    place: jax.Array
    token: jax.Array
    done: jax.Array
    state: State
    tokens: jax.Array


class Seq2Seq(nn.Module):
    """An encoder whose first layer reads both ways, a decoder whose first layer attends.

    The decoder starts from the encoder's last states (its first layer from those of the backward
    direction). Its first layer reads the token and the context attended to before; the others read
    the layer below and the context that the first layer attends to now.

    Attributes:
      source_vocabulary, target_vocabulary: numbers of tokens, padding and marks included.
      width: H, of embeddings and layers.
      layers: of the encoder and of the decoder each, at least 2.
      dropout: rate, on what goes into each layer (but not on the context that is fed back).
      residual: layers from the third on add what they read from the layer below.
      fused: one kernel of all gates, see `LSTM`.
      pad, begin, end: the tokens that mean padding, the start and the end of a target.
      scale: weights start uniform on [-scale, scale).
      forget_bias: of the LSTMs at the start.
    """

    source_vocabulary: int
    target_vocabulary: int
    width: int
    layers: int = 2
    dropout: float = 0.0
    residual: bool = True
    fused: bool = True
    pad: int = 0
    begin: int = 1
    end: int = 2
    scale: float = 0.1
    forget_bias: float = 1.0

    def setup(self) -> None:
        if self.layers < 2:
            raise ValueError(f"The encoder and the decoder need 2 layers, got {self.layers}.")
        start = lstm.uniform(self.scale)
        embed = partial(nn.Embed, features=self.width, embedding_init=start)
        layer = partial(LSTM, self.width, self.fused, self.scale, self.forget_bias)
        self.source_embedding = embed(self.source_vocabulary)
        self.target_embedding = embed(self.target_vocabulary)
        self.forwards, self.backwards = layer(), layer()
        self.encoder = [layer() for _ in range(self.layers - 1)]
        self.decoder = [layer() for _ in range(self.layers)]
        self.attention = Attention(self.width, self.scale)
        self.softmax = nn.Dense(self.target_vocabulary, use_bias=False, kernel_init=start)
        self.drop = nn.Dropout(self.dropout)

    def __call__(
        self, source: jax.Array, target_in: jax.Array, deterministic: bool = True
    ) -> jax.Array:
        """Logits [B, T, V] from source [B, S] and target tokens [B, T]; see `Translator.apply`."""
        drop = partial(self.drop, deterministic=deterministic)
        attention, seen, start = self._encode(source, drop)
        lowest = self.decoder[0](2 * self.width)
        from_token, from_state = _parted(lowest, self.width)
        sums = drop(self.target_embedding(target_in.T)) @ from_token + lowest.bias

        def step(state: State, sums: jax.Array) -> tuple[State, tuple[jax.Array, jax.Array]]:
            state = _attend(from_state, attention, seen, sums, state)
            return state, (state.carries[0].hidden, state.context)

        # Only the lowest layer waits for the attention: the others follow, a whole sequence each.
        _, (x, contexts) = lax.scan(step, State(start.carries[:1], start.context), sums)
        for i, layer in enumerate(self.decoder[1:], 1):
            below, read = x, drop(jnp.concatenate([x, contexts], -1))
            _, x = lstm.scan(layer(2 * self.width), read, start.carries[i])
            x = x + below if self._adds(i) else x
        return self.softmax(drop(jnp.swapaxes(x, 0, 1)))

    def greedy(self, source: jax.Array, max_len: int) -> jax.Array:
        """Tokens [B, max_len]; see `Translator.greedy`."""
        attention, seen, state = self._encode(source, lambda x: x)
        weights = [layer(2 * self.width) for layer in self.decoder]
        from_token, from_state = _parted(weights[0], self.width)
        table = self.target_embedding.embedding
        kernel = self.variables["params"]["softmax"]["kernel"]

        def step(token: jax.Array, state: State) -> tuple[jax.Array, State]:
            sums = jnp.take(table, token, axis=0) @ from_token + weights[0].bias
            state = _attend(from_state, attention, seen, sums, state)
            carries = [state.carries[0]]
            x = carries[0].hidden
            for i, carry in enumerate(state.carries[1:], 1):
                read = jnp.concatenate([x, state.context, carry.hidden], -1)
                into = jnp.concatenate([weights[i].inputs, weights[i].recurrent])
                carries.append(lstm.advance(read @ into + weights[i].bias, carry))
                x = carries[-1].hidden + (x if self._adds(i) else 0)
            return jnp.argmax(x @ kernel, axis=-1), State(tuple(carries), state.context)

        def body(loop: Loop) -> Loop:
            found, state = step(loop.token, loop.state)
            token = jnp.where(loop.done, self.pad, found)
            tokens = loop.tokens.at[:, loop.place].set(token)
            return Loop(loop.place + 1, token, loop.done | (token == self.end), state, tokens)

        batch = source.shape[0]
        first = jnp.full(batch, self.begin)
        tokens = jnp.full((batch, max_len), self.pad)
        more = lambda loop: (loop.place < max_len) & ~jnp.all(loop.done)
        start = Loop(jnp.zeros((), int), first, jnp.zeros(batch, bool), state, tokens)
        return lax.while_loop(more, body, start).tokens

    def _encode(
        self, source: jax.Array, drop: Callable[[jax.Array], jax.Array]
    ) -> tuple[Additive, Attended, State]:
        """The attention, what it attends to, and the decoder before its first step."""
        real = (source != self.pad).T
        x = drop(self.source_embedding(source.T))
        rest = lstm.resting(source.shape[0], self.width)
        _, there = lstm.scan(self.forwards(self.width), x, rest, real)
        end, back = lstm.scan(self.backwards(self.width), x, rest, real, reverse=True)
        x, carries = jnp.concatenate([there, back], -1), [end]
        for i, layer in enumerate(self.encoder, 1):
            below, read = x, drop(x)
            end, x = lstm.scan(layer(read.shape[-1]), read, rest, real)
            x = x + below if self._adds(i) else x
            carries.append(end)
        attention = self.attention()
        seen = attention.over(jnp.swapaxes(x, 0, 1), real.T)
        return attention, seen, State(tuple(carries), jnp.zeros_like(rest.hidden))

    def _adds(self, layer: int) -> bool:
        """Does a layer add what it reads from the layer below?"""
        return self.residual and layer >= 2


def _parted(weights: Weights, width: int) -> tuple[jax.Array, jax.Array]:
    """The lowest layer's kernel from a token [H, 4 H], from context and hidden state [2 H, 4 H]."""
    return weights.inputs[:width], jnp.concatenate([weights.inputs[width:], weights.recurrent])


def _attend(
    from_state: jax.Array, attention: Additive, seen: Attended, sums: jax.Array, state: State
) -> State:
    """The lowest layer a step on, with what it attends to then; `sums` [B, 4 H] has the token."""
    read = jnp.concatenate([state.context, state.carries[0].hidden], -1)
    carry = lstm.advance(sums + read @ from_state, state.carries[0])
    context = attention.context(carry.hidden, seen)
    return State((carry, *state.carries[1:]), context)


@dataclass(frozen=True)
class Translator:
    """A translator as functions of its parameters; hashable, so `jit(model.apply)` is cached.

    Padding may lie anywhere in a source: no real token's logits depend on how much there is.

    Attributes:
      module: the Flax module.
    """

    module: Seq2Seq

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters."""
        one = jnp.ones((1, 1), int)
        return self.module.init(key, one, one)["params"]

    def apply(
        self,
        params: Params,
        source: jax.Array,
        target_in: jax.Array,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits of every next token, under teacher forcing.

        Args:
          params: of `init`.
          source: int [B, S], padded with `module.pad`.
          target_in: int [B, T], beginning with `module.begin`, padded behind.
          key: of dropout; None: deterministic.

        Returns:
          Logits [B, T, V], to be compared with the targets from their first token to `module.end`.
        """
        rngs = None if key is None else {"dropout": key}
        run: Any = self.module.apply
        return run({"params": params}, source, target_in, key is None, rngs=rngs)

    def loss(self, logits: jax.Array, target_out: jax.Array) -> jax.Array:
        """The mean cross-entropy of logits [B, T, V] over real tokens of `target_out` [B, T]."""
        real = target_out != self.module.pad
        each = optax.softmax_cross_entropy_with_integer_labels(logits, target_out)
        return jnp.sum(jnp.where(real, each, 0)) / jnp.maximum(jnp.sum(real), 1)

    @partial(jax.jit, static_argnums=(0, 3))
    def greedy(self, params: Params, source: jax.Array, max_len: int) -> jax.Array:
        """The most likely next token, again and again, until every sentence has ended.

        Args:
          params: of `init`.
          source: int [B, S], padded with `module.pad`.
          max_len: tokens at most, `module.end` among them.

        Returns:
          Tokens int [B, max_len], to `module.end`; `module.pad` behind it.
        """
        run: Any = self.module.apply
        return run({"params": params}, source, max_len, method="greedy")
