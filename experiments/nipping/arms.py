"""The arms of a comparison: a path of prunings, and networks trained from scratch beside it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxprune as jp
from experiments import ledger
from experiments.locking import alone
from experiments.nipping.fitting import Fit, Program, Removal, State, variables_of
from experiments.nipping.task import Config, Problem, Shape
from jaxprune.coupling.groups import Kept
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


class Stage(NamedTuple):
    """A part of a path in which arrays keep their shapes.

    Attributes:
      program: its steps.
      lost: units gone before it.
      begun: steps done before it.
      flops: those of the forward passes before it, of one image a step.
    """

    program: Program
    lost: int
    begun: int
    flops: int

    def flops_at(self, step: int) -> int:
        """FLOPs of all forward passes of the path up to a step, of one image a step."""
        return self.flops + (step - self.begun) * self.program.flops


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

    def train(self, arm: Scratch, told: Told) -> None:
        """Train a network from new weights, unless that is done."""
        if not self.has(arm.name):
            self._trained(arm, told)

    def _trained(self, arm: Scratch, told: Told) -> State:
        """A network trained from new weights, from its last checkpoint if that is done."""
        run = self.fit(arm)
        with alone(run.folder, wait=False):
            state = run.run(lambda steps: told(steps, arm.name))
            if not self.has(arm.name):
                found = self.measured(arm.shape, variables_of(state))
                self.book.record(self.named(arm.name), {**found, "steps": arm.steps})
        return state

    @property
    def dense_arm(self) -> Scratch:
        """The dense network."""
        return Scratch("dense", self.config.shape, self.problem.dense_steps)

    def dense(self, told: Told) -> Any:
        """The dense network's variables."""
        return jax.tree.map(np.asarray, variables_of(self._trained(self.dense_arm, told)))

    def attempt(self, name: str) -> AbstractContextManager[None]:
        """Work on a piece that may fail, see `Ledger.attempt`."""
        return self.book.attempt(self.named(name))

    def tune_rate(self, told: Told) -> float:
        """The rate of fine-tuning, chosen once and read then.

        Raises:
          FloatingPointError: no rate has a finite loss.
        """
        rates, (signal, *_) = self.config.tune_rates, self.config.signals
        if len(rates) > 1 and TRIALS not in self.book.pieces:
            tried = {f"{rate:g}": self._tried(signal, rate, told) for rate in rates}
            best_rate(rates, tried)  # a failure is not recorded as if it were a piece
            self.book.record(TRIALS, tried)
        return best_rate(rates, self.book.pieces.get(TRIALS, {}))

    def _tried(self, signal: str, rate: float, told: Told) -> float | None:
        """The mean validation error at the marks of a path; None where the loss is not finite."""
        name = lambda mark: trial(rate, mark)
        try:
            self._walk(signal, rate, name, told)
        except FloatingPointError:
            return None
        found = (self.book.pieces[self.named(name(mark))] for mark in self.config.marks)
        return float(np.mean([piece["validation"] for piece in found]))

    def path(self, signal: str, rate: float, told: Told) -> None:
        """Fine-tune while units go; at every mark the network is measured and kept."""
        self._walk(signal, rate, partial(tuned, signal), told)

    def _walk(self, signal: str, rate: float, piece: Callable[[float], str], told: Told) -> None:
        """A path, whose networks are recorded as `piece(mark)`."""
        counts = marks(self.config, self.problem)
        names = [(count, piece(mark)) for mark, count in counts.items()]
        if all(self.has(name) for _, name in names):
            return
        most, path = max(names)
        path += " path"
        with alone(self.folder(path), wait=False):
            shape, first, lost, flops = self.config.shape, None, 0, 0
            for count in stages(self.config, most):
                removal = Removal(signal, count - lost, rate)
                program = self.programs(shape, steps_to(self.config, count), removal)
                first = program.start(self.dense(told)) if first is None else first
                run = Fit(program, self.seed, self.folder(path) / str(lost), first)
                stage = Stage(program, lost, run.begun, flops)
                see = partial(self._see, stage, names)
                state = run.run(lambda steps: told(steps, path), see)
                found = lost + gone(kept_of(state))
                if found != count:
                    shutil.rmtree(run.folder)  # the next run tries it again
                    raise FloatingPointError(
                        f"{self.named(path)} ended with {found} of {count} units gone: removals "
                        "are refused where the signal is not finite. Lower `tune_rates`."
                    )
                lost, flops = count, stage.flops_at(program.steps)
                if count < most:
                    shape, first = self._smaller(program, state)

    def _see(self, stage: Stage, names: list[tuple[int, str]], step: int, state: State) -> None:
        """Record the network at a mark: its checkpoint, really smaller, its errors and steps."""
        at = stage.lost + gone(kept_of(state))
        for name in (name for count, name in names if count == at and not self.has(name)):
            coupling, kept, left = self._left(stage.program, state)
            small = jp.structure.shrink_units(variables_of(state), kept, coupling)
            jp.checkpoint.save(self.folder(name), small, step=step, keep=1)
            found = self.measured(left, small)
            spent = {"steps": step, "flops": stage.flops_at(step)}
            self.book.record(self.named(name), {**found, **spent})

    def _left(self, program: Program, state: State) -> tuple[jp.Coupling, Kept, Shape]:
        """How the program's network is coupled, which units it keeps, and what those make."""
        coupling, kept = self.problem.coupled(program.shape), kept_of(state)
        left = self.problem.shape_with(jp.structure.width_profile(coupling, kept))
        return coupling, kept, left

    def _smaller(self, program: Program, state: State) -> tuple[Shape, State]:
        """The network without its masked units, and all that its run carries likewise."""
        coupling, kept, left = self._left(program, state)
        whole = variables_of(state)
        mask = coupling.mask(kept, whole)
        small, opt_state = jp.shrink(whole, mask, coupling, state.opt_state)
        params, stats = small["params"], small["batch_stats"]
        return left, state._replace(params=params, stats=stats, opt_state=opt_state)

    def others(self) -> Iterator[Scratch]:
        """What is trained from scratch beside the paths; where a path failed, not its shapes."""
        config, steps = self.config, self.problem.dense_steps
        for signal in config.scratch:
            for mark, count in marks(config, self.problem).items():
                if not self.has(tuned(signal, mark)):
                    continue
                shape, more = self.shape_of(tuned(signal, mark)), steps_to(config, count)
                yield Scratch(scratch(signal, mark), shape, steps)
                yield Scratch(scratch_long(signal, mark), shape, steps + more)
        for shape in reduced(config):
            yield Scratch(by_hand(shape), shape, steps)
        if config.copies and all(self.has(tuned(config.signals[0], m)) for m in config.marks):
            for mark, shape in self.copycats().items():
                yield Scratch(copy(mark), shape, steps)

    def shape_of(self, name: str) -> Shape:
        """The architecture of a finished piece."""
        return as_shape(self.book.pieces[self.named(name)]["shape"])

    def copycats(self) -> dict[float, Shape]:
        """The last profile of the first signal, scaled to the parameters of its other marks."""
        problem, coupling = self.problem, self.problem.coupling
        profile_of = lambda mark: problem.profile(
            self.shape_of(tuned(self.config.signals[0], mark))
        )
        last, found = profile_of(max(self.config.marks)), {}
        for mark in smaller_marks(self.config):
            target = coupling.parameters(jp.structure.kept_of(coupling, profile_of(mark)))
            scaled = jp.structure.scaled_profile(coupling, last, parameters=target)
            found[mark] = problem.shape_with(scaled)
        return found


