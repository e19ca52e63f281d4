"""The benchmarks run, in a process of their own: they pin a core and set XLA's threads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_threshold_benchmark_prints_its_table_and_saves_nothing_unasked():
    saved = ROOT / "benchmarks" / "results" / "threshold.md"
    before = saved.read_text() if saved.exists() else None
    printed = run("benchmarks/threshold.py", "1e4")
    assert "k-th value" in printed
    assert "mask write alone" in printed
    assert (saved.read_text() if saved.exists() else None) == before


@pytest.mark.parametrize(
    ("only", "told"),
    [
        pytest.param("speed", "empirical", marks=pytest.mark.slow),
        ("backpack", "BackPACK"),  # its rows, or why they are skipped
        pytest.param("accuracy", "Spearman", marks=pytest.mark.slow),
    ],
)
def test_the_curvature_benchmark_prints_its_tables_and_saves_nothing_unasked(only, told):
    saved = lambda: {p.name: p.read_text() for p in (ROOT / "benchmarks/results").glob("curv*.md")}
    before = saved()
    assert told in run("benchmarks/curvature.py", "--quick", "--only", only)
    assert saved() == before


@pytest.mark.parametrize(
    ("only", "told"),
    [
        ("trace", "groups"),
        pytest.param("speed", "FLOPs", marks=pytest.mark.slow),
        # Its rows, or why they are skipped.
        pytest.param("peers", "Torch-Pruning", marks=pytest.mark.slow),
    ],
)
def test_the_structure_benchmark_prints_its_tables_and_saves_nothing_unasked(only, told):
    saved = lambda: {p.name: p.read_text() for p in (ROOT / "benchmarks/results").glob("struc*.md")}
    before = saved()
    assert told in run("benchmarks/structure.py", "--quick", "--only", only)
    assert saved() == before


def test_a_call_that_does_three_times_the_work_takes_three_times_as_long():
    program = (
        "from benchmarks import measuring\n"
        "done = [0.0]\n"
        "measuring.clock = lambda: done[0]  # seconds of work alone\n"
        "def one(): done[0] += 0.25\n"
        "def three(): one(), one(), one()\n"
        "ratio = measuring.paired(one, three, pairs=21, least=0.5)\n"
        "assert ratio.ends == (ratio.median, ratio.median) == (3, 3), ratio\n"
        "assert (ratio.pairs, ratio.baseline, ratio.milliseconds) == (21, 250, 750), ratio\n"
    )
    run("-c", program)


def test_an_interval_of_the_median_covers_it_95_times_in_100_or_is_not_given():
    program = (
        "from benchmarks import measuring\n"
        "from math import comb\n"
        "import numpy as np\n"
        "for n in range(1, 61):\n"
        "    ends = measuring.interval_of(np.arange(n)[::-1])\n"
        "    assert (ends is None) == (n < 6), n\n"
        "    if ends is not None:  # ends are places; below, how many values lie under the median\n"
        "        low, high = map(int, ends)\n"
        "        inside = sum(comb(n, k) for k in range(low + 1, high + 1)) / 2**n\n"
        "        assert inside > 0.94, (n, inside)\n"
    )
    run("-c", program)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gradual", "MobileNetV1"),
        ("removing", "WRN-10-1"),
        ("whole_step", "WRN-10-1"),
        ("import_time", "garbage"),
        ("middles", "WRN-10-1"),
        ("gpu", "WoodFisher"),
        ("peers", "peer's time"),  # without the extra `bench` it has no rows
    ],
)
def test_benchmarks_print_their_table_and_save_nothing_unasked(name, told):
    folder = ROOT / "benchmarks" / "results"
    saved = lambda: {path.name: path.read_text() for path in folder.glob(f"{name}*.md")}
    before = saved()
    printed = run(f"benchmarks/{name}.py", "--quick")
    assert told in " ".join(printed.split())
    assert saved() == before


@pytest.mark.slow
def test_the_surgeon_benchmark_prints_its_tables_and_saves_nothing_unasked():
    saved = lambda: {p.name: p.read_text() for p in (ROOT / "benchmarks/results").glob("surg*.md")}
    before = saved()
    printed = run("benchmarks/surgeon.py", "--quick")
    assert "CHITA" in printed
    assert "LeNet-300-100" in printed
    assert saved() == before
