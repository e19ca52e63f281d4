"""A run that is killed, wherever, and started again ends with the results of one that was not."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments import compare_saliencies as experiment
from experiments import presenting
from tests.faults import killed_runs
from tests.faults.killed_runs import MOMENTS, NAMES, Writes
from tests.transforms import fresh

TINY = replace(
    experiment.PRESETS["smoke"], hidden=(4,), seeds=1, sparsities=(0.9,), dense_epochs=1,
    methods=("random", "magnitude"),
)  # fmt: skip


class Killed(BaseException):
    """What no `except Exception` catches."""


def die():
    raise Killed


def fit(self, params, masks, budget, salt):
    """Other weights, which depend on all it is given."""
    moved = lambda leaf, mask: (np.asarray(leaf) * budget.learning_rate + salt) * mask
    return jax.tree.map(moved, params, masks)


def run_in(folder, writes=None):
    """A tiny comparison that trains by a formula and measures no times; None if it was killed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(experiment.PRESETS, "smoke", TINY)
        patch.setattr(experiment.Comparison, "weigh", lambda *_: {"report": killed_runs.REPORT})
        patch.setattr(experiment.Comparison, "fit", fit)
        patch.setattr(presenting, "accuracy_plot", lambda *_, **options: None)
        killed_runs.work_in(folder, patch.setattr)
        if writes is not None:
            writes.install(patch.setattr)
        try:
            return experiment.run(experiment.Arguments(preset="smoke", methods=TINY.methods))
        except Killed:
            return None


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Its results, and how often it writes."""
    writes = Writes(None, "", die)
    return killed_runs.read(run_in(tmp_path_factory.mktemp("whole"), writes)), writes.count


@pytest.mark.parametrize(
    "moments",
    [MOMENTS, *(pytest.param((moment,), marks=pytest.mark.slow) for moment in MOMENTS)],
    ids=["in_turns", *MOMENTS],
)
def test_killed_at_every_write_a_run_still_ends_with_the_results_of_one_that_was_not(
    moments, uninterrupted, tmp_path
):
    results, count = uninterrupted
    assert count == 5  # dense networks, their row, two methods' rows, the table
    found, killed = None, 0
    while found is None:
        assert killed <= count
        # A write must be left behind each time, or the run would never end.
        moment = moments[killed % len(moments)]
        found = run_in(tmp_path, Writes(0 if moment == "after" else 1, moment, die))
        killed += found is None
    assert killed >= count - 2
    assert killed_runs.read(found) == results


def start(name, folder, *fate):
    """A run in a process of its own."""
    command = [sys.executable, "-m", "tests.faults.killed_runs", name, str(folder), *map(str, fate)]
    environment = {**os.environ, "PYTHONPATH": str(fresh.ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(process):
    """The results of a process, or None if it was killed."""
    said, problem = process.communicate(timeout=900)
    if process.returncode == -signal.SIGKILL:
        return None
    assert process.returncode == 0, problem[-3000:]
    return killed_runs.read(said.strip().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_killed_twenty_times_at_random_a_run_ends_with_the_results_of_one_that_was_not(
    name, tmp_path
):
    draw = random.Random(name)
    results = finished(start(name, tmp_path / "warm"))  # what is compiled stays in a cache
    began = time.monotonic()
    assert finished(start(name, tmp_path / "whole")) == results
    seconds = time.monotonic() - began
    folder, kills = tmp_path / "killed", 0
    for number in range(20):
        if number % 2:
            process = start(name, folder, draw.randrange(1, 5), draw.choice(MOMENTS))
        else:
            process = start(name, folder)
            time.sleep(draw.uniform(0.3, 1.0) * seconds)
            process.kill()
        found = finished(process)
        kills += found is None
        if found is not None:
            assert found == results
            shutil.rmtree(folder)  # again from the beginning
    assert kills >= 10
    assert finished(start(name, folder)) == results