def best_rate(rates: Sequence[float], tried: Mapping[str, float | None]) -> float:
    """The only rate, or that of the lowest error.

    Example:
      >>> best_rate((0.1, 0.01, 1.0), {"0.1": 9.5, "0.01": 8.0, "1": None})
      0.01
    """
    if len(rates) == 1:
        return rates[0]
    finite = {rate: found for rate in rates if (found := tried[f"{rate:g}"]) is not None}
    if not finite:
        raise FloatingPointError(f"No tuning rate of {rates} has a finite loss. Lower them.")
    return min(finite, key=lambda rate: finite[rate])


TRIALS = "tuning rates"
"""The piece with the mean error of every rate."""


def trial(rate: float, mark: float) -> str:
    """The name of a network at a mark, tuned to choose the rate, without the seed."""
    return f"rate {rate:g} {mark:g} tried"


def tuned(signal: str, mark: float) -> str:
    """The name of a pruned and tuned network's piece, without the seed."""
    return f"{signal} {mark:g} tuned"


def scratch(signal: str, mark: float) -> str:
    """The same of what is left, trained from new weights in the steps of dense training."""
    return f"{signal} {mark:g} scratch"


def scratch_long(signal: str, mark: float) -> str:
    """The same in the steps of dense training and of fine-tuning."""
    return f"{signal} {mark:g} scratch long"


def by_hand(shape: Shape) -> str:
    """The same of a reduced network."""
    return f"reduced {shape.label}"


def copy(mark: float) -> str:
    """The same of a copycat."""
    return f"copy {mark:g}"


def smaller_marks(config: Config) -> list[float]:
    """The marks that copycats are made for: all but the last."""
    return [mark for mark in config.marks if mark != max(config.marks)]


def marks(config: Config, problem: Problem) -> dict[float, int]:
    """How many units are gone at every mark: a multiple of what goes at once."""
    each = config.each
    return {mark: max(round(mark * problem.units / each), 1) * each for mark in config.marks}


def steps_to(config: Config, count: int) -> int:
    """Steps of fine-tuning until so many units are gone and the next ones are about to go.

    Example:
      >>> from experiments.nip_it_in_the_bud import PRESETS
      >>> config = PRESETS["cpu"]["wrn"]  # one every eight steps
      >>> steps_to(config, 2), steps_to(config, 3)
      (23, 31)
    """
    return config.every * (-(-count // config.each) + 1) - 1


def stages(config: Config, most: int) -> list[int]:
    """The units gone when the network is really made smaller, and those at the end."""
    often = config.shrink_every * config.each
    return [*range(often, most, often), most] if often else [most]


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


def kept_of(state: State) -> Kept:
    """Which units are left."""
    is_removal = lambda node: isinstance(node, RemovalState)
    nodes = jax.tree.leaves(state.opt_state, is_leaf=is_removal)
    kept = next(node.kept for node in nodes if is_removal(node))
    return {name: np.asarray(flags) for name, flags in kept.items()}


def gone(kept: Kept) -> int:
    """How many units are not left."""
    return sum(int(np.sum(~flags)) for flags in kept.values())
