"""Stacked LSTM language models with dropout between the layers (Zaremba et al. 2014)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.models import lstm
from experiments.models.lstm import LSTM, Carry
from jaxprune.trees import is_inexact
from jaxprune.types import Params

Carries = tuple[Carry, ...]
"""The state of every layer, first layer first."""


def prunable(name: str, leaf: Any) -> bool:
    """Every matrix, as in Zhu and Gupta 2017: LSTM kernels, softmax and embedding too."""
    return is_inexact(leaf) and np.ndim(leaf) >= 2


class LSTMLM(nn.Module):
    """Embedding, stacked LSTMs of one width, softmax.

    Attributes:
      vocabulary: V.
      width: H, of the embedding and of every layer.
      layers: number of LSTMs.
      dropout: rate, on what goes into each layer and into the softmax, never from step to step.
      tied: the softmax's kernel is the embedding.
      fused: one kernel of all gates, see `LSTM`.
      scale: all weights start uniform on [-scale, scale).
    """

    vocabulary: int
    width: int
    layers: int = 2
    dropout: float = 0.0
    tied: bool = False
    fused: bool = True
    scale: float = 0.1

    @nn.compact
    def __call__(
        self, tokens: jax.Array, carry: Carries | None = None, deterministic: bool = True
    ) -> tuple[jax.Array, Carries]:
        """Logits [B, T, V] and the states after tokens [B, T]; see `LanguageModel.apply`."""
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        start = lstm.uniform(self.scale)
        table = nn.Embed(self.vocabulary, self.width, embedding_init=start, name="embedding")
        if carry is None:
            carry = tuple(lstm.resting(tokens.shape[0], self.width) for _ in range(self.layers))
        x = drop(table(tokens.T))
        ends = []
        for i, state in enumerate(carry):
            layer = LSTM(self.width, self.fused, self.scale, name=f"lstm_{i}")
            end, x = lstm.scan(layer(self.width), x, state)
            x = drop(x)
            ends.append(end)
        x = jnp.swapaxes(x, 0, 1)
        if self.tied:
            bias = self.param("bias", nn.initializers.zeros, (self.vocabulary,))
            return table.attend(x) + bias, tuple(ends)
        return nn.Dense(self.vocabulary, kernel_init=start, name="softmax")(x), tuple(ends)


@dataclass(frozen=True)
class LanguageModel:
    """A language model as functions of its parameters; hashable, so `jit(model.apply)` is cached.

    Attributes:
      module: the Flax module.
    """

    module: LSTMLM

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters."""
        return self.module.init(key, jnp.zeros((1, 1), int))["params"]

    def start(self, batch: int) -> Carries:
        """The states before the first window: zeros, [batch, H] each."""
        return (lstm.resting(batch, self.module.width),) * self.module.layers

    def apply(
        self,
        params: Params,
        tokens: jax.Array,
        carry: Carries | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Carries]:
        """Logits of every next token, and the states for the window that follows.

        In truncated backpropagation the states that come out are handed to the next step of
        training, where they are an input and no gradient flows into the window before.

        Args:
          params: of `init`.
          tokens: int [B, T].
          carry: the states after the window before; None: zeros.
          key: of dropout; None: deterministic.

        Returns:
          Logits [B, T, V]; the states, [B, H] each.
        """
        rngs = None if key is None else {"dropout": key}
        run: Any = self.module.apply
        return run({"params": params}, tokens, carry, key is None, rngs=rngs)


# Zaremba et al. 2014, section 4.1; the small one is regularised by nothing but its size.
SIZES: dict[str, dict[str, Any]] = {
    "small": {"width": 200, "dropout": 0.0, "scale": 0.1},
    "medium": {"width": 650, "dropout": 0.5, "scale": 0.05},
    "large": {"width": 1500, "dropout": 0.65, "scale": 0.04},
}


def zaremba(size: str = "small", vocabulary: int = 10_000) -> LanguageModel:
    """The published models: 4.65, 19.8 and 66.0 million parameters at 10,000 words.

    Args:
      size: "small", "medium" or "large".
      vocabulary: number of words.
    """
    return LanguageModel(LSTMLM(vocabulary, **SIZES[size]))
