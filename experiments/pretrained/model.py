"""What a comparison needs of a network that somebody else trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxprune.types import Params


class Pretrained(NamedTuple):
    """A network, what it is calibrated on, and what it is measured by.

    Attributes:
      name: of the network.
      source: where its weights come from, with version and licence.
      params: its weights as published, a pytree of float32 arrays; `[in, out]` kernels or not, as
        they are stored.
      apply: `(params, inputs) -> outputs`, pure; reads every width off the arrays, so that it runs
        on shrunk ones too.
      inputs: calibration examples, a pytree of arrays with one leading axis; never test examples.
      targets: beside them, what `loss` is told.
      loss: `(outputs, targets) -> [n]`, of every example.
      distill: `(outputs, outputs of the dense network) -> [n]`, what fine-tuning makes small.
      prunable: `(name, leaf) -> bool`, which leaves hold weights to prune.
      quality: `params -> {measure: value}` on test examples, the one that counts first; higher is
        better for all of them, in percent.
    """

    name: str
    source: str
    params: Params
    apply: Callable[[Params, Any], Any]
    inputs: Any
    targets: Any
    loss: Callable[[Any, Any], jax.Array]
    distill: Callable[[Any, Any], jax.Array]
    prunable: Callable[[str, jax.Array], bool]
    quality: Callable[[Params], dict[str, float]]
