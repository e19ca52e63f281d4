"""Dense networks: training that resumes bit-exactly, is done once, and says what it did."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxprune as jp
from experiments import data, ledger, locking
from experiments import dense_networks as experiment
from experiments.dense_training import NETWORKS, About, Training, kernels, variables
from experiments.image_batches import CHANNELS, mirror, normalise, shift
from experiments.models import MLPNet

pytest.importorskip("sklearn")

MLPNET = replace(experiment.configure("mlpnet", "digits", "smoke"), examples=100)
RESNET = replace(
    experiment.configure("resnet8", "digits", "smoke"), examples=12, batch=4, shift=1, mirror=True
)


@pytest.fixture
def run_in(tmp_path, monkeypatch):
    """Makes a run in a folder of its own; runs of one configuration share what is compiled."""
    known = {}

    def shared(made):
        training = made.training
        first = training.start()
        training.start = lambda: jax.tree.map(jnp.copy, first)  # its arrays will be donated
        return training

    def run(name, config, **options):
        monkeypatch.setattr(experiment, "WORK", tmp_path / name)
        made = experiment.Run(config, **options)
        known[config] = made.training = known.get(config) or shared(made)
        return made

    return run


class Normed(nn.Module):
    """The least that has statistics: it stands in for a ResNet, which takes long to compile."""

    @nn.compact
    def __call__(self, inputs, train=False):
        x = nn.Conv(4, (3, 3), use_bias=False)(inputs)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(10)(jnp.mean(x, axis=(1, 2)))


def assert_same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


# --- runs ---


def test_a_run_that_stops_at_every_step_ends_with_the_bits_of_one_that_never_stops(run_in):
    whole = run_in("whole", MLPNET)
    end = whole.train()
    for _ in range(whole.training.total):
        again = run_in("cut", MLPNET)
        stopped = again.train(minutes=0)
    assert int(stopped.step) == whole.training.total == 6
    assert_same_bits(stopped, end)
    for name in ("epoch 1", "epoch 2"):
        assert again.book.pieces[name] == whole.book.pieces[name]
    accuracies = [run.book.pieces["dense"]["test_accuracy"] for run in (again, whole)]
    assert accuracies[0] == accuracies[1]


def test_a_killed_run_with_batch_statistics_and_shifts_resumes_to_the_same_bits(
    run_in, monkeypatch
):
    monkeypatch.setitem(NETWORKS, "resnet8", lambda classes: Normed())
    cut = run_in("cut", RESNET, save_seconds=0.0)
    update, steps = cut.training.update, []

    def dies_in_the_second_epoch(*arguments):
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return update(*arguments)

    cut.training.update = dies_in_the_second_epoch
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    assert jp.checkpoint.steps(cut.folder) == [3, 4]
    cut.training.update = update
    whole = run_in("whole", RESNET)
    assert_same_bits(cut.train(), whole.train())
    found = variables(whole.newest())
    assert set(found) == {"params", "batch_stats"}
    assert np.any(np.asarray(found["batch_stats"]["BatchNorm_0"]["mean"]) != 0)


@pytest.mark.slow
def test_a_resnet_trains_and_comes_back_with_its_statistics(run_in):
    config = experiment.configure("resnet8", "digits", "smoke")
    run = run_in("work", config)
    run.train()
    assert run.book.pieces["epoch 2"]["loss"] < run.book.pieces["epoch 1"]["loss"]
    model, found, info = experiment.dense_network("resnet8", "digits", config=config)
    assert info["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(found["params"]))
    split = data.load("digits").test
    logits = model.apply(found, normalise(split.inputs, "digits"))
    accuracy = 100 * np.mean(np.argmax(np.asarray(logits), axis=1) == split.targets)
    assert accuracy == pytest.approx(info["test_accuracy"])


def test_a_finished_network_is_neither_trained_nor_are_its_data_read_again(run_in, monkeypatch):
    end = run_in("work", MLPNET).train()
    monkeypatch.setattr(data, "load", lambda *a, **k: pytest.fail("read the data"))
    model, found, info = experiment.dense_network("mlpnet", "digits", config=MLPNET)
    assert_same_bits(found, {"params": end.params})
    assert isinstance(model, MLPNet)
    assert info["config"]["examples"] == 100
    assert info["parameters"] == 64 * 40 + 40 * 20 + 20 * 10
    assert 0 <= info["test_accuracy"] <= 100


def test_two_processes_do_not_train_one_network(run_in):
    run = run_in("work", MLPNET)
    run.train(minutes=0)
    with (
        locking.alone(run.folder, wait=False),
        pytest.raises(locking.Busy, match="Another process trains"),
    ):
        run.train()
    run.train()
    with locking.alone(run.folder, wait=False):
        run.train()  # a finished one is only read


def test_training_lowers_the_loss_and_beats_guessing(run_in):
    run = run_in("work", experiment.configure("mlpnet", "digits", "smoke"))
    run.train()
    pieces = run.book.pieces
    assert pieces["epoch 2"]["loss"] < pieces["epoch 1"]["loss"] < np.log(10)
    assert pieces["dense"]["test_accuracy"] > 40


def test_a_loss_that_is_no_number_ends_the_run(run_in):
    with pytest.raises(ValueError, match=r"loss is (nan|inf) after epoch 1\. Lower the learning"):
        run_in("work", replace(MLPNET, learning_rate=1e30)).train()


def test_a_finished_run_writes_a_row_and_its_json_side_by_side(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiment, "WORK", tmp_path)
    monkeypatch.setitem(experiment.PRESETS["mlpnet"], "smoke", replace(MLPNET, dataset="mnist"))
    arguments = experiment.Arguments(dataset="digits", preset="smoke", minutes=0)
    run = experiment.main(arguments)
    assert "Start again to go on" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.md"))
    run = experiment.main(replace(arguments, minutes=None))
    name = f"dense_networks-mlpnet-digits-{ledger.digest(run.config)}"
    (text,) = tmp_path.rglob("dense_networks.md")
    piece = json.loads((text.parent / f"{name}.json").read_text())["pieces"]["dense"]
    row = f"| mlpnet | digits | {piece['test_accuracy']:.2f} | {piece['validation_accuracy']:.2f} |"
    assert row in text.read_text()
    assert "epoch 2/2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mlpnett", "mnist"), r"Unknown network 'mlpnett'.*Did you mean 'mlpnet'\?"),
        (("mlpnet", "cifar"), r"Unknown data set 'cifar'.*Did you mean 'cifar10'\?"),
        (("mlpnet", "mnist", "gpu"), r"Unknown preset 'gpu'\. Known: smoke, cpu, full\."),
    ],
)
def test_unknown_names_are_refused_with_the_nearest_known_one(arguments, message):
    with pytest.raises(ValueError, match=message):
        experiment.configure(*arguments)


def test_only_photographs_are_mirrored():
    assert not experiment.configure("resnet20", "mnist").mirror
    assert experiment.configure("resnet20", "cifar10").mirror


# --- steps ---


def test_an_epoch_takes_every_example_once_and_the_next_in_another_order():
    training = Training(MLPNET, About(100, (8, 8, 1), 10))
    first, second = np.asarray(training.order(0)), np.asarray(training.order(1))
    np.testing.assert_array_equal(np.sort(first), np.arange(100))
    np.testing.assert_array_equal(np.sort(second), np.arange(100))
    assert np.any(first != second)


def test_accuracy_counts_every_example_also_of_a_last_batch_that_is_not_full():
    training = Training(MLPNET, About(100, (8, 8, 1), 10))
    state, split = training.start(), data.load("digits").test
    logits = training.model.apply(variables(state), normalise(split.inputs, "digits"))
    expected = 100 * np.mean(np.argmax(np.asarray(logits), axis=1) == split.targets)
    assert training.accuracy(state, split, batch=77) == pytest.approx(expected)


def test_weights_decay_in_kernels_and_nowhere_else():
    params = jax.eval_shape(Training(RESNET, About(12, (8, 8, 1), 10)).start).params
    decays = jax.tree.leaves(kernels(params))
    # Kernels are the leaves with inputs and outputs; biases, scales and shifts have one axis.
    assert decays == [leaf.ndim > 1 for leaf in jax.tree.leaves(params)]


def test_mlpnet_has_three_kernels_and_no_bias():
    params = MLPNet().init(jax.random.key(0), np.ones((1, 28, 28, 1)))["params"]
    shapes = {name: {leaf: w.shape for leaf, w in layer.items()} for name, layer in params.items()}
    assert shapes == {
        "fc1": {"kernel": (784, 40)},
        "fc2": {"kernel": (40, 20)},
        "fc3": {"kernel": (20, 10)},
    }


# --- images ---


def test_a_shifted_image_is_a_window_of_the_padded_one_and_all_windows_occur():
    image = jnp.arange(1.0, 17.0).reshape(1, 4, 4, 1)
    padded = np.pad(np.asarray(image), ((0, 0), (1, 1), (1, 1), (0, 0)))[0]
    windows = {padded[i : i + 4, j : j + 4].tobytes() for i in range(3) for j in range(3)}
    shifted = shift(jnp.repeat(image, 200, axis=0), jax.random.key(0), 1)
    assert {each.tobytes() for each in np.asarray(shifted)} == windows


def test_about_half_of_the_images_are_mirrored_and_the_rest_stays():
    image = np.arange(18.0, dtype=np.float32).reshape(1, 2, 3, 3)
    found = np.asarray(mirror(jnp.repeat(image, 400, axis=0), jax.random.key(1)))
    mirrored = np.all(found == image[:, :, ::-1], axis=(1, 2, 3))
    kept = np.all(found == image, axis=(1, 2, 3))
    assert np.all(mirrored ^ kept)
    assert 150 < mirrored.sum() < 250


def test_normalised_digits_have_mean_0_and_deviation_1():
    inputs = np.asarray(normalise(data.load("digits").train.inputs, "digits"))
    assert abs(inputs.mean()) < 5e-3
    assert abs(inputs.std() - 1) < 5e-3


def test_every_set_of_images_has_its_constants():
    assert set(CHANNELS) == set(data.names()) - {"mails"}


def test_networks_of_images_refuse_mails_by_name():
    with pytest.raises(ValueError, match="Unknown data set 'mails'"):
        experiment.configure("mlpnet", "mails")
