"""What units save: counted as the small arrays have it, measured as they run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import select
from jaxprune.coupling import couple, from_json, to_json
from jaxprune.reporting import (
    flops,
    milliseconds,
    structure_report,
    timing,
    unit_milliseconds,
)
from jaxprune.structure import shrink_units
from tests.structure.net_zoo import NETS


@pytest.fixture
def clock(monkeypatch):
    """A device that does one FLOP in a nanosecond and has no other work."""
    read = lambda function, args: 1e-6 * flops(function, *args)
    monkeypatch.setattr(timing, "_milliseconds", read)


def wide(width=32, hidden=128):
    """A network whose time is its hidden layer's; and a side branch of hardly any work."""
    random = np.random.default_rng(0)
    draw = lambda *size: jnp.asarray(random.normal(size=size) / np.sqrt(size[0]), jnp.float32)
    w = {"in": draw(width, hidden), "out": draw(hidden, width), "up": draw(4, 8), "to": draw(8, 4)}

    def apply(w, x):
        return jax.nn.relu(x @ w["in"]) @ w["out"], jnp.tanh(x[:2, :4] @ w["up"]) @ w["to"]

    x = draw(256, width)
    return apply, w, x, couple(apply, w, x)


def halved(coupling):
    return {name: np.arange(group.units) % 2 == 0 for name, group in coupling.groups.items()}


@pytest.mark.parametrize("name", ["mlp_linen", "vit_without_norms", "lstm_fused"])
def test_it_counts_what_the_small_arrays_hold(name):
    net = NETS[name]()
    coupling = couple(net.apply, net.variables, *net.inputs)
    kept = halved(coupling)
    found, small = structure_report(coupling, kept), shrink_units(net.variables, kept, coupling)
    leaves = jax.tree.leaves(small)
    assert found.shrunk.parameters == sum(leaf.size for leaf in leaves)
    assert found.shrunk.bytes == sum(leaf.nbytes for leaf in leaves)
    assert found.dense.parameters == sum(leaf.size for leaf in jax.tree.leaves(net.variables))
    assert found.dense.flops == flops(net.apply, net.variables, *net.inputs)
    assert found.flop_ratio == found.dense.flops / found.shrunk.flops > 1
    for diff, (group, keep) in zip(found.groups, kept.items(), strict=True):
        assert (diff.name, diff.before, diff.after) == (group, len(keep), keep.sum())
        alone = structure_report(coupling, {group: keep})
        assert diff.parameters == found.dense.parameters - alone.shrunk.parameters > 0
        assert diff.flops == found.dense.flops - alone.shrunk.flops
    assert found.latency is found.shrunk_latency is found.speed_up is None


def test_nothing_removed_is_no_difference():
    net = NETS["mlp_linen"]()
    coupling = couple(net.apply, net.variables, *net.inputs)
    found = structure_report(coupling, {})
    assert found.dense == found.shrunk
    assert all(g.before == g.after and g.parameters == g.flops == 0 for g in found.groups)
    assert found.flop_ratio == 1


def test_a_quarter_of_the_hidden_units_is_as_much_faster_as_the_clock_says(clock):
    _, w, x, coupling = wide(512, 2048)
    keep = {"in": np.arange(2048) % 4 == 0}
    found = structure_report(coupling, keep, w, x)
    assert 3.9 < found.flop_ratio < 4.01
    assert found.latency.median_ms == pytest.approx(1e-6 * found.dense.flops)
    assert found.shrunk_latency.median_ms == pytest.approx(1e-6 * found.shrunk.flops)
    assert found.speed_up == pytest.approx(found.flop_ratio)
    text = str(found)
    assert "| in    | 2,048 -> 512 |" in text
    assert "| up    |       8 -> 8 |" in text
    assert f"speed-up     measured {found.speed_up:.2f} x" in text
    assert f"by FLOPs {found.flop_ratio:.2f} x" in text
    assert json.loads(json.dumps(found.as_dict()))["speed_up"] == found.speed_up


