"""Numbers restored into arrays and back, folders that hold something else, several processes."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest
from flax.training.train_state import TrainState
from jax.experimental import multihost_utils

import jaxprune as jp
from tests.transforms import zoo


def test_a_train_state_is_resumed_into_a_new_one_whose_step_is_a_number(tmp_path):
    def fresh():
        params, tx = {"w": jnp.ones((2, 2))}, optax.adam(0.1)
        return TrainState.create(apply_fn=None, params=params, tx=tx)

    stepped = jax.jit(lambda s: s.apply_gradients(grads=s.params))(fresh())
    jp.checkpoint.save(tmp_path / "array", stepped, step=1)
    found = jp.checkpoint.restore(tmp_path / "array", fresh())
    assert (type(found.step), found.step) == (int, 1)
    zoo.assert_same_bits(found.params, stepped.params)
    jp.checkpoint.save(tmp_path / "number", fresh(), step=0)
    found = jp.checkpoint.restore(tmp_path / "number", stepped)
    assert (found.step.dtype, found.step) == (jnp.int32, 0)
    zoo.assert_same_bits(found.opt_state, fresh().opt_state)


@pytest.mark.parametrize(
    ("number", "array"),
    [(7, jnp.int32(7)), (1.5, jnp.float32(1.5)), (1 + 2j, jnp.complex64(1 + 2j)),
     (0.1, jnp.float32(0.1)), (True, jnp.array(True))],
)  # fmt: skip
def test_a_number_and_a_scalar_array_take_each_others_place(number, array, tmp_path):
    more = {"scale": jnp.ones(()), "w": jnp.ones((2, 2))}
    jp.checkpoint.save(tmp_path, {"a": number, **more}, step=0)
    zoo.assert_same_bits(
        jp.checkpoint.restore(tmp_path, {"a": array, **more}), {"a": array, **more}
    )
    jp.checkpoint.save(tmp_path, {"a": array, **more}, step=1)
    found = jp.checkpoint.restore(tmp_path, {"a": number, **more})["a"]
    assert (type(found), found) == (type(number), array.item())


def test_a_number_that_an_array_does_not_hold_is_named_and_a_changed_one_is_damage(tmp_path):
    jp.checkpoint.save(tmp_path, {"a": 2**40, "b": 1e300}, step=0)
    with pytest.raises(ValueError, match="leaf 'b': it was saved as the number 1e\\+300, which"):
        jp.checkpoint.restore(tmp_path, {"a": 0, "b": jnp.float32(0)})
    with pytest.raises(ValueError, match="'a': it was saved as the number 1099511627776, which"):
        jp.checkpoint.restore(tmp_path, {"a": jnp.int32(0), "b": 0.0})
    path = tmp_path / "0" / "leaves" / "metadata"
    described = json.loads(path.read_text())
    described["a"][2] = described["a"][2][::-1]
    path.write_text(json.dumps(described))
    for like in (0, jnp.int32(0)):
        with pytest.raises(jp.checkpoint.Damaged, match="leaf 'a' has other bytes"):
            jp.checkpoint.restore(tmp_path, {"a": like, "b": 0.0})


def test_of_a_folder_without_a_checkpoint_of_ours_it_is_said_what_it_is(tmp_path):
    tree = {"w": jnp.ones(2)}
    jp.checkpoint.save(tmp_path / "run", tree, step=7)
    with pytest.raises(FileNotFoundError, match=r"one itself: restore from .*run with `step=7"):
        jp.checkpoint.restore(tmp_path / "run" / "7", tree)
    with ocp.StandardCheckpointer() as orbax:
        orbax.save(tmp_path / "orbax" / "3", tree)
    for directory in (tmp_path / "orbax", tmp_path / "orbax" / "3"):
        with pytest.raises(FileNotFoundError, match=r"Orbax wrote, not `jaxprune\.checkpoint`"):
            jp.checkpoint.restore(directory, tree)
    for directory in ("gs://bucket/run", Path("s3://bucket")):
        for call in (jp.checkpoint.steps, lambda d: jp.checkpoint.save(d, tree, step=1),
                     lambda d: jp.checkpoint.restore(d, tree)):  # fmt: skip
            with pytest.raises(ValueError, match="got the URL"):
                call(directory)


def test_of_several_processes_only_the_first_deletes_and_all_wait(tmp_path, monkeypatch):
    for step in range(3):
        jp.checkpoint.save(tmp_path, {"w": jnp.ones(1)}, step=step)
    waited = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "sync_global_devices", waited.append)
    for process, left in ((1, [0, 1, 2]), (0, [2])):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        jp.checkpoint._keep_newest(tmp_path, 1)
        assert jp.checkpoint.steps(tmp_path) == left
    assert len(waited) == 2
