"""Masks on eight devices: where they live, and that they are those of one device."""

import json

import pytest

from tests.transforms.fresh import run_module

LAWS = [
    "masks_are_where_their_parameters_are",
    "parameters_stay_where_they_were",
    "masks_have_the_bits_of_one_device",
    "half_is_pruned",
    "pruned_weights_are_zero",
    "compiled_no_more_often_than_adam",
]


def check(found):
    assert found["devices"] == 8
    assert found["results"]
    broken = [
        (case, law) for case, laws in found["results"].items() for law in LAWS if not laws[law]
    ]
    assert not broken


@pytest.mark.slow
def test_sharded_parameters_have_masks_beside_them_with_the_bits_of_one_device():
    check(json.loads(run_module("tests.transforms.on_eight_devices", devices=8)))


@pytest.mark.slow
def test_so_do_all_transformations_selections_and_layouts():
    check(json.loads(run_module("tests.transforms.on_eight_devices", "all", devices=8)))
