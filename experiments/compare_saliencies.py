"""Which saliency should prune my network? Every one of them, on the same trained networks.

Trains dense networks, prunes each to several sparsities by every saliency, and prints accuracy
right after pruning, after fine-tuning, and of the same mask re-initialised and trained from
scratch with the steps of dense training and fine-tuning together; beside it what the masked model
weighs, computes and takes. The dense row is the same network, fine-tuned too.

    python experiments/compare_saliencies.py                              # digits, < 1 minute
    python experiments/compare_saliencies.py --preset cpu --dataset mnist # LeNet-300-100
    python experiments/compare_saliencies.py --preset full --dataset mnist

Nothing is chosen by looking at test data: budgets and rates are fixed below. The curvature of OBD
and OBD-SD is the Gauss-Newton diagonal, which for these ReLU networks is the Hessian's. Taylor and
SNIP rank alike (their scores differ by a monotone function), so their rows agree; where two
methods draw the same masks the runs are shared. Interrupted runs resume where they stopped.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from experiments import data, ledger, presenting, resumable, training
from experiments.methods import METHODS, build_saliency
from experiments.models import MLP
from experiments.naming import check_known, check_seeds
from experiments.problems import PROBLEMS
from experiments.training import Budget
from jaxprune.types import Batch, Mask, Params, Scores

# The others have one logit for two classes.
IMAGES = tuple(name for name in data.names() if name != "mails")
WORK = Path(__file__).parent / "runs"  # checkpoints and raw results, not committed


@dataclass(frozen=True)
class Config:
    """Everything the results depend on; its hash names them."""

    dataset: str
    hidden: tuple[int, ...]
    seeds: int
    sparsities: tuple[float, ...]
    methods: tuple[str, ...]
    dense_epochs: int
    tune_epochs: int
    score_examples: int
    batch: int = 64
    learning_rate: float = 2e-3
    tune_learning_rate: float = 2e-3


QUICK = Config(
    dataset="digits",
    hidden=(100, 50),
    seeds=3,
    sparsities=(0.8, 0.9, 0.95),
    methods=METHODS,
    dense_epochs=20,
    tune_epochs=10,
    score_examples=1257,
)
PRESETS: dict[str, Config] = {
    "smoke": replace(
        QUICK, hidden=(16,), seeds=2, sparsities=(0.5, 0.9), dense_epochs=3, tune_epochs=1,
        score_examples=64,
    ),
    "quick": QUICK,
    "cpu": replace(
        QUICK, hidden=(300, 100), seeds=3, sparsities=(0.8, 0.9, 0.95, 0.98),
        dense_epochs=6, tune_epochs=2, score_examples=1000, batch=128, learning_rate=1e-3,
        tune_learning_rate=1e-3,
    ),
    "full": replace(
        QUICK, hidden=(300, 100), seeds=10, sparsities=(0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99),
        dense_epochs=40, tune_epochs=10, score_examples=10_000, batch=128, learning_rate=1e-3,
        tune_learning_rate=1e-3,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Arguments:
    """Compare saliencies on trained networks."""

    preset: Literal["smoke", "quick", "cpu", "full"] = "quick"
    """How much: smoke in seconds, quick in under a minute, cpu in about an hour, full for a GPU."""
    dataset: str = "digits"
    """digits (in the wheel, no download), mnist, fashion_mnist or cifar10."""
    methods: tuple[str, ...] = METHODS
    """Which saliencies."""
    seeds: int | None = None
    """How many seeds, if not the preset's."""
    data_dir: Path | None = None
    """Where tensorflow_datasets keeps prepared data."""
    out: Path | None = None
    """Folder of the results; by default the run's own folder under experiments/runs."""


def configure(arguments: Arguments) -> Config:
    """The configuration that the arguments ask for.

    Raises:
      ValueError: an unknown data set or method; the nearest known one is suggested.
    """
    check_known("method", arguments.methods, METHODS)
    check_known("data set", [arguments.dataset], IMAGES)
    config = replace(
        PRESETS[arguments.preset], dataset=arguments.dataset, methods=arguments.methods
    )
    check_seeds(arguments.seeds, "networks are trained")
    return config if arguments.seeds is None else replace(config, seeds=arguments.seeds)