def test_the_text_holds_the_numbers_and_no_latency_that_was_not_measured():
    apply = lambda w, x: jax.nn.relu(x @ w["a"]) @ w["b"]
    w, x = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}, jnp.ones((1, 3))
    coupling = couple(apply, w, x)
    abstract = jax.eval_shape(lambda: w)
    for given in ((), (abstract, x)):
        text = str(structure_report(coupling, {"a": np.array([True, False] * 2)}, *given))
        assert "| a     | 4 -> 2 |               10 |          20 |" in text
        assert "parameters   20 -> 10 (50.0 %)" in text
        assert text.endswith("latency      not measured")
    assert structure_report(coupling, {}, w, x, measure=False).latency is None


def test_a_budget_of_milliseconds_is_met_as_measured(clock):
    _, w, x, coupling = wide()
    cost = milliseconds(coupling, w, x, repeats=2)
    dense, quarter = cost({}), cost({"in": np.arange(128) < 32})
    assert quarter < dense
    limit = (dense + quarter) / 2
    chosen = select.lowest_units(coupling, budget=select.Budget(cost, at_most=limit))
    kept = coupling.kept(chosen(w, jax.tree.map(jnp.abs, w)))
    assert 0.9 * limit < cost(kept) <= limit
    assert 32 < kept["in"].sum() < 128


def test_a_budget_that_was_met_stays_met_on_a_machine_that_slows_down(monkeypatch):
    readings = iter(range(1, 10_000))
    monkeypatch.setattr(timing, "_milliseconds", lambda function, args: float(next(readings)))
    _, w, x, coupling = wide()
    cost = milliseconds(coupling, w, x, repeats=1)
    whole, half = {}, {"in": np.arange(128) < 64}
    assert [cost(whole), cost(half), cost(whole), cost(half)] == [1, 2, 1, 2]


def test_the_same_widths_are_timed_once():
    _, w, x, coupling = wide(64, 64)
    cost = milliseconds(coupling, w, x, repeats=2)
    first, last = np.arange(64) < 9, np.arange(64) >= 55
    assert cost({"in": first}) == cost({"in": last})
    assert cost({}) == cost({"in": np.ones(64, bool)})


def test_the_group_that_costs_time_is_told_from_the_one_that_does_not(clock):
    _, w, x, coupling = wide()
    found = unit_milliseconds(coupling, w, x, widths=3, repeats=2)
    assert {name: saved.shape for name, saved in found.items()} == {"in": (128,), "up": (8,)}
    for name, saved in found.items():
        half = {name: np.arange(len(saved)) * 2 < len(saved)}
        counted = structure_report(coupling, half)
        exact = 1e-6 * (counted.dense.flops - counted.shrunk.flops) / (len(saved) / 2)
        np.testing.assert_allclose(saved, exact, rtol=1e-6)
    assert found["in"][0] > 50 * found["up"][0] > 0


def test_what_cannot_be_measured_is_an_error():
    apply = lambda w, x: jax.nn.relu(x @ w["a"]) @ w["b"]
    w, x = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}, jnp.ones((1, 3))
    coupling = couple(apply, w, x)
    for function in (lambda *given: structure_report(coupling, {}, *given[1:]), milliseconds):
        with pytest.raises(ValueError, match="takes 1 inputs besides its variables, got 0"):
            function(coupling, w)
        with pytest.raises(ValueError, match="differs from the one that was coupled"):
            function(coupling, [w], x)
    with pytest.raises(ValueError, match="loaded from a file"):
        structure_report(from_json(to_json(coupling)), {}, w, x)
    with pytest.raises(ValueError, match="No group of units is called 'z'"):
        structure_report(coupling, {"z": np.ones(4, bool)})
    with pytest.raises(ValueError, match="empty layer"):
        milliseconds(coupling, w, x)({"a": np.zeros(4, bool)})
    with pytest.raises(ValueError, match="`widths` is 1"):
        unit_milliseconds(coupling, w, x, widths=1)
