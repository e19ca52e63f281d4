"""Scores read off gates, against sums over weights, single examples and dense Hessians."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.coupling import models
from tests.near import assert_near, no_compilation
from tests.saliency.unit_cases import (
    ZOO,
    N,
    bare,
    case,
    loss,
    near,
    read_off_weights,
    residual,
    singles,
    vector,
    weight_gradient,
)
from tests.structure.net_zoo import NETS

saliency, curvature = jp.saliency, jp.curvature
WRITTEN = ("chain", "residual", "conv")


@functools.cache
def made(kind, name):
    """One saliency of each kind and network, so that what it compiles is compiled once."""
    coupling = case(name).coupling
    if kind == "taylor":
        return saliency.unit_taylor(coupling, loss)
    if kind == "fisher":
        return saliency.unit_fisher(coupling, loss)
    if kind == "ablation":
        return saliency.unit_ablation(coupling, loss)
    if kind == "elementwise fisher":
        squares = curvature.fisher_diagonal(case(name).apply, loss)
        return saliency.on_units(coupling, saliency.fisher(squares))
    if kind == "fisher on gates":
        make = lambda apply, loss: saliency.fisher(curvature.fisher_diagonal(apply, loss))
    else:
        make = lambda apply, loss: saliency.optimal_brain_damage(
            curvature.exact_diagonal(apply, loss)
        )
    return saliency.on_gates(coupling, loss, make)


@pytest.mark.parametrize("name", WRITTEN)
def test_taylor_is_the_sum_over_the_weights_that_read_the_unit(name, x64):
    found = case(name)
    scores = made("taylor", name)(found.params, found.batch)
    slopes = read_off_weights(name, found.batch)
    near(scores, {group: np.abs(s) for group, s in slopes.items()})


@pytest.mark.parametrize("name", WRITTEN)
def test_fisher_is_half_the_mean_square_of_single_examples(name, x64):
    found = case(name)
    rows = [read_off_weights(name, one) for one in singles(found.batch)]
    expected = {group: np.mean([row[group] ** 2 for row in rows], 0) / 2 for group in rows[0]}
    near(made("fisher", name)(found.params, found.batch), expected)


@pytest.mark.every(3)
@pytest.mark.parametrize("name", ["heads", *ZOO])
def test_fisher_is_that_of_gates_example_by_example(name, x64):
    found = case(name)
    apply = jp.coupling.gated(found.coupling, found.params)
    unpacked = lambda x: x if isinstance(x, tuple) else (x,)
    one_loss = lambda gates, one: loss(apply(gates, *unpacked(one[0])), one[1])[0]
    gradient = jax.jit(jax.grad(one_loss))
    gates = jp.coupling.ones(found.coupling, jnp.float64)
    rows = [gradient(gates, one) for one in singles(found.batch)]
    expected = jax.tree.map(lambda *g: np.mean(np.square(g), 0) / 2, *rows)
    near(made("fisher", name)(found.params, found.batch), expected)


def test_places_that_share_a_unit_add_before_they_are_squared(x64):
    """The stream of the residual network is read three times."""
    found = case("residual")
    coupling, parts = found.coupling, []
    for leaf in ("a/kernel", "c/kernel", "out/kernel"):
        rows = []
        for one in singles(found.batch):
            grads = weight_gradient("residual")(found.params, one)
            layer = leaf.split("/")[0]
            rows.append((grads[layer]["kernel"] * found.params[layer]["kernel"]).sum(1))
        parts.append(np.array(rows))
    [stream] = [name for name, g in coupling.groups.items() if len(g.members) == 6]
    scores = made("fisher", "residual")(found.params, found.batch)[stream]
    assert_near(scores, np.mean(sum(parts) ** 2, 0) / 2, jnp.float64, 1e4)
    apart = np.mean(sum(p**2 for p in parts), 0) / 2
    assert np.max(np.abs(scores - apart)) > 0.05 * np.max(apart)


@pytest.mark.every(3)
@pytest.mark.parametrize("name", ["residual", "conv", *ZOO[:2]])
def test_fisher_on_gates_is_unit_fisher(name, x64):
    found = case(name)
    scores = made("fisher on gates", name)(found.params, found.batch)
    near(scores, made("fisher", name)(found.params, found.batch))


@pytest.mark.parametrize("name", ["chain", "residual", "heads"])
def test_obd_on_gates_is_half_the_diagonal_of_the_hessian(name, x64):
    found = case(name)
    apply = jp.coupling.gated(found.coupling, found.params)
    sizes = [g.units for g in found.coupling.groups.values()]

    def mean_loss(flat):
        cut = jnp.split(flat, np.cumsum(sizes)[:-1])
        gates = dict(zip(found.coupling.groups, cut, strict=True))
        return jnp.mean(loss(apply(gates, found.batch[0]), found.batch[1]))

    diagonal = jnp.diagonal(jax.jit(jax.hessian(mean_loss))(jnp.ones(sum(sizes)))) / 2
    expected = dict(
        zip(found.coupling.groups, np.split(diagonal, np.cumsum(sizes)[:-1]), strict=True)
    )
    near(made("obd", name)(found.params, found.batch), expected, 1e6)


def test_examples_that_depend_on_each_other_are_differentiated_one_by_one(x64):
    def apply(w, x):
        hidden = x @ w[0]
        return jax.nn.relu(hidden - hidden.mean(0)) @ w[1]

    rng = np.random.default_rng(0)
    w, batch = [jnp.asarray(rng.normal(size=s)) for s in ((3, 6), (6, 2))], bare("chain").batch
    coupling = jp.couple(apply, w, batch[0], inexact="allow")
    gated = jp.coupling.gated(coupling, w)
    rows = jax.jacrev(lambda gates: loss(gated(gates, batch[0]), batch[1]))(
        jp.coupling.ones(coupling, jnp.float64)
    )
    expected = jax.tree.map(lambda g: np.mean(np.square(g), 0) / 2, rows)
    near(saliency.unit_fisher(coupling, loss)(w, batch), expected)


@pytest.mark.every(3)
@pytest.mark.parametrize("kind", ["taylor", "fisher", "ablation", "obd", "elementwise fisher"])
def test_sums_over_any_batches_score_as_one_big_batch(kind, x64):
    found, scorer = case("residual"), made(kind, "residual")
    whole = scorer(found.params, found.batch)
    pieces = [jax.tree.map(lambda x, s=s: x[s], found.batch) for s in (slice(0, 3), slice(3, 5))]
    several = saliency.over_batches(scorer)
    stats = several.measure(found.params, pieces)
    assert int(stats.count) == N
    near(several.score(found.params, stats), whole, 1e5)


@pytest.mark.parametrize("kind", ["taylor", "fisher", "ablation", "fisher on gates"])
def test_inside_jit_the_scores_are_the_same_and_other_weights_compile_nothing(kind, x64):
    found, scorer = case("residual"), made(kind, "residual")
    outside = scorer(found.params, found.batch)
    near(jax.jit(scorer)(found.params, found.batch), outside)
    moved = jax.tree.map(lambda w: w * 1.5, found.params)
    with no_compilation():
        other = scorer(moved, found.batch)
    again = jp.couple(residual, moved, found.batch[0])
    if kind == "fisher":
        near(other, saliency.unit_fisher(again, loss)(moved, found.batch))
    assert np.max(np.abs(vector(other) - vector(outside))) > 1e-3


def test_a_model_is_read_once_a_shape_whatever_the_weights(monkeypatch):
    found, shapes = bare("chain"), []
    read = models.read
    monkeypatch.setattr(models, "read", lambda *a, **k: shapes.append(a[2]) or read(*a, **k))
    scorer = saliency.unit_taylor(found.coupling, loss)
    for factor in (1.0, 2.0, 3.0):
        scorer(jax.tree.map(lambda w, f=factor: w * f, found.params), found.batch)
    assert len(shapes) == 1
    scorer(found.params, jax.tree.map(lambda x: x[:3], found.batch))
    assert len(shapes) == 2


def test_scores_are_float32_but_for_float64_models(x64):
    found = case("residual")
    narrow = jax.tree.map(lambda x: x.astype(jnp.float32), found.params)
    batch = jax.tree.map(lambda x: x.astype(jnp.float32), found.batch)
    coupling = jp.couple(residual, narrow, batch[0])
    for kind, make in {"taylor": saliency.unit_taylor, "fisher": saliency.unit_fisher}.items():
        single = jax.eval_shape(make(coupling, loss), narrow, batch)
        double = jax.eval_shape(made(kind, "residual"), found.params, found.batch)
        assert {x.dtype for x in single.values()} == {jnp.dtype("float32")}
        assert {x.dtype for x in double.values()} == {jnp.dtype("float64")}


def test_several_inputs_are_a_tuple():
    net = NETS["siamese_cosine"]()
    scorer = saliency.unit_taylor(jp.couple(net.apply, net.variables, *net.inputs), loss)
    targets = jnp.zeros(net.inputs[0].shape[0])
    assert np.isfinite(vector(scorer(net.variables, (net.inputs, targets)))).all()
    with pytest.raises(ValueError, match="coupled with 2 inputs"):
        scorer(net.variables, (net.inputs[0], targets))


@pytest.mark.every(5)
@pytest.mark.parametrize("name", ["heads", *ZOO])
def test_gates_of_examples_have_every_examples_slope(name, x64):
    found = case(name)
    apply = models.gated_apply(found.coupling)
    unpacked = found.batch[0] if isinstance(found.batch[0], tuple) else (found.batch[0],)
    examples = len(jax.tree.leaves(unpacked)[0])
    gates = jp.coupling.ones(found.coupling, jnp.float64, examples=examples)
    total = lambda gates: jnp.sum(loss(apply(found.params, gates, *unpacked), found.batch[1]))
    slopes = jax.grad(total)(gates)
    scores = {group: np.mean(np.square(rows), 0) / 2 for group, rows in slopes.items()}
    near(scores, made("fisher", name)(found.params, found.batch))
