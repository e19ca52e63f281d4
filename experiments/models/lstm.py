"""LSTM layers (Hochreiter and Schmidhuber 1997; with forget gates) over whole sequences."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

GATES = ("input", "forget", "candidate", "output")


class Carry(NamedTuple):
    """The state of a layer between two steps.

    Attributes:
      cell: [B, H].
      hidden: [B, H], what the layer puts out.
    """

    cell: jax.Array
    hidden: jax.Array


class Weights(NamedTuple):
    """A layer's parameters; the gates lie side by side in the order of `GATES`.

    Attributes:
      inputs: [D, 4 H].
      recurrent: [H, 4 H].
      bias: [4 H].
    """

    inputs: jax.Array
    recurrent: jax.Array
    bias: jax.Array


def uniform(scale: float) -> nn.initializers.Initializer:
    """Uniform on [-scale, scale)."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -scale, scale
    )


class LSTM(nn.Module):
    """The parameters of one layer; `scan` and `advance` compute with them.

    Attributes:
      features: H.
      fused: one input and one recurrent kernel of all four gates, so that a per-layer selection
        shares what it prunes among the gates; else `input_gate/inputs` and so on, a leaf a gate.
      scale: kernels start uniform on [-scale, scale).
      forget_bias: the forget gate's bias at the start; the others' is 0.
    """

    features: int
    fused: bool = True
    scale: float = 0.1
    forget_bias: float = 0.0

    @nn.compact
    def __call__(self, size: int) -> Weights:
        """The weights for inputs of D = `size` features."""
        if self.fused:
            return _parameters(self, size, 4 * self.features, _forgetting(self.forget_bias))
        parts = []
        for gate in GATES:
            constant = nn.initializers.constant(self.forget_bias if gate == "forget" else 0.0)
            parts.append(_Gate(self.features, self.scale, constant, name=f"{gate}_gate")(size))
        return Weights(*(jnp.concatenate(part, axis=-1) for part in zip(*parts, strict=True)))


class _Gate(nn.Module):
    features: int
    scale: float
    bias: nn.initializers.Initializer

    @nn.compact
    def __call__(self, size: int) -> Weights:
        return _parameters(self, size, self.features, self.bias)


def _parameters(
    layer: LSTM | _Gate, size: int, columns: int, bias: nn.initializers.Initializer
) -> Weights:
    """[size, columns], [features, columns] and [columns]."""
    start = uniform(layer.scale)
    return Weights(
        layer.param("inputs", start, (size, columns)),
        layer.param("recurrent", start, (layer.features, columns)),
        layer.param("bias", bias, (columns,)),
    )


def _forgetting(constant: float) -> nn.initializers.Initializer:
    return lambda key, shape, dtype=jnp.float32: (
        jnp.zeros((len(GATES), shape[0] // len(GATES)), dtype).at[1].set(constant).reshape(shape)
    )


def resting(batch: int, features: int) -> Carry:
    """The state [B, H] before anything was seen: zeros."""
    zeros = jnp.zeros((batch, features))
    return Carry(zeros, zeros)


def advance(gates: jax.Array, carry: Carry) -> Carry:
    """The next state from all gates' sums [B, 4 H]; activations are applied here."""
    enter, forget, candidate, leave = jnp.split(gates, 4, axis=-1)
    cell = nn.sigmoid(forget) * carry.cell + nn.sigmoid(enter) * jnp.tanh(candidate)
    return Carry(cell, nn.sigmoid(leave) * jnp.tanh(cell))


def scan(
    weights: Weights,
    inputs: jax.Array,
    carry: Carry,
    real: jax.Array | None = None,
    reverse: bool = False,
) -> tuple[Carry, jax.Array]:
    """A layer over a sequence.

    What the inputs contribute is one matrix product for all steps; the loop has the recurrent one.

    Args:
      weights: of the layer, for D inputs.
      inputs: [T, B, D].
      carry: the state [B, H] to start from.
      real: bool [T, B]; where it is False the state stays what it was. None: real everywhere.
      reverse: from the last step to the first; with padding behind the sequences, which leaves the
        state alone, that is each sequence reversed within its length.

    Returns:
      The state at the end, and the hidden states [T, B, H] in the order of the inputs.
    """
    sums = inputs @ weights.inputs + weights.bias
    shown = None if real is None else real[..., None]

    def step(carry: Carry, now: tuple[jax.Array, jax.Array | None]) -> tuple[Carry, jax.Array]:
        following = advance(now[0] + carry.hidden @ weights.recurrent, carry)
        if now[1] is not None:
            following = Carry(
                jnp.where(now[1], following.cell, carry.cell),
                jnp.where(now[1], following.hidden, carry.hidden),
            )
        return following, following.hidden

    return lax.scan(step, carry, (sums, shown), reverse=reverse)
