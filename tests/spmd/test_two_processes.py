"""Parameters that no process holds whole are pruned as one process would prune them."""

import json
import os
import socket
import subprocess
import sys

import pytest

from tests.transforms.fresh import ROOT


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def started(number, address):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    command = [sys.executable, "-m", "tests.spmd.one_of_two", str(number), address]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
def test_masks_of_a_tree_cut_over_two_processes_have_the_bits_of_one():
    address = f"localhost:{free_port()}"
    processes = [started(number, address) for number in range(2)]
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (printed, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-4000:]
        found = json.loads(printed.strip().splitlines()[-1])
        assert found["devices"] == 4
        assert not [name for name, holds in found["results"].items() if not holds]
