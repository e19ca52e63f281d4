"""Minified models, at their smallest: what is recorded, written, resumed; laws of the parts."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import accuracy_score

import jaxprune as jp
from experiments import minified_models as experiment
from experiments.minified import findings, parameters, quantized, rates, report, units
from experiments.minified.candidates import FAMILIES, Candidate, best_within, collect
from experiments.minified.lab import ARMS, Config, Lab
from experiments.minified.pictures import frontier
from experiments.minified.task import TASKS, Problem, binary_cross_entropy, binary_metrics

CONFIG = experiment.PRESETS["smoke"]["digits"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One smoke run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "WORK", tmp_path_factory.mktemp("work"))
        yield experiment.run(experiment.Arguments(preset="smoke"))


@pytest.fixture(scope="module")
def pieces(finished):
    return json.loads(finished.read_text())["pieces"]


@pytest.fixture(scope="module")
def lab(finished):
    book = experiment.ledger.Ledger(finished, CONFIG)
    return Lab(CONFIG, book, finished.parent, None)


def test_every_arm_of_every_family_is_measured_for_every_seed(pieces):
    size = CONFIG.sizes[0]
    wanted = {
        "dense": {"one_shot", "fine_tuned"},
        parameters.name_of("magnitude", size): {
            "one_shot", "fine_tuned", "iterative", "scratch_short", "scratch_long",
        },
        parameters.name_of("joint", size): {"one_shot", "fine_tuned"},
        units.name_of("l2", size): {"one_shot", "merged", "fine_tuned", "merged_tuned"},
        units.name_of("merge_pairs", size): {"merged", "merged_tuned"},
        units.name_of("scratch", size): {"scratch_short", "scratch_long"},
        quantized.name_of("shared", "4"): {"one_shot"},
        quantized.name_of("straight through", "4"): {"fine_tuned"},
    }  # fmt: skip
    for name, arms in wanted.items():
        assert set(pieces[name]["arms"]) == arms
        for measured in pieces[name]["arms"].values():
            for part in ("validation", "test"):
                accuracies = measured[part]["accuracy"]
                assert len(accuracies) == CONFIG.seeds
                assert all(0 <= value <= 100 for value in accuracies)


def test_every_family_has_a_candidate_and_the_table_a_row_a_budget(finished, pieces):
    found = collect(CONFIG, pieces)
    assert {candidate.family for candidate in found} == set(FAMILIES)
    text = finished.with_suffix(".md").read_text()
    assert text.count("| 50 % |") >= 3
    assert "**Finding 1.**" in text
    assert "**Finding 2.**" in text
    assert "**Finding 3.**" in text
    assert finished.with_suffix(".png").stat().st_size > 1000


def test_a_second_run_computes_nothing(finished, monkeypatch):
    monkeypatch.setattr(experiment, "WORK", finished.parents[1])
    monkeypatch.setattr(Lab, "fit", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(Lab, "measure", lambda *_, **__: pytest.fail("measured again"))
    experiment.run(experiment.Arguments(preset="smoke"))


def test_results_may_go_to_another_folder_than_the_dense_networks(finished, tmp_path):
    book = experiment.ledger.Ledger(tmp_path / "book.json", CONFIG)
    Lab(CONFIG, book, finished.parent, None).dense()
    assert book.pieces["dense rate"]["rate"] in CONFIG.rates


def test_arms_that_are_compared_have_equal_budgets(lab):
    tune, short, long = (lab.budget_of(arm, 1e-2) for arm in ARMS)
    assert short.steps == tune.steps
    assert long.steps == lab.dense_steps + tune.steps
    assert long.warmup == long.steps // 10 > 0
    assert short.warmup == short.steps // 10
    assert tune.warmup == 0
    assert len({budget.batch for budget in (tune, short, long)}) == 1


def test_every_level_and_arm_has_the_rate_that_is_best_on_validation_examples(tmp_path):
    config = replace(CONFIG, rates=(3e-2, 1e-3))
    book = experiment.ledger.Ledger(tmp_path / "book.json", config)
    lab = Lab(config, book, tmp_path, None)
    lab.promise = lambda trained, apply: trained
    said = {("tune", 3e-2): 1.0, ("tune", 1e-3): 2.0, ("long", 3e-2): 2.0, ("long", 1e-3): 1.0}
    train = lambda arm, budget: said[arm, budget.learning_rate]
    for _ in range(2):
        found = rates.budgets(lab, "any", train, arms=["tune", "long"])
        assert found == {"tune": lab.budget_of("tune", 1e-3), "long": lab.budget_of("long", 3e-2)}
        train = None  # what is recorded is not tried again
    assert rates.told(book.pieces) == [("any", {"tune": 1e-3, "long": 3e-2})]


def test_rates_at_an_end_of_what_was_tried_have_a_star_on_the_committed_pages_too():
    config = replace(CONFIG, rates=(0.03, 0.01, 0.001))
    own = {
        "dense rate": {"rate": 0.03},
        rates.name_of("weights 0.1"): {"tune": 0.01, "short": 0.001, "long": 0.03},
    }
    table = report.rate_table(config, own)
    assert "| dense, from new weights |  |  | 0.03* |" in table
    assert "| weights 0.1 | 0.01 | 0.001* | 0.03* |" in table
    assert "*" not in report.rate_table(replace(config, rates=(0.03,)), own)  # no choice, no end
    for path in (Path(experiment.__file__).parent / "results").glob("minified_models-*.json"):
        found = json.loads(path.read_text())
        table = report.rate_table(Config(**found["config"]), found["pieces"])
        assert f"\n\n{table}\n\n" in path.with_suffix(".md").read_text()


def test_sizes_take_the_rates_of_the_nearest_choice(lab, monkeypatch):
    asked = []
    found = lambda lab, level, *_, **__: asked.append(level)
    monkeypatch.setattr(rates, "budgets", found)
    lab.config = replace(CONFIG, rate_sizes=(0.5, 0.1, 0.0001))
    for size in (0.3, 0.2, 0.002):
        parameters.budgets(lab, size)
        units.budgets(lab, size)
    lab.config = CONFIG
    # No network of units is as small as the last.
    assert asked == [
        "weights 0.5", "units 0.5", "weights 0.1", "units 0.1", "weights 0.0001", "units 0.1"
    ]  # fmt: skip


def written(network):
    """Bytes of a whole network in a file, if none of its weights is 0."""
    ones = jax.tree.map(jnp.ones_like, network)
    return len(jp.quantize.pack(jp.quantize.unquantized()(ones, jp.trees.full_mask(ones))))


def test_reported_bytes_are_what_is_written(lab, pieces):
    size = CONFIG.sizes[0]
    prune = jp.one_shot(jp.saliency.magnitude(), jp.select.lowest())
    reported = pieces[parameters.name_of("magnitude", size)]["bytes"]
    for network, said in zip(lab.networks, reported, strict=True):
        pruned = prune(network, sparsity=1 - size)
        stored = jp.quantize.unquantized()(pruned.params, pruned.mask)
        assert len(jp.quantize.pack(stored)) == said
    for network, said in zip(lab.networks, pieces["dense"]["bytes"], strict=True):
        assert said == written(network) > 4 * jp.trees.count(network)
    widths = units.widths_at(lab, size)
    small = lab.fresh(2, widths)
    assert pieces[units.name_of("scratch", size)]["bytes"][0] == written(
        jax.tree.map(lambda leaf: leaf[0], small)
    )


def test_shrunk_networks_have_one_architecture_and_compute_what_the_masked_ones_do(lab):
    widths = units.widths_at(lab, CONFIG.sizes[0])
    inputs = lab.problem.test.inputs[:8]
    for network, scores in zip(lab.networks, units.scored(lab, "l2"), strict=True):
        kept = units.best(lab, widths, scores)
        assert tuple(int(np.sum(keep)) for keep in kept.values()) == widths
        small = jp.structure.shrink_units(network, kept, lab.coupling)
        masked = jp.apply_mask(network, lab.coupling.mask(kept, network))
        np.testing.assert_allclose(
            lab.problem.apply_at(widths)(small, inputs), lab.apply(masked, inputs), atol=1e-5
        )


@pytest.mark.slow
def test_the_small_network_is_the_widest_within_its_size(lab):
    for size in (0.5, 0.1, 0.05):
        widths = units.widths_at(lab, size)
        size_of = lambda w: written(lab.problem.init_at(w)(lab.keys[0]))
        assert size_of(widths) <= size * size_of(lab.widths)
        assert size_of(tuple(w + 1 for w in widths)) > size * size_of(lab.widths)
    assert units.widths_at(lab, 1e-4) is None


def test_iterated_masks_reach_the_size_and_what_they_pruned_stays_0(lab):
    path = parameters.iterated(lab, "magnitude", 0.1)
    for run in range(CONFIG.seeds):
        mask = jax.tree.map(lambda leaf, run=run: leaf[run], path.masks)
        flags = jp.trees.prunable_flags(lab.networks[0], jp.trees.default_prunable)
        left = jp.trees.select_leaves(mask, flags)
        count = jp.trees.count(left)
        assert jp.trees.keep(left) == count - round(0.9 * count)
    gone = jax.tree.map(lambda p, m: jnp.all(jnp.where(m, True, p == 0)), path.params, path.masks)
    assert all(jax.tree.leaves(gone))


def test_choices_are_made_on_validation_and_never_on_test_examples():
    good = {"accuracy": [90.0, 91.0]}
    bad = {"accuracy": [10.0, 11.0]}
    make = lambda label, size, validation, test: Candidate(
        "pruned", label, (size, size), 1, (1,), validation, test
    )
    honest, lucky = make("honest", 100, good, bad), make("lucky", 100, bad, good)
    large = make("large", 200, {"accuracy": [99.0, 99.0]}, good)
    assert best_within([honest, lucky, large], "pruned", 150) is honest
    assert best_within([honest, lucky, large], "pruned", 50) is None
    assert frontier([lucky, honest, large], lambda c: c.largest) == [honest, large]


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ([2.0, 2.1, 2.2], [1.0, 1.1, 1.2], "higher"),
        ([1.0, 1.1, 1.2], [2.0, 2.1, 2.3], "lower"),
        ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], "undecided"),
        (None, [1.0], "not measured"),
    ],
)
def test_a_difference_is_told_only_where_its_interval_excludes_zero(a, b, verdict):
    assert findings.said(a, b)[1] == verdict


def test_what_is_not_measured_counts_for_nothing():
    verdicts = [("higher", "lower"), ("undecided", "not measured"), ("not measured", "lower")]
    told = findings._counted(verdicts, "higher")
    assert "with the tuning steps it holds at 1 of 2 sizes, the contrary at 0, 1 undecided" in told
    assert "with all steps it holds at 0 of 2 sizes, the contrary at 2, 0 undecided" in told


def test_binary_metrics_agree_with_counting():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=400).round(1)  # with ties
    targets = (logits + rng.normal(size=400) > 0.3).astype(int)
    found = binary_metrics(logits, targets)
    assert found["accuracy"] == pytest.approx(100 * accuracy_score(targets, logits > 0))
    positive, negative = logits[targets == 1], logits[targets == 0]
    wins = (positive[:, None] > negative).mean() + (positive[:, None] == negative).mean() / 2
    assert found["auc"] == pytest.approx(100 * wins)
    # Fewer than 1,000 negatives: none of them may be taken for positive.
    assert found["recall"] == pytest.approx(100 * np.mean(positive > negative.max()))


def test_binary_cross_entropy_is_the_negative_log_likelihood():
    logits, targets = jnp.array([[0.3], [-1.0]]), jnp.array([1, 0])
    p = jax.nn.sigmoid(logits[:, 0])
    expected = -jnp.log(jnp.where(targets == 1, p, 1 - p))
    np.testing.assert_allclose(binary_cross_entropy(logits, targets), expected, rtol=1e-6)


def test_every_task_has_every_preset_and_a_coupling_of_its_widths():
    for preset in ("smoke", "cpu", "full"):
        assert set(experiment.PRESETS[preset]) == set(TASKS)
    shapes = {"lenet5": (28, 28, 1)}
    for name in ("digits", "lenet5"):
        problem = object.__new__(Problem)
        problem.task, problem.outputs = TASKS[name], 10
        model = problem.model_at(TASKS[name].widths)
        inputs = jnp.zeros((2, *shapes.get(name, (8, 8, 1))))
        params = model.init(jax.random.key(0), inputs)["params"]
        apply = lambda p, x, model=model: model.apply({"params": p}, x)
        coupling = jp.couple(apply, params, inputs)
        assert tuple(g.units for g in coupling.groups.values()) == TASKS[name].widths


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"task": "mnits"}, r"Unknown task 'mnits'.*Did you mean 'mnist'"),
        ({"seeds": 1}, "`seeds`"),
    ],
)
def test_bad_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        experiment.configure(experiment.Arguments(**arguments))


def test_the_summary_has_every_result_of_the_folder(finished):
    text = finished.with_name("minified_models.md").read_text()
    assert "64-100-50-10 on digits (smoke)" in text
    assert f"({finished.stem}.md)" in text
    assert "**Finding 2.**" in text
