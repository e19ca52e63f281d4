"""What all families of small models share: dense networks, budgets, training, measuring."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from experiments import ledger, resumable, training
from experiments.data import Split
from experiments.methods import build_saliency
from experiments.minified.task import TASKS, Problem, Widths
from experiments.training import Budget
from jaxprune.types import Apply, Batch, Mask, Params, Saliency

Piece = dict[str, Any]

ARMS = ("tune", "short", "long")
"""Fine-tuning; from scratch in the steps of that; from scratch in those and the dense ones."""


@dataclass(frozen=True)
class Config:
    """Everything the results depend on; its hash names them.

    Attributes:
      sizes: shares that are left: of the weights, or of the bytes where whole units go.
      methods, iterative, unit_methods: which selections.
      rounds: of the iterative ones.
      dense_epochs, tune_epochs: budgets.
      rates: learning rates to choose from, by validation.
      rate_sizes: sizes that a choice is made at; others take that of the nearest.
      scratch: methods whose masks are also trained from scratch.
      score_examples: training examples that scores are measured on.
      examples: of the training part, at most.
      bits: of quantized networks.
      grids: kinds, scopes and calibrations of their levels, see `quantized.GRIDS`.
      combined: quantizers after pruning or shrinking, (kind, bits).
      drops: forward passes of dropout-based damage estimation.
      extra: methods whose pruned networks are quantized too.
    """

    task: str
    preset: str
    seeds: int
    sizes: tuple[float, ...]
    methods: tuple[str, ...]
    iterative: tuple[str, ...]
    unit_methods: tuple[str, ...]
    rounds: int
    dense_epochs: float
    tune_epochs: float
    batch: int
    rates: tuple[float, ...]
    rate_sizes: tuple[float, ...]
    scratch: tuple[str, ...]
    score_examples: int
    examples: int | None
    bits: tuple[int, ...]
    grids: tuple[str, ...]
    combined: tuple[tuple[str, int], ...]
    extra: tuple[str, ...]
    drops: int


class Lab:
    """The networks, data and budgets of one configuration, and its ledger.

    Args:
      config: what is compared.
      book: finished pieces.
      work: folder of the dense networks' checkpoint.
      data_dir: where tensorflow_datasets keeps prepared data.
    """

    def __init__(self, config: Config, book: ledger.Ledger, work: Path, data_dir: Path | None):
        self.config, self.book, self.work = config, book, work
        self.problem = Problem(TASKS[config.task], data_dir, config.examples)
        self.apply = self.problem.apply
        self.widths = self.problem.task.widths
        self.keys = jnp.stack([jax.random.key(seed) for seed in range(config.seeds)])
        per_epoch = max(self.problem.train.targets.shape[0] // config.batch, 1)
        self.dense_steps = max(round(config.dense_epochs * per_epoch), 1)
        self.tune_steps = max(round(config.tune_epochs * per_epoch), config.rounds)
        self._dense: Params | None = None
        self._fresh: dict[tuple[int, Widths], Params] = {}
        self._saliencies: dict[tuple[str, int], Saliency] = {}

    def budget(self, steps: int, rate: float, warmup: bool = False) -> Budget:
        """A budget of the configuration's batches; warm-up takes a tenth of the steps."""
        return Budget(steps, self.config.batch, rate, steps // 10 if warmup else 0)

    def budget_of(self, arm: str, rate: float) -> Budget:
        """The budget of one of `ARMS`."""
        steps = self.tune_steps + (self.dense_steps if arm == "long" else 0)
        return self.budget(steps, rate, warmup=arm != "tune")

    @cached_property
    def batch(self) -> Batch:
        """The training examples that scores are measured on."""
        count = self.config.score_examples
        return self.problem.train.inputs[:count], self.problem.train.targets[:count]

    def fresh(self, offset: int, widths: Widths | None = None) -> Params:
        """Stacked newly initialised networks, others for another offset."""
        which = offset, widths or self.widths
        if which not in self._fresh:
            keys = jax.vmap(lambda key: jax.random.fold_in(key, offset))(self.keys)
            self._fresh[which] = training.init_runs(self.problem.init_at(which[1]), keys)
        return self._fresh[which]

    def fit(
        self,
        params: Params,
        budget: Budget,
        salt: int,
        masks: Mask | None = None,
        apply: Apply | None = None,
    ) -> Params:
        """Train all seeds; every arm of a seed and a salt sees the same batches in one order."""
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 100 + salt))(self.keys)
        masks = jp.trees.full_mask(params) if masks is None else masks
        return training.train_runs(
            apply or self.apply, params, masks, keys, self.problem.train, budget, self.problem.loss
        )

    def measure(self, params: Params, apply: Apply | None = None) -> Piece:
        """Metrics on validation and test examples, a list over seeds each."""
        read = partial(self._measured, apply or self.apply, params)
        return {"validation": read(self.problem.validation), "test": read(self.problem.test)}

    def promise(self, params: Params, apply: Apply | None = None) -> float:
        """Mean quality over the seeds on validation examples: what choices are made by."""
        found = self._measured(apply or self.apply, params, self.problem.validation)
        return float(np.mean(next(iter(found.values()))))

    def _measured(self, apply: Apply, params: Params, split: Split) -> dict[str, list[float]]:
        targets = np.asarray(split.targets)
        outputs = training.outputs(apply, params, split)
        found = [self.problem.metrics(one, targets) for one in outputs]
        return {name: [one[name] for one in found] for name in found[0]}

    def dense(self) -> Params:
        """The dense networks, stacked: trained once, then read from their checkpoint."""
        if self._dense is None:
            folder = self.work / "dense"
            like = self.fresh(0)
            self._dense = resumable.made_once(folder, like, self._trained, self.dense_steps)
            self._same_as_before(folder)
            if "dense rate" not in self.book.pieces:  # results elsewhere, the same networks
                self.book.record("dense rate", self._dense_rate())
        return self._dense

    def _trained(self) -> Params:
        """The dense networks at their best rate, which is written beside their checkpoint."""
        start = self.fresh(0)
        train = lambda rate: self.fit(start, self.budget(self.dense_steps, rate), salt=0)
        trained = trials(self.config.rates, train)
        tried = {rate: self.promise(params) for rate, params in trained.items()}
        best = max(tried, key=lambda rate: tried[rate])
        said = {f"{rate:g}": value for rate, value in tried.items()}
        content = json.dumps({"rate": best, "validation": said})
        ledger.write_atomically(self.work / "dense_rate.json", content)
        return trained[best]

    def _dense_rate(self) -> Piece:
        path = self.work / "dense_rate.json"
        try:
            return dict(json.loads(path.read_text()))
        except (FileNotFoundError, ValueError, TypeError) as problem:
            told = f"{path} cannot be read ({problem}): the dense networks are trained again."
            warnings.warn(told, stacklevel=3)
            self._trained()
            return dict(json.loads(path.read_text()))

    def _same_as_before(self, folder: Path) -> None:
        """Raise if what is in the ledger was made from other dense networks.

        Raises:
          ValueError: their weights differ.
        """
        found = hashlib.sha256()
        for leaf in jax.tree.leaves(self._dense):
            found.update(np.asarray(leaf).tobytes())
        mark = found.hexdigest()[:16]
        if self.book.pieces.get("dense weights", mark) != mark:
            raise ValueError(
                f"{self.book.path} was measured on other dense networks than those of {folder}, "
                "such as another machine's. Bring back that folder, or move the results away."
            )
        if "dense weights" not in self.book.pieces:
            self.book.record("dense weights", mark)

    @cached_property
    def networks(self) -> list[Params]:
        """The dense networks, one a seed."""
        return training.unstack(self.dense())

    @cached_property
    def coupling(self) -> jp.Coupling:
        """The hidden layers' units; the same for all seeds."""
        inputs = self.problem.train.inputs[:2]
        coupling = jp.couple(self.apply, self.networks[0], inputs)
        assert tuple(g.units for g in coupling.groups.values()) == self.widths
        return coupling

    def saliency(self, method: str, seed: int = 0) -> Saliency:
        """The saliency of a method's name: one object each, so that it compiles once."""
        if (method, seed) not in self._saliencies:
            problem = self.problem
            made = build_saliency(method, self.apply, seed, problem.loss, problem.root)
            self._saliencies[method, seed] = made
        return self._saliencies[method, seed]

    def weighed(self, widths: Widths) -> Piece:
        """Bytes, FLOPs and parameters of dense networks; their milliseconds are recorded apart."""
        self.time(widths)
        params = jax.eval_shape(self.problem.init_at(widths), self.keys[0])
        return {
            "bytes": [dense_bytes(params)] * self.config.seeds,
            "flops": self.flops(widths),
            "parameters": jp.trees.count(params),
            "widths": list(widths),
        }

    def flops(self, widths: Widths) -> int:
        """FLOPs of one example's forward pass."""
        params = jax.eval_shape(self.problem.init_at(widths), self.keys[0])
        inputs = self.problem.train.inputs[:1]
        return jp.reporting.flops(self.problem.apply_at(widths), params, inputs)

    def training_flops(self, budget: Budget, widths: Widths | None = None) -> int:
        """FLOPs of a budget, a backward pass taken as two forward passes."""
        return 3 * self.flops(widths or self.widths) * budget.steps * budget.batch

    def time(self, widths: Widths) -> None:
        """Record the median milliseconds of a forward pass, by batch size."""
        name = latency_of(widths)
        if name in self.book.pieces:
            return
        params = self.problem.init_at(widths)(self.keys[0])
        apply, found = self.problem.apply_at(widths), {}
        shape = self.problem.test.inputs.shape[1:]
        for batch in (1, 256):
            inputs = jnp.resize(self.problem.test.inputs, (batch, *shape))
            found[str(batch)] = jp.reporting.latency(apply, params, inputs, repeats=30).median_ms
        self.book.record(name, found)


def trials(rates: Sequence[float], train: Callable[[float], Params]) -> dict[float, Params]:
    """What is trained at every rate that does not diverge.

    Raises:
      FloatingPointError: all of them do.
    """
    found, problems = {}, []
    for rate in rates:
        try:
            found[rate] = train(rate)
        except FloatingPointError as problem:
            problems.append(str(problem))
    if not found:
        raise FloatingPointError("; ".join(problems))
    return found


def bytes_of(params: Params, mask: Mask) -> int:
    """Bytes of one network as `jp.quantize.pack` writes it, each leaf in its smallest form."""
    return jp.quantize.stored_bytes(jp.quantize.unquantized()(params, mask)).total


def dense_bytes(params: Params) -> int:
    """Bytes of a network of these shapes in which no weight happens to be 0."""
    full = jp.trees.full_mask(params)
    return bytes_of(jax.tree.map(jnp.ones_like, params), full)


def as_text(widths: Sequence[int]) -> str:
    """Widths as users write them.

    Example:
      >>> as_text((300, 100))
      '300-100'
    """
    return "-".join(map(str, widths))


def latency_of(widths: Sequence[int]) -> str:
    """The name of the piece that holds the milliseconds of networks of these widths."""
    return f"latency {as_text(widths)}"
