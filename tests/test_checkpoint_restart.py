"""Checkpoints across processes and devices, and interrupted ones."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.transforms import fresh, moved, restarted, zoo


def test_a_loop_restarted_in_a_fresh_process_ends_with_the_bits_of_an_uninterrupted_one(tmp_path):
    uninterrupted = restarted.train(restarted.fresh(), restarted.END)
    stopped = restarted.train(restarted.fresh(), restarted.HALF)
    jp.checkpoint.save(tmp_path, stopped, step=stopped["step"])
    half_way = zoo.dropped(jp.mask_of(stopped["opt_state"]))
    assert 0 < half_way < zoo.dropped(jp.mask_of(uninterrupted["opt_state"])) == 54
    found = json.loads(fresh.run_module("tests.transforms.restarted", tmp_path))
    assert found["started"] == restarted.HALF
    assert found["digest"] == restarted.digest(uninterrupted)
    assert found["digest"] != restarted.digest(stopped)


def test_a_loop_restarted_without_its_optimizer_state_ends_elsewhere(tmp_path):
    stopped = restarted.train(restarted.fresh(), restarted.HALF)
    forgetful = {**restarted.fresh(), **{k: stopped[k] for k in ("params", "key", "step")}}
    uninterrupted = restarted.train(restarted.fresh(), restarted.END)
    end = restarted.train(forgetful, restarted.END)
    assert restarted.digest(end) != restarted.digest(uninterrupted)


def test_one_device_saves_eight_restore_in_their_sharding_and_back(tmp_path):
    expected = moved.saved_on_one_device()
    jp.checkpoint.save(tmp_path / "one", expected, step=0)
    arguments = (tmp_path / "one", tmp_path / "eight")
    found = json.loads(fresh.run_module("tests.transforms.moved", *arguments, devices=8))
    everything = {"kernel": True, "mask": True, "count": True}
    assert found == {"devices": 8, "arrays": everything, "abstract": everything}
    assert jax.device_count() == 1
    for like in (expected, jax.eval_shape(lambda: expected)):
        zoo.assert_same_bits(jp.checkpoint.restore(tmp_path / "eight", like), expected)


def test_a_save_that_died_half_way_is_not_seen_and_can_be_done_again(tmp_path):
    tree = {"w": jnp.arange(3.0)}
    jp.checkpoint.save(tmp_path, tree, step=1)
    # What Orbax leaves behind when it is killed, and what a broken copy looks like.
    (tmp_path / "2.orbax-checkpoint-tmp" / "tree").mkdir(parents=True)
    (tmp_path / "3").mkdir()
    (tmp_path / "notes").mkdir()
    assert jp.checkpoint.steps(tmp_path) == [1]
    assert jp.checkpoint.latest_step(tmp_path) == 1
    zoo.assert_same_bits(jp.checkpoint.restore(tmp_path, tree), tree)
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 3; complete ones: \\[1\\]"):
        jp.checkpoint.restore(tmp_path, tree, step=3)
    jp.checkpoint.save(tmp_path, tree, step=2)
    assert jp.checkpoint.steps(tmp_path) == [1, 2]


SAVES_FOR_EVER = """
import sys, jax.numpy as jnp, jaxprune as jp
step = (jp.checkpoint.latest_step(sys.argv[1]) or 0) + 1
while True:
    tree = {"w": jnp.full(4_000_000, step, jnp.float32)}
    jp.checkpoint.save(sys.argv[1], tree, step=step, keep=3)
    step += 1
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_newest_checkpoint_is_complete(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(fresh.ROOT), "JAX_PLATFORMS": "cpu"}
    reached = 0
    for delay in (0.0, 0.013, 0.031, 0.057, 0.11):
        command = [sys.executable, "-c", SAVES_FOR_EVER, str(tmp_path)]
        process = subprocess.Popen(command, env=environment)
        deadline = time.monotonic() + 60
        while (jp.checkpoint.latest_step(tmp_path) or 0) <= reached + 1:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        reached = jp.checkpoint.latest_step(tmp_path)
        for step in jp.checkpoint.steps(tmp_path):
            like = {"w": jnp.zeros(4_000_000)}
            found = jp.checkpoint.restore(tmp_path, like, step=step)
            np.testing.assert_array_equal(found["w"], np.float32(step))
