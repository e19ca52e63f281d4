"""The arms of a comparison: a path of prunings, and networks trained from scratch beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxprune as jp
from experiments import ledger
from experiments.locking import alone
from experiments.nipping.fitting import Fit, Program, Removal, State, variables_of
from experiments.nipping.task import Config, Problem, Shape
from jaxprune.transforms import RemovalState

Told = Callable[..., None]
Programs = Callable[[Shape, int, Removal | None], Program]


class Scratch(NamedTuple):
    """A network that is trained from new weights.

    Attributes:
      name: of the piece, without the seed.
      shape: what is trained.
      steps: optimizer steps.
    """

    name: str
    shape: Shape
    steps: int


class Bench:
    """The networks of one seed, and the ledger they are written to.

    Args:
      problem: data and networks.
      programs: `(shape, steps, removal) -> Program`, the same one for the same.
      book: finished pieces.
      work: folder of checkpoints.
      seed: chooses everything random.
    """

    def __init__(
        self, problem: Problem, programs: Programs, book: ledger.Ledger, work: Path, seed: int
    ):
        self.problem, self.config, self.book = problem, problem.config, book
        self.programs = programs
        self.work, self.seed = work, seed
        self.dense_steps = self.config.epochs * problem.per_epoch

    def named(self, name: str) -> str:
        """A piece's name in the ledger."""
        return f"{name} seed {self.seed}"

    def has(self, name: str) -> bool:
        """Is the piece finished?"""
        return self.named(name) in self.book.pieces

    def folder(self, name: str) -> Path:
        """Where a piece's checkpoints are."""
        return self.work / self.named(name).replace(" ", "_")

    def fit(self, arm: Scratch) -> Fit:
        """A run of a network from new weights, others than those the dense network began with."""
        program, salt = self.programs(arm.shape, arm.steps, None), int(arm.name != "dense")
        return Fit(program, self.seed, self.folder(arm.name), salt=salt)

    def measured(self, shape: Shape, variables: Any) -> dict[str, Any]:
        """Errors, and what was measured."""
        errors = {part: self.problem.error(shape, variables, part)
                  for part in ("validation", "test")}  # fmt: skip
        return {**errors, "shape": list(shape)}

    def scratch(self, arm: Scratch, told: Told) -> State | None:
        """Train a network from new weights, unless that is done."""
        if self.has(arm.name):
            return None
        run = self.fit(arm)
        with alone(run.folder, wait=False):
            state = run.run(lambda steps: told(steps, arm.name))
            found = self.measured(arm.shape, variables_of(state))
        self.book.record(self.named(arm.name), {**found, "steps": arm.steps})
        return state

    def dense(self, told: Told) -> Any:
        """The dense network's variables: trained once, then read from their checkpoint."""
        arm = Scratch("dense", self.config.shape, self.dense_steps)
        state = self.scratch(arm, told)
        if state is None:
            run = self.fit(arm)
            state = jp.checkpoint.restore(run.folder, jax.eval_shape(run.start))
        return jax.tree.map(np.asarray, variables_of(state))

    def path(self, signal: str, dense: Any, told: Told) -> None:
        """Fine-tune while units go; at every mark the network is measured and kept."""
        counts = marks(self.config, self.problem)
        missing = [mark for mark in counts if not self.has(tuned(signal, mark))]
        if not missing:
            return
        most, name = max(counts.values()), f"{signal} path"
        steps, shape = steps_to(self.config, most), self.config.shape
        program = self.programs(shape, steps, Removal(signal, most))
        run = Fit(program, self.seed, self.folder(name), dense)

        def seen(step: int, state: State) -> None:
            kept = {n: np.asarray(flags) for n, flags in kept_of(state).items()}
            gone = sum(int(np.sum(~flags)) for flags in kept.values())
            for mark, count in counts.items():
                if gone == count and not self.has(tuned(signal, mark)):
                    self._keep(tuned(signal, mark), shape, state, kept, step)

        with alone(run.folder, wait=False):
            state = run.run(lambda steps: told(steps, name), seen)
        lost = [mark for mark in counts if not self.has(tuned(signal, mark))]
        if lost:
            gone = sum(int(np.sum(~np.asarray(flags))) for flags in kept_of(state).values())
            raise FloatingPointError(
                f"{self.named(name)} ended with {gone} of {most} units gone: removals are refused "
                "where the signal is not finite. Lower `tune_rate`."
            )

    def _keep(self, name: str, shape: Shape, state: State, kept: Any, step: int) -> None:
        """The network at a mark: its checkpoint, really smaller, and its errors."""
        small = jp.structure.shrink_units(variables_of(state), kept, self.problem.coupling)
        left = self.problem.pruned_shape(kept)
        jp.checkpoint.save(self.folder(name), small, step=step, keep=1)
        found = self.measured(left, small)
        self.book.record(self.named(name), {**found, "steps": step})

    def others(self) -> Iterator[Scratch]:
        """What is trained from scratch beside the paths, in an order that needs them first."""
        config, counts = self.config, marks(self.config, self.problem)
        for signal in config.scratch:
            for mark, count in counts.items():
                shape = self.shape_of(tuned(signal, mark))
                more = steps_to(config, count)
                yield Scratch(f"{signal} {mark:g} scratch", shape, self.dense_steps)
                yield Scratch(f"{signal} {mark:g} scratch long", shape, self.dense_steps + more)
        for shape in reduced(config):
            yield Scratch(f"reduced {shape.label}", shape, self.dense_steps)
        if config.copies and config.signals:
            for mark, shape in self.copycats().items():
                yield Scratch(f"copy {mark:g}", shape, self.dense_steps)

    def shape_of(self, name: str) -> Shape:
        """The architecture of a finished piece."""
        return as_shape(self.book.pieces[self.named(name)]["shape"])

    def copycats(self) -> dict[float, Shape]:
        """The last profile of the first signal, scaled to the parameters of its other marks."""
        config, coupling, inner = self.config, self.problem.coupling, self.problem.inner
        shapes = {m: self.shape_of(tuned(config.signals[0], m)) for m in config.marks}
        last = shapes[max(config.marks)]
        assert last.middles is not None
        profile = dict(zip(inner, last.middles, strict=True))
        whole = {n: g.units for n, g in coupling.groups.items() if n not in profile}
        found = {}
        for mark, shape in shapes.items():
            assert shape.middles is not None
            if mark != max(config.marks):
                own = dict(zip(inner, shape.middles, strict=True))
                target = coupling.parameters(jp.structure.kept_of(coupling, {**own, **whole}))
                found[mark] = self._scaled(profile, target)
        return found

    def _scaled(self, profile: dict[str, int], target: int) -> Shape:
        """The profile times the largest factor whose network has at most the target's parameters.

        Only the widths between convolutions change.
        """
        coupling, sizes = self.problem.coupling, {}
        for factor in np.geomspace(1, max(g.units for g in coupling.groups.values()), 400):
            scaled = {
                name: min(max(round(factor * width), 1), coupling.groups[name].units)
                for name, width in profile.items()
            }
            if coupling.parameters(jp.structure.kept_of(coupling, scaled)) > target:
                break
            sizes = scaled
        sizes = sizes or profile
        return self.config.shape._replace(middles=tuple(sizes[n] for n in self.problem.inner))


