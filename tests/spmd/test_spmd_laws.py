"""Everything on eight devices gives what one device gives, and leaves it where parameters lie."""

import json

import pytest

from tests.spmd.meshes import LAYOUTS
from tests.spmd.spmd_rows import ROWS
from tests.transforms.fresh import run_module

GROUPS = sorted({name.split()[0] for name in ROWS})
FEW = [
    "saliency fisher/fully sharded/given",
    "select global/data x model/eager",
    "select output/fully sharded/inferred",
    "update prune_gradually taylor/data x model/inferred",
]


def check(cases):
    found = json.loads(run_module("tests.spmd.on_meshes", *cases, devices=8))
    assert found["devices"] == 8
    assert list(found["results"]) == cases
    broken = [
        (case, law) for case, laws in found["results"].items() for law in laws if not laws[law]
    ]
    assert not broken


def test_eight_devices_find_what_one_finds_and_leave_it_where_parameters_lie():
    check(FEW)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("group", GROUPS)
def test_so_it_is_with_every_function_and_every_layout(group, layout):
    names = [name for name in ROWS if name.split()[0] == group]
    check([f"{n}/{layout}/{'inferred' if ROWS[n].jit else 'eager'}" for n in names])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["eager", "given"])
@pytest.mark.parametrize("group", GROUPS)
def test_so_it_is_outside_jit_and_where_jit_is_told_where_its_arguments_lie(group, how):
    names = [n for n, row in ROWS.items() if n.split()[0] == group and row.jit]
    if names:
        check([f"{name}/data x model/{how}" for name in names])
