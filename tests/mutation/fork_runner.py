"""pytest in forked children of one process that has imported JAX and started no backend.

Run from the root of a copy of the repository. Reads one JSON job a line from standard input and
answers with one JSON line each: `{"status": "passed" | "failed" | "timeout", ...}`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import jax
import pytest

# What tests and package import anyway; none of these starts a backend.
for _module in ("chex", "flax.linen", "flax.nnx", "hypothesis.strategies", "optax", "scipy.linalg"):
    importlib.import_module(_module)

BETWEEN = 120  # seconds of CPU time before, between and after tests


class Recorder:
    """Which functions of the package each test enters, and how long it takes."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.entered: set[str] = set()
        self.tests: dict[str, dict[str, Any]] = {}

    def _entering(self, frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(self.root + "/jaxprune/"):
            path = frame.f_code.co_filename[len(self.root) + 1 :]
            self.entered.add(f"{path}:{frame.f_code.co_firstlineno}")

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        _forget()  # or a function is entered only by the first test that traces or builds it
        self.entered, begin = set(), time.perf_counter()
        sys.settrace(self._entering)
        yield
        sys.settrace(None)
        seconds = time.perf_counter() - begin
        self.tests[item.nodeid] = {"seconds": seconds, "entered": sorted(self.entered)}


class Chosen:
    """Only the tests named, in that order; one that takes too much CPU time ends the process."""

    def __init__(self, limits: dict[str, float]) -> None:
        self.limits = limits
        self.place = {test: i for i, test in enumerate(limits)}

    @pytest.hookimpl(hookwrapper=True, trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Any:
        yield
        items[:] = sorted(
            (item for item in items if item.nodeid in self.place),
            key=lambda item: self.place[item.nodeid],
        )

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        # Not handled: compiled code that does not end would never come to a handler.
        signal.setitimer(signal.ITIMER_PROF, self.limits[item.nodeid])
        yield
        signal.setitimer(signal.ITIMER_PROF, BETWEEN)


class Verdict:
    """The first test that failed, and how many passed."""

    def __init__(self) -> None:
        self.failed = ""
        self.passed = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid
        self.passed += report.when == "call" and report.passed


def _forget() -> None:
    jax.clear_caches()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("jaxprune", "tests"):
            for value in list(vars(module).values()):
                if isinstance(value, functools._lru_cache_wrapper):
                    value.cache_clear()


def _child(job: dict[str, Any], answer: Path) -> int:
    root = os.getcwd()
    sys.dont_write_bytecode = job["mutated"]
    sys.path.insert(0, root)
    if job["limits"] is not None:
        signal.setitimer(signal.ITIMER_PROF, BETWEEN)
    verdict, recorder = Verdict(), Recorder(root)
    plugins: list[Any] = [verdict]
    plugins += [recorder] if job["record"] else []
    plugins += [Chosen(job["limits"])] if job["limits"] is not None else []
    options = ["-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-o", "addopts="]
    options += ["-m", "not slow", "--tb=short"] + (["-x"] if job["mutated"] else [])
    code = int(pytest.main([*options, *job["files"]], plugins=plugins))
    package = getattr(sys.modules.get("jaxprune"), "__file__", "") or ""
    found = {
        "code": code,
        "failed": verdict.failed,
        "passed": verdict.passed,
        "own_copy": package.startswith(root + "/"),
        "tests": recorder.tests,
    }
    answer.write_text(json.dumps(found))
    return code


def run(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One job in a child of its own process group, killed with all it started when time is up."""
    answer, log = folder / "answer.json", folder / "log.txt"
    answer.unlink(missing_ok=True)
    begin = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            code = _child(job, answer)
        except BaseException:
            traceback.print_exc()
            code = 70
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    status = ""
    while not status and time.perf_counter() - begin < job["timeout"]:
        ended, code = os.waitpid(pid, os.WNOHANG)
        if ended:
            late = os.WIFSIGNALED(code) and os.WTERMSIG(code) == signal.SIGPROF
            status = "timeout" if late else "failed" if code else "passed"
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what it started, too
    if not status:
        status, _ = "timeout", os.waitpid(pid, 0)
    found = json.loads(answer.read_text()) if answer.exists() else {}
    seconds = time.perf_counter() - begin
    return {"status": status, "wall": seconds, "log": log.read_text()[-6000:], **found}


def main() -> None:
    """Answer jobs until the input ends."""
    out = os.fdopen(os.dup(1), "w")
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            print(json.dumps(run(json.loads(line), Path(folder))), file=out, flush=True)


if __name__ == "__main__":
    main()
