"""Which mutants of a module its tests notice.

    python -m tests.mutation.judging [--mutants N | --mutants all] [--write] [MODULE ...]

The package and its tests are copied to a temporary directory; there one file at a time is changed,
and the fast tests that enter the changed function run, the quickest first, until one fails.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.mutation.equivalent import EQUIVALENT
from tests.mutation.mutants import Mutant, mutants_of, sample

ROOT = Path(__file__).absolute().parents[2]
TABLE = Path(__file__).with_name("README.md")


class Module(NamedTuple):
    """What is mutated, and the tests that should notice; paths from the repository's root."""

    sources: str
    tests: tuple[str, ...]


MODULES = {
    "schedule": Module("jaxprune/schedule.py", ("test_schedule.py", "fuzz/test_fuzz_schedule.py")),
    "trees": Module(
        "jaxprune/trees.py", ("test_trees.py", "fuzz/test_fuzz_trees.py", "select/test_counts.py")
    ),
    "select": Module("jaxprune/select/*.py", ("select", "fuzz/test_fuzz_select.py")),
    "transforms": Module("jaxprune/transforms/*.py", ("transforms",)),
    "structure": Module("jaxprune/structure/*.py", ("structure",)),
}
ALWAYS = ("test_bad_input.py",)  # the errors of all modules


class Result(NamedTuple):
    """`score` is killed / (judged - equivalent)."""

    module: str
    all_mutants: int
    judged: int
    equivalent: int
    killed: int
    survivors: list[str]
    seconds: float

    @property
    def score(self) -> float:
        return self.killed / max(self.judged - self.equivalent, 1)


def sources(module: str) -> dict[str, str]:
    """The files of a module by path."""
    found = sorted(ROOT.glob(MODULES[module].sources))
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in found}


def all_mutants(module: str) -> dict[str, tuple[str, Mutant]]:
    """`(path, mutant)` by a name that is the same in every run, `file.py/function: old -> new`."""
    return {
        f"{path.removeprefix('jaxprune/')}/{mutant.name}": (path, mutant)
        for path, source in sources(module).items()
        for mutant in mutants_of(source)
    }


def judge(module: str, size: int | None, *, names: list[str] | None = None) -> Result:
    """Run the tests of a module on a sample of its mutants (None: all; or those of `names`)."""
    begin, mutants = time.perf_counter(), all_mutants(module)
    chosen = sample(list(mutants), size) if names is None else names
    equivalent = [name for name in chosen if name in EQUIVALENT]
    survivors = []
    with _session() as (root, ask):
        entered = _baseline(module, root, ask)
        for name in sorted(set(chosen) - set(equivalent), key=list(mutants).index):
            path, mutant = mutants[name]
            found = _run_on(mutant, path, entered, root, ask)
            print(f"  {found['status']:8} {found['wall']:5.1f} s  {name}", file=sys.stderr)
            if found["status"] == "passed":
                survivors.append(f"{name}\n{_diff(path, mutant)}")
    killed = len(chosen) - len(equivalent) - len(survivors)
    seconds = time.perf_counter() - begin
    counts = (len(mutants), len(chosen), len(equivalent), killed)
    return Result(module, *counts, survivors, seconds)


def _baseline(module: str, root: Path, ask: Any) -> dict[str, dict[str, Any]]:
    """What each test enters, and how long it takes; checks that nothing fails unmutated."""
    tests = (*MODULES[module].tests, *ALWAYS)
    job = {"files": [f"tests/{test}" for test in tests], "timeout": 3600}
    found = ask({**job, "limits": None, "mutated": False, "record": True})
    _check_unmutated(found)
    entered = found["tests"]
    # Again as the mutants are run: not recorded, the quickest tests first.
    order = sorted(entered, key=lambda test: entered[test]["seconds"])
    again = ask({**job, "limits": _limits(order, entered), "mutated": True, "record": False})
    _check_unmutated(again)
    if again["passed"] != found["passed"]:
        raise RuntimeError(f"{again['passed']} tests in another order, {found['passed']} before.")
    print(f"  {module}: {found['passed']} tests, {again['wall']:.0f} s", file=sys.stderr)
    return entered


