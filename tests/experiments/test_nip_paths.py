"""Paths of removals: shrunk on the way as masked to the end, by cost, and on several devices."""

import json
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import ledger
from experiments import nip_it_in_the_bud as experiment
from experiments.image_batches import augment
from experiments.nipping.arms import Bench, as_shape, tuned
from experiments.nipping.fitting import Program
from experiments.nipping.task import Problem
from tests.transforms.fresh import run_module

CONFIG = replace(experiment.PRESETS["smoke"]["wrn"], every=2, marks=(0.25, 0.5))


def walked(folder, **changes):
    """The pieces of a path, and the bench."""
    problem = Problem(replace(CONFIG, **changes))
    book = ledger.Ledger(folder / "book.json", problem.config)
    bench = Bench(problem, cache(partial(Program, problem)), book, folder, 0)
    dense, steps = problem.init(CONFIG.shape, jax.random.key(5)), []
    bench.dense = lambda told: dense
    bench.path("fisher", 8e-4, lambda count, what: steps.append(count))
    return json.loads(book.path.read_text())["pieces"], sum(steps)


@pytest.mark.slow
def test_a_path_shrunk_on_the_way_is_the_masked_one_at_fewer_flops(tmp_path):
    """28 units go at once, twice: the second half of the path has the smaller network."""
    masked, steps = walked(tmp_path / "masked")
    shrunk, same = walked(tmp_path / "shrunk", shrink_every=1)
    assert steps == same == 5
    for mark in CONFIG.marks:
        ours, other = (pieces[f"{tuned('fisher', mark)} seed 0"] for pieces in (shrunk, masked))
        assert as_shape(ours["shape"]) == as_shape(other["shape"])
        assert ours["steps"] == other["steps"]
        assert ours["test"] == pytest.approx(other["test"], abs=0.6)
    first, last = (f"{tuned('fisher', mark)} seed 0" for mark in CONFIG.marks)
    whole, part = (Problem(CONFIG).coupled(s).flops() for s in (
        CONFIG.shape, as_shape(masked[first]["shape"])))  # fmt: skip
    assert masked[last]["flops"] == 5 * whole
    assert shrunk[last]["flops"] == 3 * whole + 2 * part


@pytest.mark.slow
def test_a_shrunk_path_that_is_killed_goes_on_where_it_was(tmp_path, monkeypatch):
    whole, _ = walked(tmp_path / "whole", shrink_every=1)
    look = Bench._see

    def killed(self, stage, names, step, state):
        if stage.lost and step == 5:
            raise KeyboardInterrupt
        look(self, stage, names, step, state)

    with monkeypatch.context() as patch:
        patch.setattr(Bench, "_see", killed)
        with pytest.raises(KeyboardInterrupt):
            walked(tmp_path / "killed", shrink_every=1)
    again, steps = walked(tmp_path / "killed", shrink_every=1)
    assert again == whole
    assert steps == 2  # those of the second stage alone: the first had ended


@pytest.mark.parametrize("smoothing", [pytest.param(0.0, marks=pytest.mark.slow), 0.2])
def test_a_step_takes_the_loss_of_smoothed_labels(smoothing):
    problem = Problem(replace(CONFIG, smoothing=smoothing))
    program = Program(problem, CONFIG.shape, 5)
    variables, key = problem.init(CONFIG.shape, jax.random.key(1)), jax.random.key(2)
    images, labels = (part[: CONFIG.batch] for part in problem.train)
    seen = augment(jnp.asarray(images), CONFIG.dataset, jax.random.fold_in(key, 0))
    logits, _ = problem.model(CONFIG.shape).apply(
        variables, seen, train=True, mutable=["batch_stats"]
    )
    log_p = np.asarray(jax.nn.log_softmax(logits), float)
    right = log_p[np.arange(len(labels)), labels]
    expected = -((1 - smoothing) * right + smoothing * log_p.mean(-1)).mean()
    state = program.update(program.start(variables), images, labels, key)
    assert float(state.loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_four_devices_share_a_batch_and_remove_what_one_does():
    one, four = (
        json.loads(run_module("tests.experiments.tuned_on_devices", devices=n)) for n in (1, 4)
    )
    assert (one["spread"], four["spread"]) == (1, 4)
    assert one["kept"] == four["kept"]
    assert sum(map(len, one["kept"].values())) == 112 - 10
    assert one["loss"] == pytest.approx(four["loss"], rel=1e-5)
