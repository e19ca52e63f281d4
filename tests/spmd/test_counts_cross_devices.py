"""Selections on sharded parameters: counts cross devices, weights and scores never do."""

import json

import pytest

from tests.spmd.collectives import collectives
from tests.spmd.exchanged import FUNCTIONS
from tests.transforms.fresh import run_module

SORTS = ("lamp", "shared values")
SHARDED = ("tensor parallel", "fully sharded", "data x model")


def exchanged(cases):
    return json.loads(run_module("tests.spmd.exchanged", *cases, devices=8))


def check(found):
    assert all(case["number"] for case in found.values())  # counts are exchanged
    assert not {name: case["large"] for name, case in found.items() if case["large"]}


def test_pruning_fully_sharded_parameters_exchanges_counts_and_never_weights():
    found = exchanged([f"{name}/fully sharded" for name in ("one_shot", "prune_gradually", "lamp")])
    gathered = found.pop("lamp/fully sharded")["large"]  # it sorts: what is looked for can be seen
    assert any(operation == "all-gather" and size >= 2**20 for operation, size in gathered)
    check(found)


@pytest.mark.slow
@pytest.mark.parametrize("layout", SHARDED)
def test_so_do_all_selections_transformations_and_quantizers_that_do_not_sort(layout):
    quiet = ("select 2:4", "freeze_random", "uniform 8 bits", "uniform 4 bits mse")
    found = exchanged([f"{name}/{layout}" for name in FUNCTIONS if name not in SORTS])
    check({name: case for name, case in found.items() if name.split("/")[0] not in quiet})
    assert not [name for name, case in found.items() if case["large"]]


def test_the_size_of_a_collective_is_read_off_its_shape():
    program = """
      %a = f32[8,4]{1,0} all-gather(f32[1,4]{1,0} %x), channel_id=1
      ROOT %b = (s32[], pred[3]{0}, bf16[2,2]{1,0}) all-reduce-start(%y), to_apply=%add
      %c = u8[5]{0} add(%d, %e)
    """
    assert collectives(program) == [("all-gather", 128), ("all-reduce", 15)]
