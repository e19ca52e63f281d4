"""The README is run: its Python blocks in order, with the user's side of the flow given here."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn

from tests import pages

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = pages.blocks(TEXT, "python")
COMMANDS = [block.text for block in pages.blocks(TEXT, "bash")]


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(8)(x))
        return nn.Dense(4)(x)


@pytest.fixture(scope="module")
def users_side(tmp_path_factory):
    """What the README calls yours: a model, a loss, data, a loop that knows nothing of masks."""
    inputs = jax.random.normal(jax.random.key(0), (32, 6))
    labels = jnp.arange(32) % 4
    model = Net()
    params = model.init(jax.random.key(1), inputs)

    def loss(outputs, targets):
        return optax.softmax_cross_entropy_with_integer_labels(outputs, targets)

    def fit(params, tx, data):
        @jax.jit
        def step(params, state, batch):
            objective = lambda p: loss(model.apply(p, batch[0]), batch[1]).mean()
            updates, state = tx.update(jax.grad(objective)(params), state, params)
            return optax.apply_updates(params, updates), state

        state = tx.init(params)
        for batch in data:
            params, state = step(params, state, batch)
        return params

    return {
        "apply": model.apply,
        "loss": loss,
        "batch": (inputs, labels),
        "inputs": inputs,
        "data": [(inputs, labels)] * 5,
        "params": params,
        "initial_params": params,
        "fit": fit,
        "mean_loss": lambda p: loss(model.apply(p, inputs), labels).mean(),
        "jax": jax,
        "hidden": lambda name, leaf: name == "params/Dense_1/kernel",
        "folder": tmp_path_factory.mktemp("checkpoints"),
        "optax": optax,
    }


def test_every_python_block_runs_and_does_what_it_says(users_side, capsys):
    space = dict(users_side)
    for block in BLOCKS:
        pages.run(block, space, "README.md")
    printed = capsys.readouterr().out
    assert "kernel" in printed
    assert "sparsity 90.00 %" in printed
    jp = space["jp"]
    prunable = space["pruned"].info["prunable"]
    assert space["pruned"].info["kept"] == prunable - round(0.9 * prunable)
    assert space["winner"].info["kept"] == prunable - round(0.9 * prunable)
    kernels = space["sparse"].mask["params"]["Dense_1"]["kernel"].reshape(2, 4, 4)
    assert (kernels.sum(axis=1) == 2).all()
    assert jp.trees.drop(space["mask"]) == 0
    assert space["diagonal"].is_hessian
    assert space["diagonal"].fallback_paths == ()
    assert jax.tree.all(jax.tree.map(jnp.array_equal, space["restored"]["params"], space["params"]))


def test_the_parameters_fitted_by_the_first_block_are_zero_where_the_mask_is_false(users_side):
    space = dict(users_side)
    pages.run(BLOCKS[0], space, "README.md")
    dropped = jax.tree.map(lambda m, p: p[~m], space["pruned"].mask, space["params"])
    assert sum(x.size for x in jax.tree.leaves(dropped)) > 50
    assert all((x == 0).all() for x in jax.tree.leaves(dropped))


def test_the_first_two_bash_blocks_are_the_main_job_and_the_tests_each_with_its_own_venv():
    main, tests = COMMANDS[:2]
    for block in (main, tests):
        assert block.startswith("python3 -m venv .venv\n")
        assert "pip install -e" in block
    assert main.rstrip().endswith("python experiments/compare_saliencies.py")
    assert tests.rstrip().endswith("pytest")


def test_every_file_the_readme_points_to_exists():
    for target in re.findall(r"\]\((?!#|http)([^)]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_the_tables_in_the_readme_are_the_committed_results():
    tables = re.findall(r"<!-- table: (\S+) -->\n(.*?)<!-- end -->", TEXT, re.DOTALL)
    assert len(tables) == 11
    for path, shown in tables:
        assert shown.strip() == (ROOT / path).read_text().strip(), path
