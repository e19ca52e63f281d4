"""Importing the package, against importing JAX and Optax alone, each time in a fresh process.

    python benchmarks/import_time.py         # --save writes the committed table

CPU time of the import statement, without the interpreter's own start. All modules have been
compiled to bytecode by the first, unmeasured pair, in a folder that is dropped afterwards. The
bound to hold is 1.25. Whether a full garbage collection, of all that JAX has made, falls into one
import or the other is chance: the second row is without the collector.
"""

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measuring

BASELINE = "import jax, optax"
CASES = {
    "import jaxprune": ("", "import jaxprune"),
    "the same, no garbage collection": ("import gc; gc.disable(); ", "import jaxprune"),
    "import jax, optax (noise)": ("", BASELINE),
}


class Imports:
    """Imports in processes of their own, and the CPU seconds that they have taken so far."""

    def __init__(self, bytecode: str):
        root = str(Path(__file__).resolve().parents[1])
        self.seconds = 0.0
        self.environment = {
            **os.environ,
            "PYTHONPATH": root,
            "PYTHONPYCACHEPREFIX": bytecode,
            "PYTHONDONTWRITEBYTECODE": "",
        }

    def run(self, before: str, statement: str) -> None:
        """Import in a fresh process."""
        timed = f"t = time.process_time(); {statement}; print(time.process_time() - t)"
        code = f"import time; {before}{timed}"
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=self.environment,
        )
        self.seconds += float(done.stdout)


def main() -> None:
    """Print the table."""
    pairs = 2 if measuring.is_quick(__doc__) else 21
    header = ["statement", f"/ `{BASELINE}`", "95 %", "pairs", "ms", "baseline, ms"]
    with tempfile.TemporaryDirectory() as bytecode:
        imports = Imports(bytecode)
        measuring.clock = lambda: imports.seconds  # of the other processes, not of this one
        rows = []
        for name, (before, statement) in CASES.items():
            baseline = partial(imports.run, before, BASELINE)
            other = partial(imports.run, before, statement)
            ratio = measuring.paired(baseline, other, pairs=pairs, least=0)
            rows.append([name, *measuring.ratio_cells(ratio)])
    measuring.publish("import_time", "python benchmarks/import_time.py", header, rows)


if __name__ == "__main__":
    main()
