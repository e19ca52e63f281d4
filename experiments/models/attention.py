"""Additive attention (Bahdanau et al. 2015)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.models.lstm import uniform


class Attended(NamedTuple):
    """What is attended to.

    Attributes:
      memory: [B, S, H].
      keys: [B, S, H], the same as it is compared with queries.
      real: bool [B, S], False at padding.
    """

    memory: jax.Array
    keys: jax.Array
    real: jax.Array


class Additive(NamedTuple):
    """Weights: the energy of a query q and a memory m is `energy . tanh(q query + m memory)`.

    Attributes:
      query, memory: [H, H].
      energy: [H].
    """

    query: jax.Array
    memory: jax.Array
    energy: jax.Array

    def over(self, memory: jax.Array, real: jax.Array) -> Attended:
        """Memory [B, S, H], False in `real` [B, S] where it is padding, ready for queries."""
        return Attended(memory, memory @ self.memory, real)

    def context(self, query: jax.Array, attended: Attended) -> jax.Array:
        """[B, H], the mean of the memory under the attention that queries [B, H] pay."""
        energies = jnp.tanh((query @ self.query)[:, None] + attended.keys) @ self.energy
        shares = nn.softmax(jnp.where(attended.real, energies, -1e30))
        return jnp.einsum("bs,bsh->bh", shares, attended.memory)


class Attention(nn.Module):
    """The parameters of additive attention; `Additive` computes with them.

    Attributes:
      width: H.
      scale: they start uniform on [-scale, scale).
    """

    width: int
    scale: float = 0.1

    @nn.compact
    def __call__(self) -> Additive:
        """The weights."""
        start, matrix = uniform(self.scale), (self.width, self.width)
        return Additive(
            self.param("query", start, matrix),
            self.param("memory", start, matrix),
            self.param("energy", start, (self.width,)),
        )