def _check_unmutated(found: dict[str, Any]) -> None:
    if found["status"] != "passed" or not found["passed"]:
        raise RuntimeError(f"The tests fail on the package itself:\n{found['log']}")
    if not found["own_copy"]:
        raise RuntimeError("The tests imported another jaxprune than the copy that is mutated.")


def _limits(tests: list[str], entered: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Seconds of CPU time that each test may take."""
    return {test: 20 + 5 * entered[test]["seconds"] for test in tests}


def _run_on(
    mutant: Mutant, path: str, entered: dict[str, dict[str, Any]], root: Path, ask: Any
) -> dict[str, Any]:
    place = f"{path}:{mutant.first_line}"
    tests = [t for t, f in entered.items() if mutant.first_line is None or place in f["entered"]]
    if not tests:
        return {"status": "passed", "wall": 0.0}
    tests.sort(key=lambda test: entered[test]["seconds"])
    job = {
        "files": sorted({test.partition("::")[0] for test in tests}),
        "limits": _limits(tests, entered),
        "timeout": 3600,
        "mutated": True,
        "record": False,
    }
    source, cached = root / path, root / path.rpartition("/")[0] / "__pycache__"
    whole = source.read_text()
    for old in cached.glob(f"{source.stem}.*.pyc"):  # known by a time in whole seconds
        old.unlink()
    source.write_text(mutant.source)
    try:
        return ask(job)
    finally:
        source.write_text(whole)


def _diff(path: str, mutant: Mutant) -> str:
    old = (ROOT / path).read_text().splitlines(keepends=True)
    new = mutant.source.splitlines(keepends=True)
    return "".join(difflib.unified_diff(old, new, path, path, n=1))


@contextmanager
def _session() -> Iterator[tuple[Path, Any]]:
    """A copy of the repository, and a function that runs a job of `fork_runner` there."""
    with tempfile.TemporaryDirectory(prefix="jaxprune-mutants-") as folder:
        root = Path(folder).resolve() / "repository"
        root.mkdir()
        for name in ("jaxprune", "tests"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("experiments", "benchmarks"):
            (root / name).symlink_to(ROOT / name)
        shutil.copy(ROOT / "pyproject.toml", root)
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": str(root),
        }
        runner = subprocess.Popen(
            [sys.executable, "tests/mutation/fork_runner.py"],
            cwd=root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert runner.stdin is not None
        assert runner.stdout is not None

        def ask(job: dict[str, Any]) -> dict[str, Any]:
            runner.stdin.write(json.dumps(job) + "\n")  # type: ignore[union-attr]
            runner.stdin.flush()  # type: ignore[union-attr]
            return json.loads(runner.stdout.readline())  # type: ignore[union-attr]

        try:
            yield root, ask
        finally:
            runner.stdin.close()
            runner.wait()
            runner.stdout.close()


HEAD = (
    "| module | mutants | judged | equivalent | killed | share | minutes |",
    "|---|---:|---:|---:|---:|---:|---:|",
)


def row(r: Result) -> str:
    """The counts of one module as a row of a table in Markdown."""
    counts = f"{r.all_mutants} | {r.judged} | {r.equivalent} | {r.killed}"
    return f"| `{r.module}` | {counts} | {100 * r.score:.1f} % | {r.seconds / 60:.0f} |"


def write(results: list[Result]) -> None:
    """The rows of these modules in the table of README.md are replaced, or added."""
    text, _, old = TABLE.read_text().partition(HEAD[0])
    rows = {line.split("`")[1]: line for line in old.splitlines() if "`" in line}
    rows |= {result.module: row(result) for result in results}
    TABLE.write_text(
        "\n".join([text + HEAD[0], HEAD[1], *(rows[m] for m in MODULES if m in rows)]) + "\n"
    )


def size_of(text: str) -> int | None:
    """The size of a sample; `all` is None."""
    return None if text == "all" else int(text)


def main() -> None:
    """Judge modules and print the table; with `--write` it takes the place of the one in README."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(MODULES)}")
    parser.add_argument("--mutants", type=size_of, default=25, help="a module, a number or `all`")
    parser.add_argument("--write", action="store_true", help="write their rows into README.md")
    options = parser.parse_args()
    results = [judge(module, options.mutants) for module in options.modules or MODULES]
    for result in results:
        print("\n".join(result.survivors))
    print("\n".join([*HEAD, *map(row, results)]))
    if options.write:
        write(results)


if __name__ == "__main__":
    main()
