"""Run a module in a fresh process: a restart, or another number of devices."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).absolute().parents[2]


def run_module(module, *arguments, devices=1):
    """Standard output of `python -m module`, with that many CPU devices; its errors are raised."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
        f"--xla_force_host_platform_device_count={devices}",
    }
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.strip().splitlines()[-1]
