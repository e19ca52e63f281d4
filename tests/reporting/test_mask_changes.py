"""What a mask update changed, and its line in a file."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.reporting import append_changes, mask_changes


def masks(seed):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.random(shape) < 0.5)
    return {"layer": {"kernel": draw(7, 5)}, "empty": draw(0, 3)}


def test_counts_are_those_of_numpy_and_the_same_inside_jit():
    old, new = masks(0), masks(1)
    found = mask_changes(old, new)
    was, now = (np.asarray(tree["layer"]["kernel"]) for tree in (old, new))
    change = found["layer/kernel"]
    assert change == (35, now.sum(), (was & ~now).sum(), (~was & now).sum())
    assert change.sparsity == 1 - now.mean()
    assert change.churn == (was != now).mean()
    assert found["empty"] == (0, 0, 0, 0)
    assert found["empty"].churn == 0
    assert jax.tree.map(int, jax.jit(mask_changes)(old, new)) == found


def test_no_change_is_no_churn_and_growing_masks_revive_nothing():
    old = masks(0)
    assert all(change.churn == 0 for change in mask_changes(old, old).values())
    fewer = jax.tree.map(jnp.logical_and, old, masks(1))
    changes = mask_changes(old, fewer)
    assert [change.revived for change in changes.values()] == [0, 0]
    assert changes["layer/kernel"].dropped > 0


def test_every_update_is_a_line_and_lines_are_appended(tmp_path):
    path, old, new = tmp_path / "masks.jsonl", masks(0), masks(1)
    for step, pair in ((100, (old, new)), (200, (new, new))):
        append_changes(path, step, mask_changes(*pair))
    first, second = [json.loads(line) for line in path.read_text().splitlines()]
    change = mask_changes(old, new)["layer/kernel"]
    assert (first["step"], second["step"]) == (100, 200)
    assert first["leaves"]["layer/kernel"] == {
        "sparsity": change.sparsity,
        "churn": change.churn,
        "entries": 35,
        "kept": change.kept,
        "dropped": change.dropped,
        "revived": change.revived,
    }
    assert first["churn"] == change.churn
    assert first["revived"] == change.revived
    assert second["churn"] == second["revived"] == 0


def test_what_cannot_be_compared_or_written_is_an_error_that_names_it(tmp_path):
    old = masks(0)
    with pytest.raises(ValueError, match="new mask at leaf 'layer/kernel' has shape"):
        mask_changes(old, old | {"layer": {"kernel": jnp.ones((2, 2), bool)}})
    with pytest.raises(TypeError, match="old mask at leaf 'layer/kernel' has dtype float32"):
        mask_changes(old | {"layer": {"kernel": jnp.ones((7, 5))}}, old)
    with pytest.raises(ValueError, match="no leaf to write about"):
        append_changes(tmp_path / "masks.jsonl", 0, {})
    with pytest.raises(TypeError, match="counts are traced"):
        jax.jit(lambda m: append_changes(tmp_path / "m.jsonl", 0, mask_changes(m, m)))(old)
    assert jp.trees.count(old) == 35