def known(scores: Scores) -> Callable[[Params, Batch], Scores]:
    """A score function that has its scores already."""
    return lambda params, batch: scores


class Comparison:
    """The networks, data and budgets of one configuration, and its unfinished work."""

    def __init__(self, config: Config, data_dir: Path | None, book: ledger.Ledger, work: Path):
        self.config, self.book, self.work = config, book, work
        found = data.load(config.dataset, data_dir=data_dir)
        self.train, self.test = jax.device_put((found.train, found.test))
        self.model = MLP(config.hidden, found.num_classes)
        self.seeds = range(config.seeds)
        self.keys = jnp.stack([jax.random.key(seed) for seed in self.seeds])
        per_epoch = max(found.train.targets.shape[0] // config.batch, 1)
        budget = lambda epochs, rate: Budget(epochs * per_epoch, config.batch, rate)
        self.dense_budget = budget(config.dense_epochs, config.learning_rate)
        self.tune_budget = budget(config.tune_epochs, config.tune_learning_rate)
        both = config.dense_epochs + config.tune_epochs
        self.scratch_budget = budget(both, config.learning_rate)
        self._dense: Params | None = None
        self._fresh: dict[int, Params] = {}

    def apply(self, params: Params, inputs: jax.Array) -> jax.Array:
        """Logits of one network."""
        return jnp.asarray(self.model.apply({"params": params}, inputs))

    def fresh(self, offset: int) -> Params:
        """Stacked newly initialised networks, others for another offset."""
        if offset not in self._fresh:
            keys = jax.vmap(lambda key: jax.random.fold_in(key, offset))(self.keys)
            init = lambda key: self.model.init(key, self.train.inputs[:1])["params"]
            self._fresh[offset] = training.init_runs(init, keys)
        return self._fresh[offset]

    def fit(self, params: Params, masks: Mask, budget: Budget, salt: int) -> Params:
        """Train all seeds; every arm of a seed sees the same batches in the same order."""
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 100 + salt))(self.keys)
        return training.train_runs(self.apply, params, masks, keys, self.train, budget)

    def score(self, params: Params) -> list[float]:
        """Test accuracies in per cent, one a seed."""
        return training.accuracies(self.apply, params, self.test)

    def dense(self) -> Params:
        """The dense networks: trained once, then read from their checkpoint."""
        if self._dense is None:
            start = self.fresh(0)
            full = jp.trees.full_mask(start)
            train = lambda: self.fit(start, full, self.dense_budget, salt=0)
            steps = self.dense_budget.steps
            self._dense = resumable.made_once(self.work / "dense", start, train, steps)
        return self._dense

    def run_dense(self) -> None:
        """The dense networks as they are, and fine-tuned."""
        params = self.dense()
        mask = jp.trees.full_mask(params)
        tuned = self.fit(params, mask, self.tune_budget, salt=1)
        first = training.unstack(params)[0]
        self.book.record(
            "dense",
            {
                "one_shot": self.score(params),
                "fine_tuned": self.score(tuned),
                "scratch": None,
                **self.weigh(first, jp.trees.full_mask(first)),
            },
        )

    def run_method(self, method: str, advance: Any) -> None:
        """Every sparsity of a method that is not in the ledger yet."""
        todo = [s for s in self.config.sparsities if not self.book.is_finished(f"{method} {s}")]
        if not todo:
            return
        networks, scored = training.unstack(self.dense()), None
        for sparsity in todo:
            with self.book.attempt(f"{method} {sparsity}"):
                scored = scored or self.timed_scores(method, networks)
                self.run_group(method, sparsity, networks, *scored)
            advance()

    def timed_scores(self, method: str, networks: list[Params]) -> tuple[list[Scores], float]:
        """The scores of every seed's network, and the seconds they took."""
        start = time.perf_counter()
        scores = self.scores(method, networks)
        return scores, time.perf_counter() - start

    def scores(self, method: str, networks: list[Params]) -> list[Scores]:
        """The scores of every seed's network, on the first training examples."""
        count = self.config.score_examples
        batch: Batch = (self.train.inputs[:count], self.train.targets[:count])
        if method == "random":
            return [build_saliency(method, self.apply, s)(n) for s, n in enumerate(networks)]
        saliency = build_saliency(method, self.apply, 0)
        return jax.block_until_ready([saliency(network, batch) for network in networks])

    def run_group(
        self,
        method: str,
        sparsity: float,
        networks: list[Params],
        scores: list[Scores],
        seconds: float,
    ) -> None:
        """Prune, fine-tune and train from scratch, all seeds together; record the group."""
        pruned = [
            jp.one_shot(known(s), jp.select.lowest())(n, sparsity=sparsity)
            for n, s in zip(networks, scores, strict=True)
        ]
        name = mask_digest([p.mask for p in pruned])
        twin = self.twin(sparsity, name)
        if twin is None:
            params = training.stack([p.params for p in pruned])
            masks = training.stack([p.mask for p in pruned])
            tuned = self.fit(params, masks, self.tune_budget, salt=1)
            again = jax.vmap(jp.apply_mask)(self.fresh(1), masks)
            scratch = self.fit(again, masks, self.scratch_budget, salt=2)
            twin = {
                "one_shot": self.score(params),
                "fine_tuned": self.score(tuned),
                "scratch": self.score(scratch),
            }
        measured = {key: twin[key] for key in ("one_shot", "fine_tuned", "scratch")}
        weighed = self.weigh(networks[0], pruned[0].mask)
        extra = {"mask_digest": name, "score_seconds": seconds}
        self.book.record(f"{method} {sparsity}", {**measured, **weighed, **extra})

    def twin(self, sparsity: float, name: str) -> dict[str, Any] | None:
        """A trained group of the same sparsity whose masks are the same, bit for bit.

        It may be the group itself, when its report alone is to be measured again.
        """
        for method in self.config.methods:
            piece = self.book.pieces.get(f"{method} {sparsity}")
            if piece is not None and piece["mask_digest"] == name:
                return piece
        return None

    def weigh(self, params: Params, mask: Mask) -> dict[str, Any]:
        """Size, FLOPs and latency of the first seed's network at batch 256."""
        inputs = jnp.resize(self.test.inputs, (256, *self.test.inputs.shape[1:]))
        report = jp.report(params, mask, apply=self.apply, inputs=inputs)
        return {"report": report.as_dict()}


