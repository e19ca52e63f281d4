"""Results files: whole or not there, read with suspicion, and named when something is wrong."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from experiments import ledger, locking
from experiments.gradual.masks import Watch
from tests.faults import breaking
from tests.transforms import fresh


@dataclass(frozen=True)
class Config:
    """Of no experiment."""

    seeds: int = 2


@pytest.fixture
def book(tmp_path):
    made = ledger.Ledger(tmp_path / "results.json", Config())
    made.record("dense", {"loss": 1.0})
    return made


def reread(book):
    return ledger.Ledger(book.path, Config())


WRONG = {
    "a list": "[1, 2]",
    "a number": "3",
    "no pieces": json.dumps({"config": {"seeds": 2}, "hardware": {}}),
    "a list of pieces": json.dumps({"config": {"seeds": 2}, "hardware": {}, "pieces": ["ab"]}),
    "no hardware": json.dumps({"config": {"seeds": 2}, "hardware": None, "pieces": {}}),
    "no reasons": json.dumps({"config": {"seeds": 2}, "hardware": {}, "pieces": {}, "failed": 1}),
    "another configuration": json.dumps({"config": {"seeds": 3}, "hardware": {}, "pieces": {}}),
}


@pytest.mark.parametrize("way", ["empty", "cut", "garbage", *WRONG])
def test_results_that_are_no_results_are_named_kept_aside_and_made_again(way, book):
    if way in WRONG:
        book.path.write_text(WRONG[way])
    else:
        breaking.WAYS[way](book.path)
    content = book.path.read_bytes()
    with pytest.warns(UserWarning, match=rf"{book.path} .*moved to results\.damaged and the run"):
        again = reread(book)
    assert again.pieces == again.failed == {}
    assert book.path.with_suffix(".damaged").read_bytes() == content
    again.record("dense", {"loss": 2.0})
    assert reread(book).pieces == {"dense": {"loss": 2.0}}


def test_what_a_process_has_measured_outlives_damage_to_the_file(book):
    breaking.cut(book.path)
    with pytest.warns(UserWarning, match=r"moved to results\.damaged"):
        book.record("more", {"loss": 3.0})
    assert reread(book).pieces == {"dense": {"loss": 1.0}, "more": {"loss": 3.0}}


@pytest.mark.parametrize("kind", breaking.ERRORS)
@pytest.mark.parametrize("at", ["write", "replace"])
def test_a_disk_that_fails_is_named_and_leaves_the_file_as_it_was(kind, at, book, monkeypatch):
    before = book.path.read_text()

    def fail(path, *args):
        if at == "write":
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))  # what a full disk leaves
        raise breaking.disk_error(kind)

    with monkeypatch.context() as patch:
        if at == "write":
            patch.setattr(type(book.path), "write_text", fail)
        else:
            patch.setattr(ledger.os, "replace", fail)
        with pytest.raises(OSError, match="it was not written") as caught:
            book.record("more", {"loss": 3.0})
    assert caught.value.errno == breaking.ERRORS[kind]
    assert caught.value.filename == str(book.path)
    assert [path.name for path in book.path.parent.iterdir()] == [book.path.name]
    assert book.path.read_text() == before
    book.record("later", {"loss": 4.0})  # the lock was let go of
    assert set(reread(book).pieces) == {"dense", "more", "later"}


def test_what_a_killed_write_leaves_is_never_read(book):
    (book.path.parent / f".{book.path.name}.123").write_text("{")
    assert reread(book).pieces == book.pieces


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_no_results(number, book):
    with pytest.raises(FloatingPointError, match=r"obd/test/1 is -?(nan|inf)\."):
        book.record("obd", {"name": "x", "test": [0.5, number]})
    assert set(reread(book).pieces) == {"dense"}


@pytest.mark.parametrize("error", [FloatingPointError, ValueError])
def test_a_piece_that_fails_is_told_until_it_succeeds(error, book):
    with book.attempt("obd 0.9"):
        raise error("The loss is nan.")
    assert "obd 0.9" not in reread(book).pieces
    with pytest.raises(FloatingPointError, match=r"1 failed, see .*\n  obd 0.9: The loss is nan\."):
        reread(book).check_failed()
    again, other = reread(book), reread(book)
    again.record("obd 0.9", {"loss": 1.0})
    other.record("snip 0.9", {"loss": 1.0})  # by a process that knew it as failed
    for one in (again, other, reread(book)):
        one.check_failed()
    assert "failed" not in json.loads(book.path.read_text())
    assert set(reread(book).pieces) == {"dense", "obd 0.9", "snip 0.9"}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, TypeError, locking.Busy])
def test_what_has_nothing_to_do_with_the_piece_ends_the_run(error, book):
    with pytest.raises(error), book.attempt("obd 0.9"):
        raise error("elsewhere")
    assert reread(book).failed == {}


def test_damaged_neighbours_do_not_keep_a_summary_from_being_written(book):
    folder = book.path.parent
    (folder / "results-2.json").write_text('{"pieces": ')
    (folder / "results-3.json").write_text('{"pieces": {}}')  # not finished
    with pytest.warns(UserWarning, match=r"results-2\.json is left out: it cannot be read"):
        found = list(ledger.results(folder, "results"))
    assert [path for path, _ in found] == [book.path]
    assert found[0][1]["pieces"] == book.pieces


def test_lines_about_masks_that_are_damaged_are_dropped_by_name(tmp_path):
    path = tmp_path / "masks.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\x00{\n{"step": 2}\n[]\n{"step": 9}\n')
    with pytest.warns(UserWarning, match=rf"{path} has lines that are damaged"):
        Watch(path, {}, step=8)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


HOLDS = """
import os, sys, signal
from pathlib import Path
from experiments.locking import alone
with alone(Path(sys.argv[1]), wait=False):
    print("held", flush=True)
    signal.pause()
"""


def test_the_lock_of_a_killed_process_is_free_and_of_a_living_one_is_not(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(fresh.ROOT)}
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        with (
            pytest.raises(locking.Busy, match=str(tmp_path)),
            locking.alone(tmp_path, wait=False),
        ):
            pass
        process.kill()
        process.wait()
        with locking.alone(tmp_path, wait=False):
            assert list(tmp_path.iterdir()) == []