def tuned(signal: str, mark: float) -> str:
    """The name of a pruned and tuned network's piece, without the seed."""
    return f"{signal} {mark:g} tuned"


def marks(config: Config, problem: Problem) -> dict[float, int]:
    """How many units are gone at every mark: a multiple of what goes at once."""
    units = sum(problem.coupling.groups[name].units for name in problem.inner)
    each = config.each
    return {mark: max(round(mark * units / each), 1) * each for mark in config.marks}


def steps_to(config: Config, count: int) -> int:
    """Steps of fine-tuning until so many units are gone."""
    return config.every * -(-count // config.each)


def reduced(config: Config) -> list[Shape]:
    """Networks made small by hand: less depth, less width, or narrower middles."""
    whole = config.shape
    return [
        *(whole._replace(depth=depth) for depth in config.depths),
        *(whole._replace(width=width) for width in config.widths),
        *(whole._replace(z=z) for z in config.zs),
    ]


def as_shape(stored: list[Any]) -> Shape:
    """A shape as JSON has it."""
    shape = Shape(*stored)
    return shape._replace(middles=None if shape.middles is None else tuple(shape.middles))


def kept_of(state: State) -> dict[str, jax.Array]:
    """Which units are left."""
    is_removal = lambda node: isinstance(node, RemovalState)
    nodes = jax.tree.leaves(state.opt_state, is_leaf=is_removal)
    return next(node.kept for node in nodes if is_removal(node))