def mask_digest(masks: list[Mask]) -> str:
    """A name for a list of masks: equal exactly when all bits are."""
    state = hashlib.sha256()
    for leaf in jax.tree.leaves(masks):
        state.update(np.packbits(np.asarray(leaf)).tobytes())
    return state.hexdigest()[:16]


def run(arguments: Arguments) -> Path:
    """Run or resume a comparison; returns the path of its JSON."""
    config = configure(arguments)
    name = f"compare_saliencies-{config.dataset}-{ledger.digest(config)}"
    work = WORK / name
    out = work if arguments.out is None else arguments.out
    book = ledger.Ledger(out / f"{name}.json", config)
    comparison = Comparison(config, arguments.data_dir, book, work)
    with presenting.progress(len(config.methods) * len(config.sparsities) + 1) as advance:
        if not book.is_finished("dense"):
            comparison.dense()  # without it nothing goes on
            with book.attempt("dense"):
                comparison.run_dense()
        advance(1)
        for method in config.methods:
            done = sum(book.is_finished(f"{method} {s}") for s in config.sparsities)
            advance(done, method)
            comparison.run_method(method, partial(advance, 1, method))
    presenting.show(book, out / name, ledger.hardware())
    book.check_failed()
    return book.path


if __name__ == "__main__":
    import tyro

    try:
        run(tyro.cli(Arguments, description=__doc__))
    except PROBLEMS as problem:
        sys.exit(f"error: {problem}")
