"""The quadratic on factors against the same written out: solves, values, exchanges, pursuits."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.surgeon.all_sets import all_sets
from jaxprune.surgeon.exchange import exchange_joint, exchange_selection
from jaxprune.surgeon.floors import leaf_numbers, least_kept, protected
from jaxprune.surgeon.inverse_scores import inverse_diagonal, inverse_product
from jaxprune.surgeon.local_model import Site
from jaxprune.surgeon.pursuit import Effort, pursue, state_at
from jaxprune.surgeon.quadratic import value
from jaxprune.surgeon.updating import WAYS, kept_gram, solve, way_for
from tests.near import assert_near
from tests.surgeon import surgeon_doubles as doubles
from tests.transforms.fresh import run_module

lowest, n_of_m = jp.select.lowest, jp.select.n_of_m
F64 = jnp.float64


def blocks_of(site, blocks):
    """Which block an entry of d belongs to."""
    leaf = np.asarray(leaf_numbers(site))
    if blocks is None:
        return np.zeros(site.size, int)
    inside = np.concatenate([np.arange(n) for n in np.bincount(leaf)])
    return leaf if blocks == "leaf" else leaf * 1000 + inside // blocks


slow = lambda *values: pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("blocks", "n"),
    [(5, 5), slow(5, 30), slow("leaf", 5), slow(None, 5), slow(None, 30), slow("leaf", 30),
     slow(5, 3), slow(4, 30), slow(100, 30), slow(100, 3)],
)  # fmt: skip
def test_inverse_in_blocks_is_that_of_the_blocks_written_out(blocks, n, x64):
    found = doubles.setting(doubles.dense(n))
    number = blocks_of(found.site, blocks)
    hessian = found.hessian * (number[:, None] == number[None, :])
    for mask in (None, doubles.random_mask(found.site)):
        if mask is not None:
            both = np.outer(mask, mask) | np.eye(len(mask), dtype=bool)
            hessian = np.where(both, hessian, 0)
            hessian[~mask, ~mask] = float(found.quadratic.damping)
        inverse = np.linalg.inv(hessian)
        some = None if mask is None else jnp.asarray(mask)
        diagonal = inverse_diagonal(found.quadratic, some, blocks)
        assert_near(diagonal, np.diag(inverse), F64, 10**4)
        v = found.gradients[0]
        product = inverse_product(found.quadratic, some, jnp.asarray(v), blocks)
        assert_near(product, inverse @ v, F64, 10**4)


@pytest.mark.parametrize(
    ("blocks", "n"), [("leaf", 5), slow(None, 5), slow(None, 30), slow(5, 30), slow(5, 3)]
)
def test_a_fishers_inverse_diagonal_is_that_of_its_inverse(blocks, n, x64):
    case = doubles.dense(n)
    everything = case._replace(adjust=lambda name, leaf: True)
    found = doubles.setting(everything)
    number = blocks_of(found.site, blocks)
    hessian = found.hessian * (number[:, None] == number[None, :])
    fisher = jp.curvature.factored_fisher(case.apply, case.loss)(case.params, case.batch)
    diagonal = found.site.flat(fisher.inverse_diagonal(0.1, blocks))
    assert_near(diagonal, np.diag(np.linalg.inv(hessian)), F64, 10**4)


@pytest.mark.parametrize("case", ["dense", slow("conv"), *map(slow, list(doubles.CASES)[2:])])
def test_every_way_finds_the_constrained_minimum(case, x64):
    for first_order in (False, True):
        found = doubles.setting(doubles.CASES[case](), first_order=first_order)
        mask = doubles.random_mask(found.site)
        z, rise = doubles.constrained(found.hessian, found.weights, found.slopes, mask)
        for way in WAYS:
            solved = solve(found.quadratic, jnp.asarray(mask), way)
            assert np.max(np.abs(solved.solution - z)) <= 1e-10 * np.max(np.abs(z)), way
            np.testing.assert_allclose(solved.objective, rise, rtol=1e-9)


def test_the_diagonal_is_that_of_the_hessian_and_a_known_gram_changes_nothing(x64):
    found = doubles.setting(doubles.dense())
    assert_near(found.quadratic.diagonal(), np.diag(found.hessian), F64, 64)
    for share in (0.2, 0.8):
        mask = jnp.asarray(doubles.random_mask(found.site, share))
        rows = found.gradients[:, np.asarray(mask)]
        gram = kept_gram(found.quadratic, mask)
        assert_near(gram, rows @ rows.T, F64, 64)
        for damping in (0.1, 3.0):
            damped = replace(found.quadratic, damping=jnp.asarray(damping))
            plain, known = (solve(damped, mask, "dual", g) for g in (None, gram))
            assert_near(known.solution, plain.solution, F64, 10**4)
            states = [state_at(damped, mask, None, g) for g in (None, gram)]
            assert_near(states[1].worth, states[0].worth, F64, 10**4)


def test_the_way_is_chosen_by_sizes_and_damping_0_is_never_divided_by(x64):
    found = doubles.setting(doubles.dense(30), damping=0.0)
    few = np.zeros(found.site.size, bool)
    few[:4] = True
    assert way_for(found.quadratic, 4) == "primal"
    assert way_for(found.quadratic, 31) == "matrix_free"
    z, _ = doubles.constrained(found.hessian + 1e-12 * np.eye(len(few)), found.weights,
                               found.slopes, few)  # fmt: skip
    np.testing.assert_allclose(solve(found.quadratic, jnp.asarray(few)).solution, z, atol=1e-7)
    with pytest.raises(ValueError, match="damping"):
        solve(found.quadratic, jnp.asarray(few), "dual")
    with pytest.raises(ValueError, match="dual, primal, matrix_free"):
        solve(found.quadratic, jnp.asarray(few), "best")


@pytest.mark.parametrize("case", ["dense", slow("conv")])
def test_worth_is_what_the_objective_changes_by(case, x64):
    found = doubles.setting(doubles.CASES[case]())
    mask = doubles.random_mask(found.site)
    state = state_at(found.quadratic, jnp.asarray(mask), None)
    now = doubles.joint_rise(found.hessian, found.weights, mask)
    for i in range(0, found.site.size, 3):
        other = mask.copy()
        other[i] = not mask[i]
        after = doubles.joint_rise(found.hessian, found.weights, other)
        np.testing.assert_allclose(state.worth[i], abs(after - now), rtol=1e-8, atol=1e-12)


def test_worth_in_float32_where_fewer_entries_than_examples_are_kept():
    found = doubles.setting(doubles.line(), damping=1e-4)
    gradients = found.gradients.astype(np.float64)
    hessian = gradients.T @ gradients / len(gradients) + 1e-4 * np.eye(60)
    mask = np.arange(60) < 20
    z, rise = doubles.constrained(hessian, found.weights, np.zeros(60), mask)
    wanted = z[:20] ** 2 / (2 * np.diag(np.linalg.inv(hessian[:20, :20])))
    state = state_at(found.quadratic, jnp.asarray(mask), None)
    np.testing.assert_allclose(state.worth[:20], wanted, rtol=1e-2)
    np.testing.assert_allclose(state.objective, rise, rtol=1e-4)
    slopes = hessian @ (z - found.weights)
    np.testing.assert_allclose(-1e-4 * state.dual.proximal[20:], slopes[20:], rtol=0.1, atol=1e-3)


SELECTS = {
    "global": lambda: lowest(),
    "layer": lambda: lowest("layer"),
    "output": lambda: lowest("output"),
    "2:4": lambda: n_of_m(2, 4),
}


@pytest.mark.parametrize("select", ["global", "2:4", slow("layer"), slow("output")])
@pytest.mark.parametrize("kind", ["joint", "selection"])
def test_exchanges_gain_what_they_say_inside_their_parts(kind, select, x64):
    found = doubles.setting(doubles.dense(), select=SELECTS[select]())
    site, w = found.site, found.weights
    mask = site.choose(jnp.asarray(np.random.default_rng(0).random(site.size)), 0.5)
    parts, tolerance = site.parts(), jnp.asarray(1e-12)
    if kind == "joint":
        state = state_at(found.quadratic, mask, None)
        shares = state.shares
        after = exchange_joint(
            found.quadratic, state.dual, shares, mask, parts, tolerance, block=8
        )  # fmt: skip
        rise = doubles.joint_rise
    else:
        diagonal = jnp.asarray(np.diag(found.hessian))
        after = exchange_selection(found.quadratic, mask, parts, diagonal, tolerance, block=8)
        rise = doubles.selection_rise
    before, now = (rise(found.hessian, w, np.asarray(m)) for m in (mask, after.mask))
    np.testing.assert_allclose(before - now, after.gain, rtol=1e-8, atol=1e-12)
    assert int(after.swaps) > 0
    assert now < before
    counts = lambda m: np.bincount(np.asarray(parts)[np.asarray(m & site.candidates)],
                                   minlength=20)  # fmt: skip
    np.testing.assert_array_equal(counts(mask), counts(after.mask))
    np.testing.assert_array_equal(mask[~site.candidates], after.mask[~site.candidates])


def test_a_leaf_may_not_fall_below_its_floor(x64):
    found = doubles.setting(doubles.dense(), select=lowest(floor=3))
    leaf = leaf_numbers(found.site)
    least = least_kept(found.site, 0.75)
    np.testing.assert_array_equal(least, [0, 3, 3])  # bias, kernels
    parts = protected(found.site.parts(), found.site.old, found.quadratic.weights, leaf, least)
    for number in (1, 2):
        here = np.asarray(leaf == number)
        best = np.sort(found.weights[here])[-3:]
        safe = here & (np.asarray(parts) == -1)
        np.testing.assert_array_equal(np.sort(found.weights[safe]), best)
    assert not np.any(least_kept(doubles.setting(doubles.dense(), select=lowest("layer")).site,
                                 0.75))  # fmt: skip


def test_all_sets_are_those_of_one_part_that_keep_the_floors(x64):
    case = doubles.dense(5, 0, sizes=(2, 2, 2))
    site_of = lambda case, select: Site(case.params, select, case.adjust, None)
    for floor, many in ((0, 70), (2, 36)):  # 4 of 8; 2 of 4 twice
        site = site_of(case, lowest(floor=floor))
        mask = site.choose(jnp.ones(site.size), 0.5)
        sets = all_sets(site, 0.5, mask)
        np.testing.assert_array_equal(sets.where, np.flatnonzero(site.candidates))
        assert sets.rows.shape == np.unique(sets.rows, axis=0).shape == (many, 8)
        assert np.all(sets.rows.sum(1) == 4)
    assert all_sets(site_of(case, lowest("layer")), 0.5, mask) is None
    many = site_of(doubles.dense(), lowest())
    assert all_sets(many, 0.5, many.choose(jnp.ones(many.size), 0.5)) is None


@pytest.mark.parametrize("seed", [0, slow(1), slow(2)])
def test_a_pursuit_of_few_weights_is_the_best_of_all_sets(seed, x64):
    found = doubles.setting(doubles.dense(5, seed, sizes=(2, 2, 2)), select=lowest(floor=0))
    free = np.flatnonzero(found.site.candidates)
    for kept in (2, 5):
        sparsity = 1 - kept / len(free)
        pursued = pursue(
            found.quadratic, found.site, sparsity, effort=Effort(), key=jax.random.key(0)
        )
        best = doubles.best_set(found.hessian, found.weights, free, kept, doubles.joint_rise)
        np.testing.assert_allclose(pursued.solved.objective, best, rtol=1e-9)
        assert int(np.sum(pursued.mask[free])) == kept
        plain = np.asarray(found.site.choose(jnp.abs(found.quadratic.weights), sparsity))
        rise = doubles.joint_rise(found.hessian, found.weights, plain)
        np.testing.assert_allclose(pursued.info["objective_magnitude"], rise, rtol=1e-9)


@pytest.mark.parametrize("select", ["2:4", slow("global"), slow("layer")])
def test_a_pursuit_never_ends_above_where_it_was(select, x64):
    found = doubles.setting(doubles.dense(), select=SELECTS[select]())
    pursued = pursue(found.quadratic, found.site, 0.5, effort=Effort(), key=jax.random.key(0))
    info = pursued.info
    assert info["objective"] <= info["objective_rounds"] * (1 + 1e-12)
    assert info["objective_rounds"] <= info["objective_magnitude"]
    rise = doubles.joint_rise(found.hessian, found.weights, np.asarray(pursued.mask))
    np.testing.assert_allclose(info["objective"], rise, rtol=1e-9)


@pytest.mark.parametrize("sizes", [(4, 4, 2), slow((2, 3, 2))])
def test_a_pursuit_keeps_floors(sizes, x64):
    case = doubles.dense(sizes=sizes)
    kernel = case.params["second"]["kernel"] * 1e-2
    case = case._replace(params={**case.params, "second": {"kernel": kernel}})
    found = doubles.setting(case, select=lowest(floor=3))
    pursued = pursue(found.quadratic, found.site, 0.5, effort=Effort(), key=jax.random.key(0))
    mask = found.site.mask(pursued.mask)
    assert int(mask["second"]["kernel"].sum()) == 3


def test_on_a_quadratic_loss_the_predicted_rise_is_the_real_one(x64):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(9, 6)), jnp.asarray(rng.normal(size=(6, 1)))
    apply = lambda w, x: x @ w[:, 0]
    batch = (jnp.asarray(x), jnp.asarray(x @ np.asarray(w)[:, 0]))  # at the minimum
    fisher = jp.curvature.sketched_gauss_newton(apply, doubles.squared_error)
    case = doubles.Case(w, apply, doubles.squared_error, batch)
    found = doubles.setting(case, damping=0.0, fisher=fisher)
    for seed in range(3):
        z = jnp.asarray(np.random.default_rng(seed).normal(size=6))
        predicted = value(found.quadratic, z)
        measured = found.model.loss_of(found.site.weights(z), batch)
        np.testing.assert_allclose(predicted, measured, rtol=1e-12)


@pytest.mark.slow
def test_four_devices_find_what_one_finds():
    found = json.loads(run_module("tests.surgeon.surgeons_on_four_devices", devices=4))
    assert found["devices"] == 4
    assert max(found["results"].values()) <= 1e-6, found["results"]
