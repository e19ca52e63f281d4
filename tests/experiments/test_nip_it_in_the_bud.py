"""Pruned and tuned against trained from scratch, at their smallest: what is recorded, and laws."""

import json
from dataclasses import replace
from functools import cache, partial

import jax
import numpy as np
import pytest

import jaxprune as jp
from experiments import nip_it_in_the_bud as experiment
from experiments import resumable
from experiments.nipping import arms, fitting, report
from experiments.nipping.arms import Bench, Scratch, as_shape, kept_of, marks, reduced, tuned
from experiments.nipping.fitting import Fit, Program, Removal, variables_of
from experiments.nipping.task import Problem, Shape

CONFIG = experiment.PRESETS["smoke"]["wrn"]


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
def problem():
    return Problem(CONFIG)


def test_every_arm_is_measured_and_has_its_row(finished, pieces):
    for name in report.names(CONFIG):
        piece = pieces[f"{name} seed 0"]
        assert 0 <= piece["test"] <= 100
        cost = pieces[f"cost {as_shape(piece['shape']).label}"]
        assert all(low <= median <= high for median, low, high in cost["ms"].values())
    text = finished.with_suffix(".md").read_text()
    assert all(f"| {name} |" in text for name in report.names(CONFIG))
    assert finished.with_suffix(".png").stat().st_size > 1000
    lines = [name for own in report.families(CONFIG).values() for name in own]
    assert sorted(lines) == sorted(report.names(CONFIG))


