"""Scores of units from weights alone, their costs, and what is said about bad input."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.near import assert_near
from tests.saliency.unit_cases import bare, case, conv, loss, near, residual, vector
from tests.structure.net_zoo import NETS

saliency = jp.saliency


@pytest.mark.parametrize("order", [1, 2])
def test_magnitude_is_the_norm_of_all_weights_of_the_unit(order, x64):
    found = case("chain")
    one, two, out = (np.asarray(found.params[n]["kernel"]) for n in ("one", "two", "out"))
    norm = lambda *parts: np.linalg.norm(np.concatenate(parts), order, axis=0)
    expected = {"one": norm(one, two.T), "two": norm(two, out.T)}
    near(saliency.unit_magnitude(found.coupling, order)(found.params), expected, 100)
    expected = {"one": norm(one), "two": norm(two)}
    scores = saliency.unit_magnitude(found.coupling, order, incoming=True)(found.params)
    near(scores, expected, 100)
    every = lambda name, leaf: True
    expected = {"one": norm(one, found.params["one"]["bias"][None], two.T), "two": norm(two, out.T)}
    scores = saliency.unit_magnitude(found.coupling, order, prunable=every)(found.params)
    near(scores, expected, 100)


def test_incoming_filters_of_streams_and_of_heads(x64):
    found = case("residual")
    kernels = {name: np.abs(found.params[name]["kernel"]) for name in found.params}
    scores = saliency.unit_magnitude(found.coupling, incoming=True)(found.params)
    producers = {"stem": ("stem", "b", "d"), "a": ("a",), "c": ("c",)}
    near(scores, {g: sum(kernels[k].sum(0) for k in names) for g, names in producers.items()}, 100)
    found = case("heads")
    [head] = [name for name, group in found.coupling.groups.items()
              if {m.axis for m in group.members if m.leaf != "out/kernel"} == {1}]  # fmt: skip
    scores = saliency.unit_magnitude(found.coupling, incoming=True)(found.params)[head]
    expected = sum(np.abs(found.params[name]["kernel"]).sum((0, 2)) for name in "qkv")
    assert_near(scores, expected, jnp.float64)


def test_scales_of_normalisation_layers():
    found = bare("conv")
    scores = saliency.batch_norm_scale(found.coupling)(found.params)
    for name in ("one", "two"):
        np.testing.assert_array_equal(scores[name], np.abs(found.params[name]["scale"]))
    net = NETS["resnet18"]()
    coupling = jp.couple(net.apply, net.variables, *net.inputs)
    scores = saliency.batch_norm_scale(coupling)(net.variables)
    leaves = dict(jp.trees.named_leaves(net.variables))
    for name, group in coupling.groups.items():
        ours = {m.leaf for m in group.members if m.leaf.endswith("/scale")}
        expected = np.mean([np.abs(leaves[leaf]) for leaf in ours], axis=0)
        np.testing.assert_allclose(scores[name], expected, rtol=1e-6)
    assert any(len([m for m in g.members if m.leaf.endswith("scale")]) > 1
               for g in coupling.groups.values())  # fmt: skip


def test_groups_without_a_scale_are_named_or_filled():
    params = jax.tree.map(lambda x: x, bare("conv").params)
    del params["two"]["scale"]
    apply = lambda w, x: conv({**w, "two": {**w["two"], "scale": 1.0}}, x)
    coupling = jp.couple(apply, params, bare("conv").batch[0])
    with pytest.raises(ValueError, match=r"No normalisation scales the units of \['two'\]"):
        saliency.batch_norm_scale(coupling)(params)
    scores = saliency.batch_norm_scale(coupling, missing=7.0)(params)
    np.testing.assert_array_equal(scores["two"], np.full(3, 7.0))
    np.testing.assert_array_equal(scores["one"], np.abs(params["one"]["scale"]))
    biases = lambda name, leaf: name.endswith("bias")
    scores = saliency.batch_norm_scale(coupling, scales=biases)(params)
    np.testing.assert_array_equal(scores["two"], np.abs(params["two"]["bias"]))


def test_elementwise_scores_are_reduced_and_functions_stay_functions():
    found = bare("residual")
    of = found.coupling.reduce(saliency.magnitude()(found.params), "max")
    for elementwise in (saliency.magnitude(), lambda params, batch: jax.tree.map(jnp.abs, params)):
        reduced = saliency.on_units(found.coupling, elementwise, "max")
        assert isinstance(reduced, jp.Saliency) == isinstance(elementwise, jp.Saliency)
        near(reduced(found.params, None), of, 0)


def test_random_scores_come_from_the_key_alone():
    found = bare("residual")
    score = lambda seed: saliency.random_units(found.coupling, jax.random.key(seed))(found.params)
    near(score(0), score(0), 0)
    assert (vector(score(0)) != vector(score(1))).all()
    assert len(np.unique(vector(score(0)))) == found.coupling.units
    assert ((vector(score(0)) >= 0) & (vector(score(0)) < 1)).all()


COSTS = ["parameters", "bytes", "flops", "activations", {"one": 2.0, "two": np.array([1.0, 2, 3])}]


@pytest.mark.parametrize("what", COSTS, ids=str)
def test_scores_per_cost(what, x64):
    found = case("conv")
    scorer = saliency.unit_magnitude(found.coupling)
    scores = scorer(found.params, found.batch)
    costs = what if isinstance(what, dict) else found.coupling.unit_costs(what)
    expected = {name: scores[name] / costs[name] for name in scores}
    near(saliency.per_cost(scores, found.coupling, what), expected, 10)
    divided = saliency.per_cost(scorer, found.coupling, what)
    assert isinstance(divided, jp.Saliency)
    near(divided(found.params, found.batch), expected, 10)
    plain = saliency.per_cost(lambda params, batch: scores, found.coupling, what)
    near(plain(found.params, None), expected, 10)


@pytest.mark.parametrize("make", [
    lambda c: saliency.unit_magnitude(c, 2, incoming=True),
    lambda c: saliency.random_units(c, jax.random.key(0)),
    lambda c: saliency.unit_taylor(c, loss),
    lambda c: saliency.per_cost(saliency.unit_fisher(c, loss), c, "flops"),
    lambda c: saliency.unit_ablation(c, loss),
    lambda c: saliency.dropout_damage(c, loss, jax.random.key(0), masks=8, rate=0.4),
    lambda c: saliency.on_units(c, saliency.taylor(residual, loss)),
], ids=["magnitude", "random", "taylor", "fisher", "ablation", "dropout", "on units"])  # fmt: skip
def test_unit_scores_prune_units(make):
    found = bare("residual")
    prune = jp.one_shot(make(found.coupling), jp.select.lowest_units(found.coupling))
    pruned = prune(found.params, found.batch, sparsity=0.5)
    assert pruned.info["kept"] == found.coupling.units - round(0.5 * found.coupling.units)
    small = jp.shrink(pruned.params, pruned.mask, found.coupling)
    assert jp.trees.count(small) == pruned.info["parameters"]


def couplings():
    found = bare("chain")
    nothing = jp.couple(lambda w, x: x @ w, jnp.ones((3, 2)), found.batch[0])
    return found, nothing, dataclasses.replace(found.coupling, source=None)


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "no coupling": (
        lambda c, none, loaded: saliency.unit_taylor("model", loss), TypeError, "got str"),
    "no units": (lambda c, none, loaded: saliency.unit_fisher(none, loss), ValueError, "pinned"),
    "no units, reduced": (
        lambda c, none, loaded: saliency.on_units(none, saliency.magnitude()), ValueError, "units"),
    "no model": (
        lambda c, none, loaded: saliency.unit_taylor(loaded, loss), ValueError, "with_model"),
    "reduction": (
        lambda c, none, loaded: saliency.on_units(c.coupling, saliency.magnitude(), "median"),
        ValueError, "Unknown reduction 'median'"),
    "order": (
        lambda c, none, loaded: saliency.unit_magnitude(c.coupling, 3), ValueError, "1 or 2"),
    "missing": (
        lambda c, none, loaded: saliency.batch_norm_scale(c.coupling, missing=np.inf),
        ValueError, "finite"),
    "other tree": (
        lambda c, none, loaded: saliency.unit_magnitude(c.coupling)(c.params["one"]),
        ValueError, "differs from the one that was coupled"),
    "other tree, gates": (
        lambda c, none, loaded: saliency.unit_fisher(c.coupling, loss)(c.params["one"], c.batch),
        ValueError, "differs from the one that was coupled|Couple"),
    "no batch": (
        lambda c, none, loaded: saliency.unit_taylor(c.coupling, loss)(c.params),
        ValueError, "needs data"),
    "mean loss": (
        lambda c, none, loaded: saliency.unit_fisher(
            c.coupling, lambda y, t: jnp.mean(loss(y, t)))(c.params, c.batch),
        ValueError, "one loss per example"),
    "make": (
        lambda c, none, loaded: saliency.on_gates(c.coupling, loss, lambda a, l: None)(
            c.params, c.batch),
        TypeError, "NoneType"),
    "cost": (
        lambda c, none, loaded: saliency.per_cost({}, c.coupling, "watts"), ValueError, "watts"),
    "a cost is missing": (
        lambda c, none, loaded: saliency.per_cost({}, c.coupling, {"one": 1.0}),
        ValueError, "groups are"),
    "shape of a cost": (
        lambda c, none, loaded: saliency.per_cost({}, c.coupling, {"one": [1.0, 2], "two": 1}),
        ValueError, "shape"),
    "cost of 0": (
        lambda c, none, loaded: saliency.per_cost({}, c.coupling, {"one": 0.0, "two": 1}),
        ValueError, "'one' costs 0"),
    "elementwise scores per cost": (
        lambda c, none, loaded: saliency.per_cost(saliency.magnitude(), c.coupling)(c.params),
        ValueError, "on_units"),
    "scores per cost": (
        lambda c, none, loaded: saliency.per_cost(3, c.coupling), TypeError, "function"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told(name):
    call, kind, text = BAD[name]
    with pytest.raises(kind, match=text):
        call(*couplings())
