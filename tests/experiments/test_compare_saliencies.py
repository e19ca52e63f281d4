"""The main experiment, at its smallest: what it prints, writes, resumes and refuses."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments import compare_saliencies as experiment
from experiments import ledger, presenting, training
from jaxprune.reporting import mean_and_spread

TINY = replace(experiment.PRESETS["smoke"], sparsities=(0.9,), dense_epochs=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One smoke run over every method, its results in a folder of its own."""
    out = tmp_path_factory.mktemp("results")
    work = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "WORK", work)
        path = experiment.run(experiment.Arguments(preset="smoke", out=out))
    return path, work


def tiny_run(out, patch):
    patch.setattr(experiment, "WORK", out)
    patch.setitem(experiment.PRESETS, "smoke", TINY)
    methods = ("random", "magnitude", "taylor", "snip")
    return experiment.run(experiment.Arguments(preset="smoke", out=out, methods=methods))


def test_every_method_and_sparsity_has_every_arm_for_every_seed(finished):
    pieces = json.loads(finished[0].read_text())["pieces"]
    config = experiment.PRESETS["smoke"]
    names = {f"{m} {s}" for m in experiment.METHODS for s in config.sparsities}
    assert set(pieces) == {"dense", *names}
    for name in names:
        for arm in presenting.ARMS:
            assert len(pieces[name][arm]) == config.seeds
            assert all(0 <= accuracy <= 100 for accuracy in pieces[name][arm])


def test_every_mask_has_exactly_the_sparsity_of_its_row(finished):
    pieces = json.loads(finished[0].read_text())["pieces"]
    for method in experiment.METHODS:
        for sparsity in experiment.PRESETS["smoke"].sparsities:
            totals = pieces[f"{method} {sparsity}"]["report"]["totals"]
            prunable = totals["prunable_total"]
            assert totals["prunable_kept"] == prunable - round(sparsity * prunable)


def test_taylor_and_snip_draw_the_same_masks_and_random_another(finished):
    pieces = json.loads(finished[0].read_text())["pieces"]
    digest = lambda method: pieces[f"{method} 0.9"]["mask_digest"]
    assert digest("taylor") == digest("snip") != digest("random")


def test_json_plot_and_table_lie_side_by_side_under_the_name_of_the_configuration(finished):
    path = finished[0]
    config = experiment.configure(experiment.Arguments(preset="smoke"))
    assert path.stem == f"compare_saliencies-digits-{ledger.digest(config)}"
    assert path.with_suffix(".png").stat().st_size > 10_000
    rows = path.with_suffix(".md").read_text().splitlines()
    assert sum(row.startswith("| ") for row in rows) == 2 + 2 * len(experiment.METHODS)


def test_the_table_shows_the_mean_and_sample_deviation_of_what_the_json_holds(finished):
    path = finished[0]
    values = json.loads(path.read_text())["pieces"]["magnitude 0.9"]["fine_tuned"]
    mean, sd, _ = mean_and_spread(values)
    assert sd == pytest.approx(np.std(values, ddof=1))
    assert "| 90 % | magnitude | " in path.with_suffix(".md").read_text()
    assert f"{mean:.2f} ± {sd:.2f}" in path.with_suffix(".md").read_text()


def test_a_finished_run_is_not_run_again(finished, monkeypatch):
    path, work = finished
    before = path.read_text()
    monkeypatch.setattr(experiment, "WORK", work)
    monkeypatch.setattr(training, "train_runs", lambda *a: pytest.fail("trained again"))
    experiment.run(experiment.Arguments(preset="smoke", out=path.parent))
    assert json.loads(path.read_text()) == json.loads(before)


def test_an_interrupted_run_resumes_to_the_accuracies_of_an_uninterrupted_one(
    tmp_path, monkeypatch
):
    whole = json.loads(tiny_run(tmp_path / "whole", monkeypatch).read_text())["pieces"]
    record = ledger.Ledger.record

    def dies_after_two(self, name, piece):
        record(self, name, piece)
        if len(self.pieces) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(ledger.Ledger, "record", dies_after_two)
    with pytest.raises(KeyboardInterrupt):
        tiny_run(tmp_path / "cut", monkeypatch)
    monkeypatch.setattr(ledger.Ledger, "record", record)
    resumed = json.loads(tiny_run(tmp_path / "cut", monkeypatch).read_text())["pieces"]
    assert set(resumed) == set(whole)
    for name in whole:
        for arm in presenting.ARMS:
            assert resumed[name][arm] == whole[name][arm]


