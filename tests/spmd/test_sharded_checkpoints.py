"""A pruned run saved on eight devices goes on, bit for bit, on another number of them."""

import json

import pytest

from tests.transforms.fresh import run_module


@pytest.mark.slow
def test_what_eight_devices_saved_two_devices_and_one_restore_with_equal_bits(tmp_path):
    job = lambda name, devices: json.loads(
        run_module("tests.spmd.small_and_saved", name, tmp_path, devices=devices)
    )
    saved = job("saved", 8)
    assert saved["cut"] == [8, 8]
    assert saved["dropped"] == 80
    for devices in (2, 1):
        found = job("restored", devices)
        assert found["cut"] == found["background"]["cut"] == [devices, devices]
        assert found["digest"] == found["background"]["digest"] == saved["digest"]
