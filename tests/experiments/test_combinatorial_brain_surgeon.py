"""The surgeons' comparison, at its smallest: what it prints, writes, resumes and refuses."""

import json
from dataclasses import replace

import numpy as np
import pytest

from experiments import combinatorial_brain_surgeon as experiment
from experiments import dense_networks
from experiments.surgeon_methods import METHODS, PUBLISHED


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One smoke run of every method, one seed."""
    work = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "WORK", work)
        patch.setattr(dense_networks, "WORK", work)
        patch.setattr(dense_networks, "RESULTS", work)
        path = experiment.run(experiment.Arguments(preset="smoke", seeds=1))
        yield path, work


def test_every_method_is_pruned_exactly_and_has_accuracy_and_seconds(finished):
    pieces = json.loads(finished[0].read_text())["pieces"]
    assert set(pieces) == {"dense", *(f"{method} 0.9 seed 0" for method in METHODS)}
    prunable = 64 * 40 + 40 * 20 + 20 * 10
    for name, piece in pieces.items():
        assert 0 <= piece["accuracy"] <= 100
        if name != "dense":
            # Layer-wise methods round in every leaf.
            assert piece["sparsity"] == pytest.approx(0.9, abs=1.5 / prunable)
            assert piece["seconds"] > 0


def test_the_table_has_every_method_and_the_plot_is_there(finished):
    text = finished[0].with_suffix(".md").read_text()
    assert all(f"- {method}: " in text for method in METHODS)
    assert "| 90 % |" in text
    assert finished[0].with_suffix(".png").stat().st_size > 1000


def test_a_second_run_computes_nothing(finished, monkeypatch):
    monkeypatch.setattr(experiment.Comparison, "run_one", lambda *_: pytest.fail("ran again"))
    experiment.run(experiment.Arguments(preset="smoke", seeds=1))


def test_published_numbers_are_complete():
    methods = {"MP", "WF-S", "CBS-S", "WF", "CBS"}
    for numbers in PUBLISHED.values():
        assert all(set(row) == methods for sparsity, row in numbers.items() if sparsity > 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"methods": ("magnitude",)}, "Unknown method"),
        ({"seeds": 0}, "seeds"),
        ({"network": "resnet20", "preset": "smoke"}, "presets"),
        ({"preset": "smoke", "weights": "some.npz"}, "weights"),
    ],
)
def test_bad_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        experiment.configure(replace(experiment.Arguments(), **arguments))


def test_weights_of_another_network_are_named(tmp_path):
    np.savez(tmp_path / "other.npz", fc1=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="784"):
        experiment.outside_weights(tmp_path / "other.npz")
