"""Prepared data that were damaged, and disks on which they cannot be prepared."""

import warnings

import pytest

from experiments import data
from experiments.data import builders
from experiments.problems import PROBLEMS
from tests.experiments.tiny_set import VERSION, assert_same, leftovers, no_network, tiny
from tests.faults import breaking

__all__ = ["no_network", "tiny"]


@pytest.mark.parametrize("way", [breaking.garbage, breaking.empty])
def test_examples_that_were_altered_are_named_and_prepared_again(tiny, tmp_path, way):
    whole = tiny.read(tmp_path)
    directory = tmp_path / "mnist" / VERSION
    way(next(directory.glob("*train.array_record*")))
    with pytest.warns(RuntimeWarning, match="will be rebuilt") as caught:
        assert_same(whole, tiny.read(tmp_path))
    assert str(directory) in str(caught[0].message)
    assert tiny.read(tmp_path).source == "prepared"
    assert leftovers(tmp_path) == []


def test_no_flipped_bit_reaches_the_arrays(tiny, tmp_path):
    whole, noticed = tiny.read(tmp_path), 0
    for place in (0.001, 0.01, 0.1):
        breaking.flipped(next((tmp_path / "mnist" / VERSION).glob("*train.array_record*")), place)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert_same(whole, tiny.read(tmp_path))
        noticed += any("will be rebuilt" in str(warning.message) for warning in caught)
    assert noticed  # elsewhere the format has padding


def test_what_a_killed_preparation_leaves_is_never_read(tiny, tmp_path):
    (tmp_path / "incomplete.mnist.x" / "mnist" / VERSION).mkdir(parents=True)
    assert tiny.read(tmp_path).source == "package"
    assert tiny.read(tmp_path).source == "prepared"


@pytest.mark.parametrize("kind", breaking.ERRORS)
@pytest.mark.parametrize("at", ["write", "mkdtemp", "replace"])
def test_a_disk_that_fails_is_named_and_nothing_is_left(tiny, tmp_path, monkeypatch, kind, at):
    def fail(*args, **options):
        raise breaking.disk_error(kind)

    owner = {"write": builders, "mkdtemp": "tempfile", "replace": "pathlib.Path"}[at]
    target = f"{owner}.{at}" if isinstance(owner, str) else None
    with monkeypatch.context() as patch:
        if target:
            patch.setattr(target, fail)
        else:
            patch.setattr(owner, at, fail)
        with pytest.raises(data.DataUnavailable) as caught:
            tiny.read(tmp_path)
    told = str(caught.value)
    assert str(tmp_path) in told
    assert breaking.disk_error(kind).strerror in told
    assert "--data-dir" in told
    assert isinstance(caught.value, PROBLEMS)
    assert leftovers(tmp_path) == []
    assert tiny.read(tmp_path).source == "package"
