"""Of a checkpoint that cannot be counted, `python -m jaxprune report` says why, in one line."""

import json
import shutil
import subprocess
import sys

import jax.numpy as jnp
import pytest

import jaxprune as jp
from jaxprune.__main__ import main
from tests.commands import ENVIRONMENT, ROOT, in_json, refused, told, with_jaxprune, with_orbax


def test_a_folder_without_a_checkpoint_is_an_error_that_says_what_there_is(tmp_path, capsys):
    assert "nowhere does not exist" in refused(capsys, tmp_path / "nowhere")
    assert "is no checkpoint and holds none" in refused(capsys, tmp_path)
    (tmp_path / "notes").write_text("text")
    (tmp_path / "7").mkdir()
    assert "is no checkpoint and holds none" in refused(capsys, tmp_path)
    assert "notes is a file, not a folder" in refused(capsys, tmp_path / "notes")
    assert "got the URL 'gs://bucket/run'" in refused(capsys, "gs://bucket/run")
    with_orbax(tmp_path / "first", {"w": jnp.ones(1)})
    with_orbax(tmp_path / "second", {"w": jnp.ones(1)})
    assert "is no checkpoint and holds none" in refused(capsys, tmp_path)  # but two lie in it


def test_a_step_that_is_not_there_is_an_error_that_lists_those_that_are(tmp_path, capsys):
    for step in (10, 9):
        jp.checkpoint.save(tmp_path, {"w": jnp.ones(1)}, step=step)
    error = refused(capsys, tmp_path, "--step", 4)
    assert error.endswith("has no checkpoint of step 4; complete ones: [9, 10].")
    assert "without steps" in refused(capsys, tmp_path / "9", "--step", 9)


def test_a_checkpoint_that_was_never_finished_is_not_counted_and_said_to_be_so(tmp_path, capsys):
    jp.checkpoint.save(tmp_path, {"w": jnp.ones(1)}, step=1)
    half = tmp_path / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "1", half)
    assert in_json(capsys, tmp_path)["step"] == 1
    assert "Never finished" in refused(capsys, tmp_path, "--step", 2)
    assert "was never finished" in refused(capsys, half)
    shutil.rmtree(tmp_path / "1")
    assert "no complete checkpoint" in refused(capsys, tmp_path)


def test_a_file_that_goes_missing_or_is_altered_is_damage_or_changes_nothing(tmp_path, capsys):
    with_jaxprune(tmp_path, {"w": jnp.ones((2, 2))})
    whole, told_of = told(capsys, tmp_path), set()
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        data = path.read_bytes()
        for left in (None, data[: len(data) // 2]):
            path.unlink() if left is None else path.write_bytes(left)
            try:
                main(["report", str(tmp_path)])
            except SystemExit as stopped:
                text = str(stopped.code)
                told_of |= {path.name} if "files are missing or damaged" in text else set()
            else:
                assert capsys.readouterr().out == whole
            path.write_bytes(data)
    assert told_of >= {"manifest.ocdbt", "metadata", "_METADATA"}
    assert told(capsys, tmp_path) == whole


def test_an_array_with_other_bytes_than_were_saved_is_damage(tmp_path, capsys):
    with_jaxprune(tmp_path, {"v": jnp.zeros(2), "w": jnp.ones(2)})
    path = tmp_path / "3" / "leaves" / "metadata"
    described = json.loads(path.read_text())
    shape, dtype, digest = described["w"]
    path.write_text(json.dumps(described | {"w": [shape, dtype, digest[::-1]]}))
    assert "leaf 'w' has other bytes" in refused(capsys, tmp_path)
    assert in_json(capsys, tmp_path, "--only", "v")["totals"]["nonzeros"] == 0
    path.write_text(json.dumps({n: about[:2] for n, about in described.items()}))  # version 0.1
    assert in_json(capsys, tmp_path)["totals"]["nonzeros"] == 2


def test_a_pattern_that_matches_nothing_is_an_error_that_names_leaves(tmp_path, capsys):
    with_jaxprune(tmp_path, [jnp.ones(1) for _ in range(11)])
    error = refused(capsys, tmp_path, "--only", "params/*")
    assert "No leaf matches 'params/*'. There are '0', '1'," in error
    assert error.endswith("'7' and 3 more.")


def test_a_command_that_does_not_exist_is_an_error(capsys):
    for wrong in ([], ["count"], ["report"], ["report", "x", "--sort", "bytes"]):
        with pytest.raises(SystemExit) as stopped:
            main(wrong)
        assert stopped.value.code == 2
        assert "usage: python -m jaxprune" in capsys.readouterr().err


@pytest.mark.slow
def test_an_error_of_the_command_is_one_line_and_the_exit_status_1(tmp_path):
    run = [sys.executable, "-m", "jaxprune", "report", tmp_path]
    done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
