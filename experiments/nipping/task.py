"""The networks and the data of a comparison, and what a network costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import jaxprune as jp
from experiments import data
from experiments.data import Split
from experiments.image_batches import CHANNELS, normalise, share_right
from experiments.models import DenseNet, WideResNet
from experiments.naming import check_known
from jaxprune.types import PyTree

NETWORKS = ("wrn", "densenet")
COSTS = ("parameters", "bytes", "flops", "activations")


class Shape(NamedTuple):
    """An architecture.

    Attributes:
      network: one of `NETWORKS`.
      depth: 6n + 4.
      width: WRN's multiplier, DenseNet's growth.
      z: middle widths as a multiple of the network's own.
      middles: every block's middle width instead.
    """

    network: str
    depth: int
    width: float
    z: float = 1.0
    middles: tuple[int, ...] | None = None

    @property
    def label(self) -> str:
        """How tables and files name it."""
        name = f"{self.network}-{self.depth}-{self.width:g}"
        if self.middles is not None:
            return f"{name} ({'-'.join(map(str, self.middles))})"
        return name if self.z == 1 else f"{name}, z {self.z:g}"

    def build(self, classes: int, dtype: Any = None) -> nn.Module:
        """The Flax module."""
        middles = None if self.middles is None else tuple(self.middles)
        if self.network == "wrn":
            return WideResNet(self.depth, self.width, classes, self.z, middles, dtype)
        growth = round(self.width)
        return DenseNet(self.depth, growth, classes, 4 * self.z, middles, dtype)


@dataclass(frozen=True)
class Config:
    """Everything the results depend on; its hash names them.

    Attributes:
      network, depth, width: of the dense network, see `Shape`.
      epochs: of dense training, and of training from scratch.
      batch: examples a step.
      learning_rate: SGD's, at first; momentum 0.9 with Nesterov.
      weight_decay: on kernels.
      drops: shares of the steps after which the rate falls to `drop` times itself; none: a cosine.
      smoothing: of the labels.
      tune_rates: constant rates of fine-tuning while units go; the first signal's path with the
        first seed chooses, by the mean error at the marks on validation examples.
      every, each: a removal of so many units every so many steps.
      signals: by which units go, of `fitting.SIGNALS`.
      cost: what a unit's signal is divided by: None, or one of `COSTS`.
      shrink_every: removals after which the network is really made smaller, and compiled anew;
        0: units are masked to the end.
      marks: shares of the units gone at which a network is kept and measured, tuned to the step
        before the next removal.
      depths, widths, zs: of reduced networks, one of the three changed at a time.
      scratch: signals whose architectures are also trained from scratch.
      copies: the first signal's last profile scaled to the parameters of the other marks.
      examples: of the training part, at most.
      dtype: of the arithmetic; parameters are float32.
      batches: numbers of images at which a forward pass is timed.
    """

    preset: str
    dataset: str
    network: str
    depth: int
    width: float
    seeds: int
    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    tune_rates: tuple[float, ...]
    every: int
    each: int
    signals: tuple[str, ...]
    marks: tuple[float, ...]
    depths: tuple[int, ...]
    widths: tuple[float, ...]
    zs: tuple[float, ...]
    scratch: tuple[str, ...]
    cost: str | None = None
    shrink_every: int = 0
    copies: bool = True
    drops: tuple[float, ...] = ()
    drop: float = 0.2
    smoothing: float = 0.0
    examples: int | None = None
    dtype: str = "float32"
    batches: tuple[int, ...] = (1, 32, 256)

    @property
    def shape(self) -> Shape:
        """The dense network."""
        return Shape(self.network, self.depth, self.width)


class Costs(NamedTuple):
    """What one network costs.

    Attributes:
      parameters: all of them.
      flops: of a forward pass of one image.
      activations: bytes of the results of products and convolutions, of one image.
    """

    parameters: int
    flops: int
    activations: int


class Problem:
    """Data, and networks of any shape on it.

    Args:
      config: which.
      data_dir: where tensorflow_datasets keeps prepared data.
      found: the data, if they are at hand.
    """

    def __init__(
        self, config: Config, data_dir: Path | None = None, found: data.Dataset | None = None
    ):
        check_known("set of images", [config.dataset], CHANNELS)
        check_known("network", [config.network], NETWORKS)
        found = data.load(config.dataset, data_dir=data_dir) if found is None else found
        self.config, self.classes = config, found.num_classes
        self.train = Split(*(np.asarray(part[: config.examples]) for part in found.train))
        self.parts = {"validation": found.validation, "test": found.test}
        self.image = jax.ShapeDtypeStruct((1, *self.train.inputs.shape[1:]), jnp.float32)
        self.model = cache(lambda shape: shape.build(self.classes, jnp.dtype(config.dtype)))
        self.coupled = cache(self._coupled)

    @cached_property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return max(len(self.train.targets) // self.config.batch, 1)

    @property
    def dense_steps(self) -> int:
        """Steps of dense training."""
        return self.config.epochs * self.per_epoch

    def init(self, shape: Shape, key: jax.Array) -> PyTree:
        """New variables of a network."""
        return self.model(shape).init(key, jnp.zeros(self.image.shape))

    def variables(self, shape: Shape) -> PyTree:
        """Their shapes."""
        return jax.eval_shape(lambda key: self.init(shape, key), jax.random.key(0))

    def _coupled(self, shape: Shape) -> jp.Coupling:
        return jp.couple(self.model(shape).apply, self.variables(shape), self.image)

    @property
    def coupling(self) -> jp.Coupling:
        """Of the dense network; `coupled(shape)` is that of any other."""
        return self.coupled(self.config.shape)

    @cached_property
    def inner(self) -> list[str]:
        """Groups between the two convolutions of a block, in the order of the blocks."""
        names = [name for name in self.coupling.groups if name.endswith("/first")]
        return sorted(names, key=lambda name: int(name.split("/")[0].rsplit("_", 1)[1]))

    @property
    def units(self) -> int:
        """How many units there are in those groups."""
        return sum(self.coupling.groups[name].units for name in self.inner)

    def shape_with(self, profile: Mapping[str, int]) -> Shape:
        """The dense architecture with other widths between convolutions, `{group: units}`."""
        return self.config.shape._replace(middles=tuple(profile[name] for name in self.inner))

    def profile(self, shape: Shape) -> dict[str, int]:
        """The widths between the convolutions of such an architecture."""
        return dict(zip(self.inner, shape.middles or (), strict=True))

    @cached_property
    def _guesses(self) -> Any:
        def guesses(shape: Shape, variables: PyTree, images: jax.Array) -> jax.Array:
            logits: Any = self.model(shape).apply(variables, normalise(images, self.config.dataset))
            return jnp.argmax(logits, axis=-1)

        return jax.jit(guesses, static_argnums=0)

    def error(self, shape: Shape, variables: PyTree, part: str) -> float:
        """Examples of a part that are classified wrongly, in per cent."""
        return 100 - share_right(partial(self._guesses, shape, variables), self.parts[part])

    def costs(self, shape: Shape) -> Costs:
        """Parameters, FLOPs and activation bytes."""
        count, coupling = jp.trees.count(self.variables(shape)["params"]), self.coupled(shape)
        return Costs(count, coupling.flops(), coupling.activations())
