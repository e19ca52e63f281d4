"""A short path of removals, on however many devices there are, as one line of JSON."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from experiments import nip_it_in_the_bud as experiment
from experiments.nipping.arms import kept_of
from experiments.nipping.fitting import Fit, Program, Removal
from experiments.nipping.task import Problem

if __name__ == "__main__":
    config = replace(experiment.PRESETS["smoke"]["wrn"], every=2, each=5)
    problem = Problem(config)
    program = Program(problem, config.shape, 5, Removal("fisher", 10, 8e-4))
    first = program.start(problem.init(config.shape, jax.random.key(3)))
    state = Fit(program, 0, Path(tempfile.mkdtemp()), first).run(lambda steps: None)
    kept = {name: np.flatnonzero(flags).tolist() for name, flags in kept_of(state).items()}
    spread = len(jax.tree.leaves(state.params)[0].sharding.device_set)
    print(json.dumps({"loss": float(state.loss), "kept": kept, "spread": spread}))