def test_marks_are_reached_and_scratch_has_the_pruned_shapes_and_other_weights(
    finished, pieces, problem
):
    work = finished.parent
    total = sum(problem.coupling.groups[name].units for name in problem.inner)
    for mark, count in marks(CONFIG, problem).items():
        shape = as_shape(pieces[f"{tuned('fisher', mark)} seed 0"]["shape"])
        assert sum(shape.middles) == total - count
        like = problem.variables(shape)
        kept = jp.checkpoint.restore(work / f"fisher_{mark:g}_tuned_seed_0", like)
        assert problem.error(shape, kept, "test") == pieces[f"fisher {mark:g} tuned seed 0"]["test"]
        for kind, steps in (("scratch", 4), ("scratch long", 4 + count // CONFIG.each)):
            piece = pieces[f"fisher {mark:g} {kind} seed 0"]
            assert as_shape(piece["shape"]) == shape
            assert piece["steps"] == steps
        bench = Bench(problem, cache(partial(Program, problem)), None, work, 0)
        new, dense = (
            bench.fit(Scratch(name, own, 1)).start().params
            for name, own in (("fisher 0.5 scratch", shape), ("dense", CONFIG.shape))
        )
        for name in problem.inner:
            block = name.split("/")[0]
            ours, first, trained = (
                np.asarray(p[block]["second"]["kernel"]).ravel()
                for p in (new, dense, kept["params"])
            )
            assert np.isin(ours, np.concatenate([first, trained])).mean() < 0.01  # chance


def test_a_second_run_computes_nothing(finished, monkeypatch):
    monkeypatch.setattr(experiment, "WORK", finished.parents[1])
    monkeypatch.setattr(Program, "_update", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(report, "taken", lambda *_: pytest.fail("measured again"))
    experiment.run(experiment.Arguments(preset="smoke"))


def test_a_copycat_is_the_last_profile_and_at_most_as_large(problem, tmp_path):
    config = replace(CONFIG, marks=(0.1, 0.3, 0.5))
    book = experiment.ledger.Ledger(tmp_path / "book.json", config)
    middles = {0.1: (15, 28, 60), 0.3: (14, 20, 50), 0.5: (14, 4, 20)}
    for mark, own in middles.items():
        shape = config.shape._replace(middles=own)
        book.pieces[f"{tuned('fisher', mark)} seed 0"] = {"shape": list(shape)}
    problem.config, before = config, problem.config
    bench = Bench(problem, cache(partial(Program, problem)), book, tmp_path, 0)
    found = bench.copycats()
    problem.config = before
    assert set(found) == {0.1, 0.3}
    count = lambda shape: jp.trees.count(problem.variables(shape)["params"])
    for mark, shape in found.items():
        assert count(shape) <= count(config.shape._replace(middles=middles[mark]))
        pairs = list(zip(middles[0.5], (16, 32, 64), strict=True))
        factors = np.geomspace(1, 64, 400)
        scaled = {tuple(min(round(f * n), most) for n, most in pairs) for f in factors}
        assert shape.middles in scaled


@pytest.mark.parametrize(
    "signal", ["fisher", *(pytest.param(s, marks=pytest.mark.slow) for s in fitting.SIGNALS[1:])]
)
def test_a_path_that_is_killed_ends_with_the_bits_of_one_that_is_not(
    signal, problem, tmp_path, monkeypatch
):
    monkeypatch.setattr(resumable, "SAVE_SECONDS", -1)  # a checkpoint after every step
    program = Program(problem, CONFIG.shape, 3, Removal(signal, 2 * CONFIG.each, 8e-4))
    dense = problem.init(CONFIG.shape, jax.random.key(5))
    seen = []
    first = program.start(dense)
    whole = Fit(program, 0, tmp_path / "whole", first).run(lambda _: None)

    def killed(step, state):
        seen.append(step)
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Fit(program, 0, tmp_path / "killed", first).run(lambda _: None, killed)
    assert jp.checkpoint.latest_step(tmp_path / "killed") == 1
    again = Fit(program, 0, tmp_path / "killed", first).run(lambda _: None)
    assert seen == [1, 2]
    jax.tree.map(np.testing.assert_array_equal, variables_of(again), variables_of(whole))
    kept = kept_of(again)
    assert sum(int(np.sum(~np.asarray(flags))) for flags in kept.values()) == 2 * CONFIG.each
    small = jp.structure.shrink_units(
        variables_of(again), jax.tree.map(np.asarray, kept), problem.coupling
    )
    shape = problem.shape_with(jp.structure.width_profile(problem.coupling, kept))
    assert jax.tree.map(np.shape, small) == jax.tree.map(np.shape, problem.variables(shape))
    assert problem.error(shape, small, "validation") == pytest.approx(
        problem.error(CONFIG.shape, variables_of(again), "validation"), abs=0.6
    )


def test_shapes_name_and_build_what_they_say(problem):
    assert Shape("wrn", 40, 2).label == "wrn-40-2"
    assert Shape("wrn", 40, 2, 0.5).label == "wrn-40-2, z 0.5"
    assert Shape("densenet", 10, 4, 1.0, (3, 4, 5)).label == "densenet-10-4 (3-4-5)"
    assert as_shape(json.loads(json.dumps(Shape("wrn", 10, 1, 1.0, (1, 2, 3))))).middles == (
        1,
        2,
        3,
    )
    config = replace(CONFIG, depths=(16,), widths=(0.5,), zs=(0.5,))
    assert [s.label for s in reduced(config)] == ["wrn-16-1", "wrn-10-0.5", "wrn-10-1, z 0.5"]
    narrow = problem.variables(reduced(config)[2])["params"]
    assert narrow["block_1"]["first"]["kernel"].shape[-1] == 16


def test_rates_fall_where_the_schedule_says():
    falling = fitting.schedule(replace(CONFIG, drops=(0.3, 0.6), drop=0.2), 100)
    np.testing.assert_allclose(
        [falling(step) for step in (0, 29, 30, 59, 60, 99)],
        CONFIG.learning_rate * np.array([1, 1, 0.2, 0.2, 0.04, 0.04]), rtol=1e-6,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"network": "wrm"}, "Unknown network 'wrm'.*Did you mean 'wrn'"),
        ({"seeds": 0}, "`seeds`"),
        ({"cost": "flop"}, "Unknown cost 'flop'.*none.*Did you mean 'flops'"),
    ],
)
def test_bad_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        experiment.configure(experiment.Arguments(**arguments))


def test_no_cost_has_a_name_and_makes_no_other_results():
    usual = experiment.configure(experiment.Arguments())
    assert experiment.configure(experiment.Arguments(cost="none")) == usual
    assert experiment.configure(experiment.Arguments(cost="flops")).cost == "flops"


