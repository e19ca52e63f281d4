"""Large-sparse against small-dense: exact sparsity, equal steps, restarts, tables."""

import functools
import json
import math
from dataclasses import replace

import jax
import numpy as np
import pytest

import jaxprune as jp
from experiments import data, resumable
from experiments import to_prune_or_not as experiment
from experiments.data import PairSplit
from experiments.gradual import language, report, translation
from experiments.gradual.masks import Watch
from experiments.gradual.running import Program, Run
from experiments.gradual.ways import DENSE, WAYS, Arm, arms, choose_rates, trials
from experiments.orders import Orders
from tests.transforms.fresh import run_module

CONFIG = experiment.configure(experiment.Arguments(task="lm", preset="smoke"))


@pytest.fixture(scope="module")
def task():
    return language.task(CONFIG)


@pytest.fixture(scope="module")
def program(task):
    """The steps of a way, compiled once for all tests."""
    config = replace(CONFIG, steps=10, every=2)
    return functools.cache(lambda way: Program(config, task, Arm(way, 4, 0.75, 0, 1e-2)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The JSON of a smoke run, and the folder of its checkpoints."""
    work = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "WORK", work)
        out = tmp_path_factory.mktemp("results")
        path = experiment.run(experiment.Arguments(task="lm", preset="smoke", out=out))
    return path, work / path.stem


def test_every_arm_of_every_seed_is_measured_and_pruned_exactly(finished, task):
    path, work = finished
    pieces = json.loads(path.read_text())["pieces"]
    rates = choose_rates(CONFIG, task, pieces)
    todo = [*trials(CONFIG), *arms(CONFIG, rates)]
    assert set(pieces) == {arm.name for arm in todo}
    for arm in todo:
        piece = pieces[arm.name]
        assert piece["test"]["perplexity"] > 1
        rounding = 4 / piece["parameters"]  # four leaves, each to a whole number of weights
        assert piece["sparsity"] == pytest.approx(arm.sparsity, abs=rounding)
        assert piece["bytes"]["smallest"] <= min(piece["bytes"][f] for f in jp.quantize.FORMS)
        lines = (work / arm.name.replace(" ", "_") / "masks.jsonl").read_text().splitlines()
        if arm.way == DENSE:
            assert not lines
            assert piece["nonzeros"] == piece["parameters"]
        elif arm.way == "gradual":
            told = [json.loads(line) for line in lines]
            assert [line["step"] for line in told] == sorted({line["step"] for line in told})
            assert told[-1]["sparsity"] == pytest.approx(piece["sparsity"])
            assert all(line["revived"] == 0 for line in told)
            assert told[-1]["step"] >= round(CONFIG.end * CONFIG.steps)


def test_the_tables_and_the_plot_lie_beside_the_json(finished):
    path, _ = finished
    text = path.with_suffix(".md").read_text()
    assert "| dense, width 2 |" in text
    assert "| width 16, 80 % pruned, rigl |" in text
    assert "| large, 90 % pruned | 80 |" in text  # published
    assert path.with_suffix(".png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.every(5)
@pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, marks=pytest.mark.slow) if way in ("global", "set") else way
        for way in WAYS
        if way != DENSE
    ],
)
def test_every_way_ends_at_its_sparsity_with_a_mask_that_is_obeyed(way, program, tmp_path):
    run = Run(program(way), 0, tmp_path)
    state = run.train(lambda steps: None)
    mask = run.mask_of(state)
    if way == "gradual":  # the same share of every layer, exactly
        for name, leaf in jp.trees.named_leaves(mask):
            pruned = leaf.ndim >= 2
            assert int((~leaf).sum()) == (round(0.75 * leaf.size) if pruned else 0), name
    leaves = jp.trees.named_leaves(mask)
    matrices = [leaf for name, leaf in leaves if leaf.ndim >= 2]
    count = sum(leaf.size for leaf in matrices)
    assert sum(int(leaf.sum()) for leaf in matrices) == pytest.approx(0.25 * count, abs=4)
    assert all(bool(leaf.all()) for name, leaf in leaves if leaf.ndim < 2)
    for leaf, keep in zip(jax.tree.leaves(state.params), jax.tree.leaves(mask), strict=True):
        assert np.all(np.asarray(leaf)[~np.asarray(keep)] == 0)


@pytest.mark.every(3)
@pytest.mark.parametrize("way", ["gradual", "rigl"])
def test_a_run_that_is_killed_ends_with_the_bits_of_one_that_is_not(way, task, program, tmp_path):
    whole = Run(program(way), 1, tmp_path / "whole").train(lambda steps: None)
    batches = task.batches(1)

    class Killed(Exception):
        pass

    def killed(step):
        if step == 7:
            raise Killed
        return batches(step)

    broken = Run(program(way), 1, tmp_path / "broken")
    broken.task = task._replace(batches=lambda seed: killed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resumable, "SAVE_SECONDS", 0.0)
        with pytest.raises(Killed):
            broken.train(lambda steps: None)
    done = []
    again = Run(program(way), 1, tmp_path / "broken").train(done.append)
    assert sum(done) == 10
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        if not jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(a, b)
    lines = [(tmp_path / k / broken.folder.name / "masks.jsonl") for k in ("whole", "broken")]
    assert lines[0].read_text() == lines[1].read_text()


def test_a_loss_that_is_not_finite_ends_the_arm_by_name(task, tmp_path):
    config = replace(CONFIG, steps=4, every=2)
    run = Run(Program(config, task, Arm(DENSE, 2, 0.0, 0, math.nan)), 0, tmp_path)
    told = r"is nan after 4 steps.* dense width 2 .*rate nan"
    with pytest.raises(FloatingPointError, match=told):
        run.train(lambda steps: None)


def test_windows_of_a_stream_go_on_where_the_last_one_ended():
    text = np.arange(101)
    inputs, targets = language.windows(text, streams=3, length=4)
    assert inputs.shape == targets.shape == (8, 3, 4)
    np.testing.assert_array_equal(targets, inputs + 1)
    np.testing.assert_array_equal(inputs[1:, :, 0], inputs[:-1, :, -1] + 1)
    assert len(np.unique(inputs)) == inputs.size
    with pytest.raises(ValueError, match="5 tokens fill no window of 3 streams"):
        language.windows(text[:5], 3, 4)


def test_a_language_model_starts_near_the_frequencies_of_the_words(task):
    words = data.load_words("toy_words")
    network = task.network(2)
    params, rest = network.init(jax.random.key(0))
    counts = 1 + np.bincount(words.train[: CONFIG.examples], minlength=len(words.vocabulary))
    unigram = math.exp(-np.mean(np.log(counts / counts.sum())[words.test]))
    found = network.measure(params, rest, "test")["perplexity"]
    assert found == pytest.approx(unigram, rel=0.05)


def test_an_epoch_takes_every_example_once_and_a_seed_has_one_order():
    orders, again = Orders(23, 5, seed=3), Orders(23, 5, seed=3)
    steps = [orders.at(step) for step in range(8)]
    for epoch in (steps[:4], steps[4:]):
        assert len(np.unique(np.concatenate(epoch))) == 20
    assert not np.array_equal(steps[0], steps[4])
    np.testing.assert_array_equal(again.at(5), steps[5])
    np.testing.assert_array_equal(again.at(0), steps[0])
    with pytest.raises(ValueError, match="batch of 5 is larger than the 4"):
        Orders(4, 5, 0)


def test_right_answers_have_no_errors_and_any_reference_will_do():
    pairs = data.load_pairs("toy_pairs")
    answers = [text.split() for (text,) in pairs.test.references[:20]]
    split = PairSplit(*(part[:20] for part in pairs.test))
    found = translation.measured("word accuracy", answers, split, pairs.to_text)
    assert found == {"word accuracy": 100.0, "phoneme error": 0.0}
    two = split._replace(references=tuple(("x y z", *own) for own in split.references))
    assert translation.measured("word accuracy", answers, two, pairs.to_text) == found
    worse = [["zero", *answer] for answer in answers]
    found = translation.measured("word accuracy", worse, split, pairs.to_text)
    total = sum(len(answer) for answer in answers)
    assert found == {"word accuracy": 0.0, "phoneme error": pytest.approx(100 * 20 / total)}


def test_texts_that_are_the_references_have_a_bleu_of_100():
    pytest.importorskip("sacrebleu")
    texts = ["in the beginning god created the heavens", "and the earth was without form"]
    tokens = np.zeros((2, 1), np.int32)
    split = PairSplit(tokens, tokens, ("a", "b"), tuple((text,) for text in texts))
    answers = [text.split() for text in texts]
    found = translation.measured("BLEU", answers, split, " ".join)
    assert found == {"BLEU": pytest.approx(100)}
    worse = [answers[0][::-1], answers[1]]
    assert 0 < translation.measured("BLEU", worse, split, " ".join)["BLEU"] < 90


def test_the_distance_is_that_of_all_alignments():
    def slow(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    random = np.random.default_rng(0)
    for _ in range(30):
        a, b = (list(random.integers(0, 3, random.integers(0, 6))) for _ in "ab")
        assert translation.distance(a, b) == slow(a, b) == translation.distance(b, a)


def test_every_width_takes_the_rate_of_its_best_trial(task):
    config = replace(CONFIG, small=(2, 4), large=8, rates=(0.3, 0.1, 0.03))
    values = {(2, 0.3): 5.0, (2, 0.1): 4.0, (2, 0.03): 6.0, (4, 0.1): 3.0, (8, 0.3): 2.0,
              (8, 0.03): 2.5}  # fmt: skip
    piece = lambda value: {"validation": {"score": value}, "test": {"score": -value}}
    pieces = {Arm(DENSE, w, 0.0, 0, r).name: piece(value) for (w, r), value in values.items()}
    lower = task._replace(quality="score", lower=True)
    assert choose_rates(config, lower, pieces) == {2: 0.1, 4: 0.1, 8: 0.3}
    assert choose_rates(config, lower._replace(lower=False), pieces) == {2: 0.03, 4: 0.1, 8: 0.03}
    rates = choose_rates(config, lower, pieces)
    assert all(arm.rate == rates[arm.width] for arm in arms(config, rates))
    lines = report.rates_table(config, lower, pieces).splitlines()
    assert lines[2] == "| 2 | 5.00 | **4.00** | 6.00 |"
    assert lines[3] == "| 4 | not finite | **3.00** | not finite |"
    with pytest.raises(
        FloatingPointError, match="dense network of width 2: its loss is not finite"
    ):
        choose_rates(config, lower, {})


def piece(nonzeros, quality):
    return {"nonzeros": nonzeros, "bytes": {"smallest": 4 * nonzeros}, "test": {"score": quality}}


def test_dense_networks_between_two_widths_are_on_the_line_between_them(task):
    line = lambda n, seed: 10 * math.log(n) + seed
    dense = [
        report.Found(Arm(DENSE, n, 0.0, 0, 1e-2), [0, 1], [piece(n, line(n, s)) for s in (0, 1)])
        for n in (100, 1000, 10_000)
    ]
    sparse = [
        report.Found(Arm("gradual", 1, 0.9, 0, 1e-2), [0, 1], [piece(300, 1.0), piece(300, 2.0)]),
        report.Found(Arm("gradual", 1, 0.99, 0, 1e-2), [1], [piece(2000, 3.0)]),
        report.Found(Arm("gradual", 1, 0.999, 0, 1e-2), [0], [piece(50, 0.0)]),  # smaller than all
    ]
    scored = task._replace(quality="score", lower=False)
    for cost in (lambda one: one.nonzeros(), lambda one: one.bytes("smallest")):
        first, second = report.at_equal([*dense, *sparse], scored, cost)
        assert (first[1], second[1]) == ([1.0, 2.0], [3.0])
        np.testing.assert_allclose(first[2], [line(300, 0), line(300, 1)])
        np.testing.assert_allclose(second[2], [line(2000, 1)])
        last = report.claim_table([*dense, *sparse], scored, cost, "cost").splitlines()[-1]
        assert last == "| width 1, 99.9 % pruned | 0.00 | none: smaller than the smallest | - | - |"


def test_what_is_better_depends_on_the_measure(task):
    found = [
        report.Found(Arm("dense", 1, 0, 0, 1e-2), [0, 1], [piece(100, 2.0), piece(100, 2.1)]),
        report.Found(Arm("dense", 2, 0, 0, 1e-2), [0, 1], [piece(900, 2.0), piece(900, 2.1)]),
        report.Found(Arm("gradual", 2, 0.9, 0, 1e-2), [0, 1], [piece(300, 1.0), piece(300, 1.1)]),
        report.Found(Arm("gradual", 2, 0.8, 0, 1e-2), [0, 1], [piece(300, 1.0), piece(300, 4.0)]),
    ]
    for lower, word in ((True, "better"), (False, "worse")):
        scored = task._replace(quality="score", lower=lower)
        table = report.claim_table(found, scored, lambda one: one.nonzeros(), "nonzeros")
        first, second = table.splitlines()[2:]
        assert first.endswith(f"| {word} |")
        assert second.endswith("| undecided |")


def test_masks_on_file_forget_what_is_done_again_and_a_line_half_written(tmp_path):
    path = tmp_path / "masks.jsonl"
    path.write_text('{"step": 3}\n{"step": 8}\n{"step": 9, "le')
    Watch(path, {}, step=8)
    assert path.read_text() == '{"step": 3}\n'


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "seq2seq"])
def test_the_other_tasks_run_too(name, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "WORK", tmp_path)
    path = experiment.run(experiment.Arguments(task=name, preset="smoke", seeds=1))
    assert "one seed" in path.with_suffix(".md").read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"task": "lstm"}, "lm"),
        ({"seeds": 0}, "`seeds` is how many runs every arm has, >= 1; got 0"),
    ],
)
def test_bad_arguments_are_errors_that_say_what_to_do(arguments, told):
    with pytest.raises(ValueError, match=told):
        experiment.configure(experiment.Arguments(**arguments))


def test_all_presets_have_widths_below_the_large_one():
    for preset in experiment.PRESETS.values():
        for config in preset.values():
            assert max(config.small) < config.large
            assert len(config.small) >= 1 + (config.preset != "smoke")
            assert 0 < config.begin < config.end < 1
            if config.preset != "smoke":  # updates come at multiples of `every`
                for share in (config.begin, config.end):
                    assert round(share * config.steps) % config.every == 0


@pytest.mark.slow
def test_four_devices_share_a_batch_and_end_with_the_masks_of_one():
    one, four = (
        json.loads(run_module("tests.experiments.pruned_on_devices", devices=n)) for n in (1, 4)
    )
    assert (one["devices"], four["devices"]) == (1, 4)
    for way, alone in one["results"].items():
        shared = four["results"][way]
        assert (alone["spread"], shared["spread"]) == (1, 4)
        assert alone["masks"] == shared["masks"]
        assert alone["loss"] == pytest.approx(shared["loss"], rel=1e-5)
