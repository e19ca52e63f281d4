"""Run by test_package.py where only the wheel and its dependencies are installed.

Imports everything that is public, prunes and shrinks a model, and counts a checkpoint of it by the
command line.
"""

import importlib.metadata
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp


def check_names():
    """Every public name is there, and no other jaxprune than the installed one."""
    assert Path(jp.__file__).is_relative_to(sys.prefix), jp.__file__
    assert importlib.metadata.version("jaxprune") == jp.__version__
    for name in jp.__all__:
        value = getattr(jp, name)
        if isinstance(value, ModuleType):
            assert all(hasattr(value, inner) for inner in getattr(value, "__all__", []))


def apply(params, inputs):
    """Two dense layers."""
    return jax.nn.relu(inputs @ params["in"] + params["bias"]) @ params["out"]


def loss(outputs, targets):
    """Squared error of each example."""
    return jnp.sum((outputs - targets) ** 2, -1)


def pruned_by_curvature():
    """Half of the weights are pruned, and stay so in a jitted step."""
    first, second = jax.random.split(jax.random.key(0))
    params = {
        "in": jax.random.normal(first, (6, 8)),
        "bias": jnp.ones(8),
        "out": jax.random.normal(second, (8, 3)),
    }
    batch = (jax.random.normal(first, (32, 6)), jnp.ones((32, 3)))
    score = jp.saliency.optimal_brain_damage(jp.curvature.exact_diagonal(apply, loss))
    pruned = jp.one_shot(score, jp.select.lowest())(params, batch, sparsity=0.5)
    tx = optax.chain(optax.adam(0.1), jp.freeze_pruned(pruned.mask))

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: jnp.mean(loss(apply(p, batch[0]), batch[1])))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state = step(pruned.params, tx.init(pruned.params))
    return params, state, batch[0]


def check_shrinking(params, inputs):
    """Half of the units go, and the small model computes what the masked one does."""
    coupling = jp.couple(apply, params, inputs)
    units = jp.one_shot(jp.saliency.magnitude(), jp.select.lowest_units(coupling))
    pruned = units(params, None, sparsity=0.5)
    small = jp.shrink(pruned.params, pruned.mask, coupling)
    assert small["in"].shape == (6, 4)
    np.testing.assert_allclose(apply(small, inputs), apply(pruned.params, inputs), rtol=1e-5)


def check_command(params, state):
    """The command line counts what was saved."""
    with tempfile.TemporaryDirectory() as folder:
        jp.checkpoint.save(folder, {"params": params, "opt_state": state}, step=5)
        run = [sys.executable, "-m", "jaxprune", "report", folder, "--json", "--only", "params/*"]
        found = json.loads(subprocess.run(run, capture_output=True, check=True).stdout)
    assert {row["name"]: row["nonzeros"] for row in found["leaves"]} == {
        f"params/{name}": np.count_nonzero(leaf) for name, leaf in params.items()
    }
    masks = [row["masks"][0] for row in found["leaves"]]
    assert sum(mask["size"] - mask["kept"] for mask in masks) == 36
    assert not any(mask["not_zero"] for mask in masks)


if __name__ == "__main__":
    check_names()
    params, state, inputs = pruned_by_curvature()
    check_shrinking(params, inputs)
    check_command(params, state)
    names = ("jax", "flax", "optax", "chex", "orbax-checkpoint", "numpy")
    print(sys.version.split()[0], *(f"{n} {importlib.metadata.version(n)}" for n in names))
