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
        ({"sparsities": (0.5, 1.0)}, r"below 1; got 1\."),
        ({"sparsities": (-1.0,)}, "`sparsities`.*got -1"),
        ({"sparsities": (float("nan"),)}, "`sparsities`.*got nan"),
    ],
)
def test_bad_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        experiment.configure(replace(experiment.Arguments(), **arguments))


def archive(path, save=np.savez, **others):
    """Weights of an MLPNet."""
    shapes = {"fc1": (784, 40), "fc2": (40, 20), "fc3": (20, 10)}
    normal = np.random.default_rng(0).normal
    save(path, **{name: normal(size=shape) for name, shape in shapes.items()} | others)
    return path


def cut(path):
    archive(path).write_bytes(path.read_bytes()[:9000])


def altered(path):
    content = bytearray(archive(path, np.savez_compressed).read_bytes())
    content[3000:3100] = bytes(100)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: np.savez(path, fc1=np.zeros((2, 2))), "784"),
        (lambda path: np.save(path.open("wb"), np.zeros(3)), r"no whole \.npz.*TypeError"),
        (lambda path: path.write_bytes(b""), r"no whole \.npz.*EOFError"),
        (lambda path: path.write_text("fc1 fc2 fc3"), r"no whole \.npz.*ValueError"),
        (cut, r"no whole \.npz.*BadZipFile.*`numpy\.savez`"),
        (altered, r"no whole \.npz"),
        (lambda path: archive(path, fc3=np.full((20, 10), None)), r"no whole \.npz"),
        (lambda path: archive(path, fc3=np.ones((20, 10), complex)), "complex128.*real numbers"),
        (lambda path: archive(path, fc2=np.full((40, 20), np.nan)), "leaf 'fc2/kernel' is NaN"),
    ],
)
def test_weights_that_cannot_be_used_are_refused_before_anything_is_begun(write, words, tmp_path):
    path = tmp_path / "weights.npz"
    write(path)
    with pytest.raises((ValueError, FloatingPointError), match=words) as caught:
        experiment.configure(experiment.Arguments(weights=path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_of_an_archive_are_those_of_the_network(tmp_path):
    path = archive(tmp_path / "weights.npz")
    assert len(experiment.configure(experiment.Arguments(weights=path)).weights) == 16
    _, params, _ = experiment.outside_weights(path)
    with np.load(path) as found:
        np.testing.assert_array_equal(params["fc2"]["kernel"], found["fc2"].astype(np.float32))