def test_rates_of_which_none_is_finite_are_told_and_tried_again(
    finished, problem, tmp_path, monkeypatch
):
    book = experiment.ledger.Ledger(tmp_path / "book.json", CONFIG)
    whole = json.loads(finished.read_text())["pieces"]
    book.pieces = {name: piece for name, piece in whole.items() if "fisher" not in name}
    monkeypatch.setattr(problem, "config", replace(CONFIG, tune_rates=(2.0, 1.0)))
    bench = Bench(problem, cache(partial(Program, problem)), book, tmp_path, 0)
    errors = dict.fromkeys(problem.config.tune_rates)
    monkeypatch.setattr(Bench, "_tried", lambda self, signal, rate, told: errors[rate])

    def tune():
        with book.attempt(arms.TRIALS):
            return bench.tune_rate(lambda *_: None)

    assert tune() is None
    assert arms.TRIALS not in book.pieces
    page = report.document(problem.config, problem, book)
    assert "| tuning rates | No tuning rate of (2.0, 1.0) has a finite loss. Lower" in page
    # A page of a run that recorded them all the same can be drawn too.
    assert report.rate_lines(problem.config, {arms.TRIALS: {"2": None, "1": None}}) == []
    errors[1.0] = 30.0
    assert tune() == 1.0
    assert book.failed == {}


@pytest.mark.slow
def test_the_tuning_rate_is_chosen_once_on_validation_examples(finished, tmp_path, monkeypatch):
    config = replace(CONFIG, tune_rates=(1e30, 8e-3, 8e-4), scratch=(), zs=(), copies=False)
    monkeypatch.setattr(experiment, "WORK", tmp_path)
    monkeypatch.setattr(experiment, "configure", lambda _: config)
    path = experiment.run(experiment.Arguments(preset="smoke"))
    found = json.loads(path.read_text())["pieces"]
    tried = found[arms.TRIALS]
    assert tried["1e+30"] is None
    best = min((8e-3, 8e-4), key=lambda rate: tried[f"{rate:g}"])
    ours, chosen = found["fisher 0.5 tuned seed 0"], found[f"rate {best:g} 0.5 tried seed 0"]
    assert ours == chosen
    assert f"Fine-tuned at {best:g}" in path.with_suffix(".md").read_text()


@pytest.mark.slow
def test_densenets_run_in_half_precision(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "WORK", tmp_path)
    arguments = experiment.Arguments(network="densenet", preset="smoke", dtype="bfloat16")
    found = json.loads(experiment.run(arguments).read_text())["pieces"]
    assert all(f"{name} seed 0" in found for name in report.names(experiment.configure(arguments)))


@pytest.mark.slow
def test_a_signal_that_fails_is_told_and_the_others_go_on(tmp_path, monkeypatch):
    config = replace(CONFIG, signals=("l1", "fisher"), scratch=("fisher",), copies=False)
    monkeypatch.setattr(experiment, "WORK", tmp_path)
    monkeypatch.setattr(experiment, "configure", lambda _: config)
    infinite = lambda *_, **__: (
        lambda params, batch: {
            name: np.full(width, np.inf, np.float32)
            for name, width in zip(Problem(config).inner, (16, 32, 64), strict=True)
        }
    )
    with monkeypatch.context() as patch:
        patch.setattr(jp.saliency, "unit_magnitude", infinite)
        with pytest.raises(
            FloatingPointError, match=r"l1 0\.5 tuned seed 0: .* 0 of 56 units gone"
        ):
            experiment.run(experiment.Arguments(preset="smoke"))
    (path,) = tmp_path.glob("*/*.json")
    found = json.loads(path.read_text())
    assert list(found["failed"]) == ["l1 0.5 tuned seed 0"]
    assert "fisher 0.5 scratch long seed 0" in found["pieces"]
    assert "l1 0.5 tuned seed 0" in path.with_suffix(".md").read_text()
    assert "failed" not in json.loads(experiment.run(experiment.Arguments()).read_text())
