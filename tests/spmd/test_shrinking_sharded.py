"""`shrink` of sharded arrays keeps their sharding as far as the smaller sizes allow."""

import json

import pytest

from tests.transforms.fresh import run_module


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_a_shrunk_array_is_cut_as_before_where_its_new_size_divides(kind):
    found = json.loads(run_module("tests.spmd.small_and_saved", "shrunk", kind, devices=8))
    assert found
    assert not [layout for layout, case in found.items() if not (case["bits"] and case["lies"])]
    both = found["data x model"]["specs"]
    assert both["conv/kernel"] == "P(None, None, 'data', 'model')"  # 4 inputs, 4 of 8 channels
    assert both["dense/kernel"] == "P('data', None)"  # 16 of 32 inputs, 9 of 16 units
    assert both["head/kernel"] == "P(None, 'model')"
