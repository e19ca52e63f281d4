"""Run by test_checkpoint_restart.py in fresh processes: a training loop that stops and goes on."""

import hashlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from tests.transforms import zoo

END, HALF = 10, 4


def transformation():
    """Data-driven gradual pruning that is half-way when the loop stops."""
    gradual = jp.prune_gradually(
        jp.saliency.taylor(zoo.loss), jp.select.lowest("layer"), jp.schedule.cubic(0.75, 8), every=3
    )
    return optax.chain(optax.adamw(0.01, weight_decay=0.1), gradual)


def fresh():
    params = zoo.dense_params()
    return {
        "params": params,
        "opt_state": transformation().init(params),
        "key": jax.random.key(11),
        "step": 0,
    }


@jax.jit
def train_step(params, opt_state, batch):
    grads = jax.grad(zoo.loss)(params, batch)
    updates, opt_state = transformation().update(grads, opt_state, params, batch=batch)
    return optax.apply_updates(params, updates), opt_state


def train(run, until):
    """Every batch comes from the run's key, so that a lost key would show."""
    while run["step"] < until:
        key, now = jax.random.split(run["key"])
        batch = (jax.random.normal(now, (16, 8)), jnp.ones((16, 4)))
        params, opt_state = train_step(run["params"], run["opt_state"], batch)
        run = {"params": params, "opt_state": opt_state, "key": key, "step": run["step"] + 1}
    return run


def digest(run):
    """One hash over the bits of every leaf."""
    found = hashlib.sha256()
    for name, leaf in jp.trees.named_leaves({**run, "key": jax.random.key_data(run["key"])}):
        found.update(name.encode() + np.asarray(leaf).tobytes())
    return found.hexdigest()


def main(directory):
    run = jp.checkpoint.restore(directory, fresh())
    started = run["step"]
    run = train(run, END)
    print(json.dumps({"started": started, "digest": digest(run)}))


if __name__ == "__main__":
    main(sys.argv[1])