def test_the_scratch_arm_inherits_no_weight_and_only_the_mask(tmp_path):
    config = replace(experiment.PRESETS["smoke"], methods=("magnitude",))
    book = ledger.Ledger(tmp_path / "book.json", config)
    comparison = experiment.Comparison(config, None, book, tmp_path)
    first, second = comparison.fresh(0), comparison.fresh(1)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        if a.ndim == 3:  # stacked kernels; biases start at zero in both
            assert not (np.asarray(a) == np.asarray(b)).any()


def test_arms_that_are_compared_have_equal_budgets(tmp_path):
    config = experiment.PRESETS["smoke"]
    comparison = experiment.Comparison(
        config, None, ledger.Ledger(tmp_path / "book.json", config), tmp_path
    )
    total = comparison.dense_budget.steps + comparison.tune_budget.steps
    assert comparison.scratch_budget.steps == total


def test_a_damaged_results_file_is_named_and_moved_aside(tmp_path):
    config = experiment.PRESETS["smoke"]
    path = tmp_path / "results.json"
    ledger.Ledger(path, config).record("dense", {"one_shot": [1.0]})
    path.write_text(path.read_text()[:-20])
    with pytest.warns(UserWarning, match=r"results.json cannot be read .* moved to"):
        assert ledger.Ledger(path, config).pieces == {}
    assert path.with_suffix(".damaged").exists()


def test_results_of_another_configuration_are_not_mixed_in(tmp_path):
    config = experiment.PRESETS["smoke"]
    path = tmp_path / "results.json"
    ledger.Ledger(path, config).record("dense", {"one_shot": [1.0]})
    with pytest.warns(UserWarning, match="holds another configuration"):
        assert ledger.Ledger(path, replace(config, seeds=7)).pieces == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ("magnitud",)}, r"Unknown method 'magnitud'.*Did you mean 'magnitude'\?"),
        ({"dataset": "mnits"}, r"Unknown data set 'mnits'.*Did you mean 'mnist'\?"),
        ({"seeds": 0}, r"seeds"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest_known_one(arguments, message):
    with pytest.raises(ValueError, match=message):
        experiment.configure(experiment.Arguments(**arguments))


def test_masked_training_keeps_zeros_and_trains_the_rest():
    config = experiment.PRESETS["smoke"]
    model = experiment.MLP((8,), 10)
    key = jax.random.key(0)
    params = jax.tree.map(lambda x: x[None], model.init(key, np.ones((1, 8, 8, 1)))["params"])
    masks = jax.tree.map(lambda p: jax.random.bernoulli(key, 0.5, p.shape), params)
    split = experiment.data.load("digits").train
    apply = lambda p, x: model.apply({"params": p}, x)
    trained = training.train_runs(
        apply, params, masks, key[None], split, training.Budget(5, config.batch, 1e-2)
    )
    for before, after, mask in zip(*map(jax.tree.leaves, (params, trained, masks)), strict=True):
        assert (np.asarray(after)[~np.asarray(mask)] == 0).all()
        moved = np.asarray(after)[np.asarray(mask)] != np.asarray(before)[np.asarray(mask)]
        assert moved.mean() > 0.5


def test_processes_that_fill_one_ledger_do_not_lose_each_others_pieces(tmp_path):
    config = experiment.PRESETS["smoke"]
    first, second = (ledger.Ledger(tmp_path / "book.json", config) for _ in range(2))
    first.record("a", {"report": 1})
    second.record("b", {"report": 2})
    first.record("c", {"report": 3})
    assert set(ledger.Ledger(tmp_path / "book.json", config).pieces) == {"a", "b", "c"}
    assert set(first.pieces) == {"a", "b", "c"}
