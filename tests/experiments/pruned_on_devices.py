"""Two short runs of `to_prune_or_not`, on however many devices there are, as one line of JSON."""

import json
import tempfile
from pathlib import Path

import jax

import jaxprune as jp
from experiments import to_prune_or_not as experiment
from experiments.gradual import language
from experiments.gradual.running import Program, Run
from experiments.gradual.ways import Arm

if __name__ == "__main__":
    config = experiment.configure(experiment.Arguments(task="lm", preset="smoke"))
    task, results = language.task(config), {}
    for way in ("gradual", "rigl"):
        program = Program(config, task, Arm(way, 8, 0.8, 0, 1e-2))
        run = Run(program, 0, Path(tempfile.mkdtemp()))
        state = run.train(lambda steps: None)
        masks = [leaf.astype(int).ravel().tolist() for leaf in jax.tree.leaves(run.mask_of(state))]
        spread = len(jax.tree.leaves(state.rest)[0].sharding.device_set)
        kept = jp.trees.keep(run.mask_of(state))
        results[way] = {"loss": float(state.loss), "masks": masks, "kept": kept, "spread": spread}
    print(json.dumps({"devices": jax.device_count(), "results": results}))
