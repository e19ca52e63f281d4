"""What becomes NaN fails by itself: the others go on, the tables and the exit code say so."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from experiments import combinatorial_brain_surgeon as surgeons
from experiments import compare_saliencies as saliencies
from experiments import dense_networks, minified_models, presenting, training
from experiments import to_prune_or_not as gradual
from experiments.gradual.running import FORMS
from experiments.gradual.ways import GRADUAL, arms, trials
from experiments.minified import lab, parameters, quantized, units
from experiments.surgeon_methods import Surgeons
from experiments.training import Budget
from jaxprune.types import Pruned
from tests.faults import killed_runs
from tests.transforms.zoo import assert_same_bits

NAN = float("nan")


def not_a_number(tree):
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, NAN), tree)


def read(path):
    """Pieces, failures and the page of a finished run."""
    found = json.loads(path.read_text())
    return found["pieces"], found.get("failed", {}), path.with_suffix(".md").read_text()


@pytest.fixture
def without_plots(monkeypatch):
    for module in (presenting, surgeons.surgeon_tables):
        monkeypatch.setattr(module, "accuracy_plot", lambda *_, **options: None)
    monkeypatch.setattr(gradual.report, "draw", lambda *_: None)
    monkeypatch.setattr(minified_models.report.pictures, "draw", lambda *_: None)


# --- the parts ---


def test_training_that_diverges_is_an_error_that_names_leaf_and_rate():
    model = lambda params, inputs: inputs @ params["kernel"]
    split = saliencies.data.Split(jnp.ones((4, 2)), jnp.zeros(4, jnp.int32))
    params, keys = {"kernel": jnp.ones((3, 2, 5))}, jax.random.split(jax.random.key(0), 3)
    fit = lambda rate: training.train_runs(
        model, params, jp.trees.full_mask(params), keys, split, Budget(3, 2, rate)
    )
    assert np.isfinite(fit(0.1)["kernel"]).all()
    with pytest.raises(FloatingPointError, match=r"rate of 3e\+38 diverged: leaf 'kernel' is NaN"):
        fit(3e38)


def test_rates_that_diverge_are_not_tried_any_further_unless_all_do():
    def train(rate):
        if rate > 1:
            raise FloatingPointError(f"diverged at {rate}")
        return rate

    assert lab.trials((3.0, 0.5, 0.1), train) == {0.5: 0.5, 0.1: 0.1}
    with pytest.raises(FloatingPointError, match="diverged at 3; diverged at 2"):
        lab.trials((3, 2), train)


# --- the experiments ---


@pytest.fixture
def comparison(tmp_path, monkeypatch, without_plots):
    """A tiny comparison of saliencies, which nobody weighs."""
    monkeypatch.setattr(saliencies.Comparison, "weigh", lambda *_: {"report": killed_runs.REPORT})
    monkeypatch.setattr(saliencies, "WORK", tmp_path)
    config = replace(
        saliencies.PRESETS["smoke"], hidden=(4,), seeds=1, sparsities=(0.9,), dense_epochs=1
    )
    monkeypatch.setitem(saliencies.PRESETS, "smoke", config)
    arguments = saliencies.Arguments(preset="smoke", methods=("magnitude", "random"))
    return lambda: saliencies.run(arguments)


def test_a_saliency_that_gives_nan_fails_alone_and_may_succeed_later(
    comparison, tmp_path, monkeypatch
):
    monkeypatch.setattr(saliencies.Comparison, "fit", lambda self, params, *_, **more: params)
    monkeypatch.setattr(saliencies.Comparison, "score", lambda *_: [50.0])
    plain = saliencies.Comparison.scores
    broken = lambda self, method, networks: [
        not_a_number(s) if method == "magnitude" else s for s in plain(self, method, networks)
    ]
    with monkeypatch.context() as patch:
        patch.setattr(saliencies.Comparison, "scores", broken)
        with pytest.raises(FloatingPointError, match=r"1 failed, see .*\n.*magnitude 0.9") as told:
            comparison()
    path = next(tmp_path.glob("*/compare*.json"))
    pieces, failed, page = read(path)
    assert set(pieces) == {"dense", "random 0.9"}
    assert set(failed) == {"magnitude 0.9"}
    reason = failed["magnitude 0.9"]
    assert "leaf 'Dense_0/kernel' is NaN or infinite" in reason
    assert f"magnitude 0.9: {reason}" in str(told.value)
    assert f"| magnitude 0.9 | {reason} |" in page
    assert comparison() == path
    pieces, failed, page = read(path)
    assert set(pieces) == {"dense", "random 0.9", "magnitude 0.9"}
    assert failed == {}
    assert "Failed" not in page


@pytest.mark.slow
def test_fine_tuning_that_diverges_fails_and_nothing_is_measured_of_it(
    comparison, tmp_path, monkeypatch
):
    plain = saliencies.Comparison.fit

    def fit(self, params, masks, budget, salt):
        return plain(self, not_a_number(params) if salt == 1 else params, masks, budget, salt)

    monkeypatch.setattr(saliencies.Comparison, "fit", fit)
    with pytest.raises(FloatingPointError, match=r"3 failed, .*\n.*dense: Training by a rate of"):
        comparison()
    assert read(next(tmp_path.glob("*/compare*.json")))[0] == {}


def test_a_surgeon_that_fails_does_so_alone(tmp_path, monkeypatch, without_plots):
    monkeypatch.setattr(surgeons, "WORK", tmp_path)
    inputs, labels = jnp.ones((20, 3)), jnp.zeros(20, jnp.int32)
    params = {"kernel": jnp.ones((3, 2))}
    apply = lambda params, inputs: inputs @ params["kernel"]
    case = surgeons.Case(apply, params, jp.select.lowest(), (inputs, labels), (inputs, labels))
    monkeypatch.setattr(surgeons, "load_case", lambda *_: case)
    half = {"kernel": jnp.array([[True, False]] * 3)}

    def plain(params, batch, *, sparsity):
        return Pruned(params, half, {})

    def nan_weights(params, batch, *, sparsity):
        return Pruned(not_a_number(params), half, {})

    def no_update(params, batch, *, sparsity):
        raise ValueError("No finite update was found")  # as the surgeons say it

    pruners = {"MP": plain, "WF": nan_weights, "CBS": no_update}
    monkeypatch.setattr(Surgeons, "build", lambda self, method, seed: pruners[method])
    arguments = surgeons.Arguments(preset="smoke", seeds=1, methods=tuple(pruners))
    with pytest.raises(FloatingPointError, match="2 failed"):
        surgeons.run(arguments)
    pieces, failed, page = read(next(tmp_path.glob("*/comb*.json")))
    assert set(pieces) == {"dense", "MP 0.9 seed 0"}
    assert set(failed) == {"WF 0.9 seed 0", "CBS 0.9 seed 0"}
    assert "leaf 'kernel' is NaN" in failed["WF 0.9 seed 0"]
    assert all(f"| {name} | {reason} |" in page for name, reason in failed.items())


def test_a_comparison_of_which_everything_fails_says_why(tmp_path, monkeypatch):
    case = surgeons.Case(
        lambda params, inputs: inputs @ params["kernel"], {"kernel": jnp.ones((3, 2))},
        jp.select.lowest(), *[(jnp.ones((20, 3)), jnp.zeros(20, jnp.int32))] * 2,
    )  # fmt: skip

    def fail(*args, **options):
        raise FloatingPointError("there is no such number")

    monkeypatch.setattr(surgeons, "WORK", tmp_path)
    monkeypatch.setattr(surgeons, "load_case", lambda *_: case)
    monkeypatch.setattr(surgeons.Comparison, "run_one", fail)
    with pytest.raises(FloatingPointError, match=r"1 failed.*\n.*MP 0\.9 seed 0: there is no"):
        surgeons.run(surgeons.Arguments(preset="smoke", seeds=1, methods=("MP",)))
    assert "there is no such number" in read(next(tmp_path.glob("*/comb*.json")))[2]
    config = replace(saliencies.PRESETS["smoke"], methods=("random",))
    book = saliencies.ledger.Ledger(tmp_path / "book.json", config)
    presenting.show(book, tmp_path / "book", book.made_on)
    assert not list(tmp_path.glob("**/*.png"))


def test_an_arm_that_diverges_ends_alone_and_a_trial_is_only_not_chosen(
    tmp_path, monkeypatch, without_plots
):
    monkeypatch.setattr(gradual, "WORK", tmp_path)
    config = gradual.configure(gradual.Arguments(task="lm", preset="smoke", seeds=2))
    best, worst = config.rates
    piece = {
        "loss": 1.0, "parameters": 9, "nonzeros": 5, "sparsity": 0.5,
        "validation": {"perplexity": 2.0}, "test": {"perplexity": 2.0},
        "bytes": dict.fromkeys(FORMS, 20),
    }  # fmt: skip

    def run_one(one, told):
        if one.arm.rate == worst or (one.arm.way == GRADUAL and one.arm.seed == 1):
            raise FloatingPointError(f"The loss is nan, {one.arm.seed}")
        if one.arm.way == "rigl":
            return {**piece, "test": {"perplexity": NAN}}
        return piece

    monkeypatch.setattr(gradual, "run_one", run_one)
    with pytest.raises(FloatingPointError, match="3 failed"):
        gradual.run(gradual.Arguments(task="lm", preset="smoke", seeds=2))
    pieces, failed, page = read(next(tmp_path.glob("*/to_prune*.json")))
    rates = dict.fromkeys((*config.small, config.large), best)
    wanted = [*arms(config, rates), *(arm for arm in trials(config) if arm.rate == best)]
    lost = [a for a in wanted if a.way == "rigl" or (a.way == GRADUAL and a.seed == 1)]
    assert set(failed) == {arm.name for arm in lost}
    told = {gradual.diverged(arm.name) for arm in trials(config) if arm.rate == worst}
    assert set(pieces) == ({arm.name for arm in wanted} | told) - set(failed)
    assert all(f"| {name} | {reason} |" in page for name, reason in failed.items())
    again = []
    monkeypatch.setattr(gradual, "run_one", lambda one, _: again.append(one.arm.name) or piece)
    gradual.run(gradual.Arguments(task="lm", preset="smoke", seeds=2))
    assert set(again) == set(failed)  # and no trial


def test_a_small_network_that_cannot_be_made_fails_alone(tmp_path, monkeypatch, without_plots):
    monkeypatch.setattr(minified_models, "WORK", tmp_path)
    measured = {part: {"accuracy": [50.0, 60.0]} for part in ("validation", "test")}
    of = lambda lab, *arms: {
        "arms": dict.fromkeys(arms, measured), "bytes": [100, 100], "flops": 10, "parameters": 25,
        "widths": list(lab.widths),
    }  # fmt: skip
    cell = lambda lab, *_: of(lab, "one_shot", "fine_tuned")
    monkeypatch.setattr(lab.Lab, "_trained", lambda self: write_rate(self) or self.fresh(0))
    monkeypatch.setattr(lab.Lab, "time", lambda self, widths: self.book.record(
        lab.latency_of(widths), {"1": 1.0, "256": 1.0}))  # fmt: skip
    write_rate = lambda self: lab.ledger.write_atomically(
        self.work / "dense_rate.json", '{"rate": 0.01, "validation": {}}'
    )

    def run_dense(lab):
        lab.book.record("dense", of(lab, "one_shot", "fine_tuned"))
        lab.time(lab.widths)

    def put_on(lab, scheme, bits, *_):
        if scheme == "shared":
            raise ValueError("leaf 'kernel' is NaN or infinite, which no code stores")
        return {**measured, "bytes": [50, 50]}

    plain = parameters.scored
    monkeypatch.setattr(quantized, "run_dense", run_dense)
    monkeypatch.setattr(quantized, "put_on", put_on)
    monkeypatch.setattr(quantized, "tuned", lambda *_: {**measured, "bytes": [50, 50]})
    monkeypatch.setattr(parameters, "joint", lambda lab: lambda *_, **options: None)
    monkeypatch.setattr(parameters, "cell", cell)
    monkeypatch.setattr(
        parameters, "scored",
        lambda lab, method, networks: (
            not_a_number(networks) if method == "obd_sd_damage" else plain(lab, method, networks)
        ),
    )  # fmt: skip
    monkeypatch.setattr(units, "scored", lambda *_: [])
    monkeypatch.setattr(units, "cell", cell)

    def from_scratch(*_):
        raise FloatingPointError("Training by a rate of 0.01 diverged")

    monkeypatch.setattr(units, "from_scratch", from_scratch)
    with pytest.raises(FloatingPointError, match="3 failed"):
        minified_models.run(minified_models.Arguments(preset="smoke"))
    pieces, failed, page = read(next(tmp_path.glob("*/mini*.json")))
    assert set(failed) == {
        "quantized shared 4", "parameters obd_sd_damage 0.1", "units scratch 0.1",
    }  # fmt: skip
    assert {"parameters magnitude 0.1", "parameters joint 0.1", "units l2 0.1"} < set(pieces)
    assert "is NaN or infinite" in failed["parameters obd_sd_damage 0.1"]
    summary = next(tmp_path.glob("*/minified_models.md")).read_text()
    for name, reason in failed.items():
        assert f"| {name} | {reason} |" in page
        assert f"| {name} | {reason} |" in summary


def test_a_dense_network_whose_last_step_breaks_it_is_not_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(dense_networks, "WORK", tmp_path)
    config = replace(dense_networks.configure("mlpnet", "digits", "smoke"), examples=64, epochs=1)
    run = dense_networks.Run(config)
    state = run.training.start()
    with pytest.raises(FloatingPointError, match="lower the learning rate: leaf 'fc1/kernel'"):
        run._finish(state._replace(params=not_a_number(state.params)))
    assert "dense" not in run.book.pieces


def test_dense_networks_that_lost_their_checkpoints_or_results_are_made_whole(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(dense_networks, "WORK", tmp_path)
    config = replace(dense_networks.configure("mlpnet", "digits", "smoke"), examples=64, epochs=1)
    make = lambda: dense_networks.dense_network("", "", config=config)
    first = make()
    folder = dense_networks.Run(config).folder
    (folder / str(jp.checkpoint.latest_step(folder)) / "leaves" / "metadata").unlink()
    with pytest.warns(UserWarning, match=r"moved to 2\.damaged"):
        again = make()
    assert_same_bits(again.variables, first.variables)
    dense_networks.Run(config).book.path.unlink()
    third = make().info
    assert third["train_seconds"] is None  # nobody knows
    untimed = lambda info: {k: v for k, v in info.items() if k != "train_seconds"}
    assert untimed(third) == untimed(first.info)
    assert "| unknown |" in dense_networks.table(folder.parent)
