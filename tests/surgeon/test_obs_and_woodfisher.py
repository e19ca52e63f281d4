"""Optimal Brain Surgeon and WoodFisher against inverses written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.surgeon import one_by_one
from jaxprune.surgeon.inverse_scores import woodfisher, woodfisher_scores
from jaxprune.surgeon.one_by_one import one_at_a_time, optimal_brain_surgeon
from tests.near import assert_near, assert_trees_equal
from tests.surgeon import surgeon_doubles as doubles

lowest, n_of_m, blocks_of = jp.select.lowest, jp.select.n_of_m, jp.select.blocks
F64 = jnp.float64


slow = lambda *values: pytest.param(*values, marks=pytest.mark.slow)


def prune(make, case, sparsity=0.5, mask=None, damping=0.1, **options):
    pruner = make(doubles.model_of(case, damping), **options)
    return pruner(case.params, case.batch, sparsity=sparsity, mask=mask)


@pytest.mark.parametrize("blocks", ["leaf", slow(None)])
def test_scores_are_those_of_the_inverse(blocks, x64):
    case = doubles.dense()._replace(adjust=lambda name, leaf: False)
    found = doubles.setting(case)
    hessian = found.hessian.copy()
    if blocks == "leaf":
        first = case.params["first"]["kernel"].size
        hessian[:first, first:] = hessian[first:, :first] = 0
    wanted = found.weights**2 / (2 * np.diag(np.linalg.inv(hessian)))
    scores = woodfisher_scores(found.model, blocks=blocks)(case.params, case.batch)
    assert_near(found.site.flat(scores), wanted, F64, 10**4)
    assert np.isnan(scores["first"]["bias"]).all()
    pruned = jp.one_shot(woodfisher_scores(found.model, blocks=blocks), lowest())(
        case.params, case.batch, sparsity=0.5
    )
    alone = prune(woodfisher, case, blocks=blocks, update=None)
    assert_trees_equal(pruned.params, alone.params)


@pytest.mark.slow
def test_scores_may_be_taken_inside_jit_from_some_of_the_examples(x64):
    case = doubles.dense(9)
    scores = woodfisher_scores(doubles.model_of(case, examples=5, key=jax.random.key(3)))
    outside, inside = scores(case.params, case.batch), jax.jit(scores)(case.params, case.batch)
    assert_near(inside["first"]["kernel"], outside["first"]["kernel"], F64, 10**4)


def test_the_independent_update_is_the_sum_of_single_ones(x64):
    case = doubles.dense()
    found = doubles.setting(case)
    inverse, w = np.linalg.inv(found.hessian), found.weights
    for sparsity in (0.25, 0.75):
        pruned = prune(woodfisher, case, sparsity)
        mask = np.asarray(found.site.flat(pruned.mask), bool)
        v = np.where(mask, 0, w / np.diag(inverse))
        z = np.where(mask, w - inverse @ v, 0)
        assert_near(found.site.flat(pruned.params), z, F64, 10**4)
        scores = np.where(found.site.candidates, w**2 / np.diag(inverse), np.inf)
        assert np.max(scores[~mask]) < np.min(scores[mask & np.asarray(found.site.candidates)])
        rise = doubles.rise(found.hessian, w, found.slopes, z)
        np.testing.assert_allclose(pruned.info["objective"], rise, rtol=1e-9)


def test_the_joint_update_is_never_above_the_independent_one(x64):
    case = doubles.dense()
    found = doubles.setting(case)
    one, other = (prune(woodfisher, case, update=u) for u in ("independent", "joint"))
    assert_trees_equal(one.mask, other.mask)
    mask = np.asarray(found.site.flat(other.mask), bool)
    z, _ = doubles.constrained(found.hessian, found.weights, found.slopes, mask)
    assert_near(found.site.flat(other.params), z, F64, 10**4)
    assert other.info["objective"] < one.info["objective"]


@pytest.mark.parametrize("n", [5, slow(40)])
def test_one_at_a_time_is_the_paper_with_the_inverse_taken_anew(n, x64):
    case = doubles.dense(n)
    found = doubles.setting(case, select=lowest(floor=0))
    free = np.asarray(found.site.candidates)
    _, order = one_at_a_time(found.quadratic, found.site, 0.75)
    wanted, z = doubles.hessian_one_by_one(
        found.hessian, found.weights, 18, lambda q, gone: free[q]
    )
    assert list(order) == wanted
    pruned = prune(lambda m: optimal_brain_surgeon(m, lowest(floor=0), rounds=None), case, 0.75)
    assert_near(found.site.flat(pruned.params), z, F64, 10**5)


def test_one_at_a_time_in_float32_below_as_many_weights_as_examples():
    case = doubles.line()
    found = doubles.setting(case, damping=1e-4, select=lowest(floor=0))
    gradients = found.gradients.astype(np.float64)
    hessian = gradients.T @ gradients / len(gradients) + 1e-4 * np.eye(60)
    gone, _ = doubles.hessian_one_by_one(hessian, found.weights.astype(np.float64), 36)
    mask, _ = one_at_a_time(found.quadratic, found.site, 0.6)
    of = lambda mask: doubles.joint_rise(hessian, found.weights, mask)
    assert of(np.asarray(mask)) < 1.1 * of(~np.isin(np.arange(60), gone))


@pytest.mark.slow
def test_an_inverse_that_is_refreshed_goes_on_in_the_same_order(monkeypatch, x64):
    found = doubles.setting(doubles.dense(), select=lowest(floor=0))
    _, once = one_at_a_time(found.quadratic, found.site, 0.75)
    monkeypatch.setattr(one_by_one, "REFRESH", 4)
    one_by_one._remove.clear_cache()
    _, often = one_at_a_time(found.quadratic, found.site, 0.75)
    one_by_one._remove.clear_cache()
    assert list(once) == list(often)


@pytest.mark.parametrize("scope", ["2:4", slow("layer"), slow("output")])
def test_one_at_a_time_within_each_part_and_its_budget(scope, x64):
    select = n_of_m(2, 4) if scope == "2:4" else lowest(scope)
    case = doubles.dense()
    found = doubles.setting(case, select=select)
    parts = np.asarray(found.site.parts())
    sizes = np.bincount(parts[parts >= 0])
    allowed = lambda q, gone: (
        parts[q] >= 0 and sum(parts[g] == parts[q] for g in gone) < sizes[parts[q]] / 2
    )
    mask, order = one_at_a_time(found.quadratic, found.site, 0.5)
    wanted, _ = doubles.hessian_one_by_one(found.hessian, found.weights, 12, allowed)
    assert list(order) == wanted
    np.testing.assert_array_equal(np.bincount(parts[~np.asarray(mask)]), sizes / 2)


def test_a_pattern_that_does_not_fit_one_at_a_time_is_named(x64):
    case = doubles.dense()
    make = lambda m: optimal_brain_surgeon(m, n_of_m(1, 3), rounds=None)
    with pytest.raises(ValueError, match="leaf 'first/kernel' has 4 entries along axis 0"):
        prune(make, case, None)


def test_the_last_round_of_a_pattern_is_said_to_be_the_last(x64):
    told = []
    make = lambda m: optimal_brain_surgeon(
        m, n_of_m(2, 4), rounds=3, progress=lambda *said: told.append(said)
    )
    prune(make, doubles.dense())
    assert told == [("round", 1, 1)]


def test_weights_that_are_not_finite_are_named(x64):
    case = doubles.dense()
    bad = case._replace(params=jax.tree.map(lambda w: w.at[0].set(jnp.inf), case.params))
    with pytest.raises(ValueError, match="Pass a larger `damping`, or check the parameters"):
        prune(optimal_brain_surgeon, bad)


def test_a_floor_holds_one_at_a_time(x64):
    case = doubles.dense()
    tiny = jax.tree.map(lambda x: x, case.params)
    tiny["second"] = {"kernel": case.params["second"]["kernel"] * 1e-3}
    case = case._replace(params=tiny)
    pruned = prune(
        lambda m: optimal_brain_surgeon(m, lowest(floor=3), rounds=None), case, 0.5, damping=1.0
    )
    assert pruned.info["kept"] == 12
    assert int(pruned.mask["second"]["kernel"].sum()) == 3


@pytest.mark.slow
def test_rounds_are_as_good_as_steps_in_between(x64):
    case = doubles.dense()
    objective = {
        rounds: prune(lambda m, r=rounds: optimal_brain_surgeon(m, rounds=r), case, 0.75)
        for rounds in (1, 4, 18, None)
    }
    found = doubles.setting(case)
    for pruned in objective.values():
        assert pruned.info["kept"] == 6
        mask = np.asarray(found.site.flat(pruned.mask), bool)
        z, rise = doubles.constrained(found.hessian, found.weights, found.slopes, mask)
        np.testing.assert_allclose(pruned.info["objective"], rise, rtol=1e-8)
        assert_near(found.site.flat(pruned.params), z, F64, 10**5)
    assert objective[None].info["objective"] <= objective[1].info["objective"]


@pytest.mark.slow
def test_leaves_that_nobody_moves_keep_their_bits(x64):
    case = doubles.dense()._replace(adjust=lambda name, leaf: False)
    for make in (woodfisher, optimal_brain_surgeon):
        pruned = prune(make, case)
        assert_trees_equal(pruned.params["first"]["bias"], case.params["first"]["bias"])
        moved = prune(make, doubles.dense())
        assert np.any(moved.params["first"]["bias"] != case.params["first"]["bias"])
        assert moved.mask["first"]["bias"].all()


@pytest.mark.parametrize("make", [slow(woodfisher), slow(optimal_brain_surgeon),
                                  lambda m: optimal_brain_surgeon(m, rounds=None)])  # fmt: skip
def test_what_is_pruned_stays_pruned_and_takes_no_part(make, x64):
    case = doubles.dense()
    first = jp.one_shot(jp.saliency.magnitude(), lowest())(case.params, sparsity=0.25)
    pruned = prune(make, case, 0.75, mask=first.mask)
    assert pruned.info["kept"] == 6
    kept_before = jax.tree.leaves(jax.tree.map(lambda n, o: n & ~o, pruned.mask, first.mask))
    assert not any(np.any(x) for x in kept_before)
    # The same from the masked problem written out.
    found = doubles.setting(case, mask=first.mask)
    old = np.asarray(found.site.old)
    hessian = np.where(np.outer(old, old), found.hessian, 0.1 * np.eye(len(old)))
    mask = np.asarray(found.site.flat(pruned.mask), bool)
    if make is woodfisher:
        inverse = np.linalg.inv(hessian)
        z = found.weights - inverse @ np.where(mask, 0, found.weights / np.diag(inverse))
        z = np.where(mask, z, 0)
    else:
        z, _ = doubles.constrained(hessian, found.weights, found.slopes, mask)
    assert_near(found.site.flat(pruned.params), z, F64, 10**5)


def test_an_iterative_pruner_passes_its_mask_along(x64):
    case = doubles.dense()
    pruner = optimal_brain_surgeon(doubles.model_of(case), rounds=None)
    slow = jp.iterative(pruner, jp.schedule.cubic(0.75, 2), rounds=2)
    pruned = slow(case.params, case.batch, sparsity=0.75)
    assert [r["kept"] for r in pruned.info["rounds"]][-1] == 6


def test_damping_0_units_blocks_and_bad_options_are_refused_by_name(x64):
    case = doubles.dense()
    flat, good = doubles.model_of(case, 0.0), doubles.model_of(case)
    for make in (woodfisher, woodfisher_scores, optimal_brain_surgeon):
        with pytest.raises(ValueError, match="damping"):
            make(flat)
    with pytest.raises(ValueError, match="rounds=1"):
        optimal_brain_surgeon(good, blocks_of((2, 2)), rounds=None)
    with pytest.raises(ValueError, match="`rounds`"):
        optimal_brain_surgeon(good, rounds=0)
    with pytest.raises(ValueError, match="blocks="):
        woodfisher(good, blocks="leaf", update="joint")
    with pytest.raises(ValueError, match="`update`"):
        woodfisher(good, update="both")
    with pytest.raises(ValueError, match="first_order"):
        woodfisher(doubles.model_of(case, first_order=True))
    pruned = optimal_brain_surgeon(good, blocks_of((2, 2)))(case.params, case.batch, sparsity=0.5)
    assert pruned.info["kept"] == 12


def test_without_gradients_the_curvature_is_the_damping_and_magnitude_decides(x64):
    case = doubles.dense()
    still = case._replace(loss=no_loss)
    wanted = jp.one_shot(jp.saliency.magnitude(), lowest())(case.params, sparsity=0.5)
    for make in (woodfisher, optimal_brain_surgeon,
                 lambda m: optimal_brain_surgeon(m, rounds=None)):  # fmt: skip
        pruned = prune(make, still)
        assert_trees_equal(pruned.mask, wanted.mask)
        assert_trees_equal(pruned.params, wanted.params)


def no_loss(outputs, targets):
    return 0.0 * outputs.sum(axis=1)


@pytest.mark.slow
def test_examples_given_twice_change_nothing(x64):
    case = doubles.dense()
    twice = case._replace(batch=jax.tree.map(lambda x: jnp.concatenate([x, x]), case.batch))
    make = lambda m: optimal_brain_surgeon(m, rounds=None)
    one, two = prune(make, case), prune(make, twice)
    assert_trees_equal(one.mask, two.mask)
    assert_near(two.params["first"]["kernel"], one.params["first"]["kernel"], F64, 10**5)


@pytest.mark.slow
def test_a_single_leaf_down_to_its_last_weight(x64):
    case = doubles.dense()
    select = lowest(prunable=lambda name, leaf: name == "second/kernel")
    for rounds in (1, None):
        make = lambda m, r=rounds: optimal_brain_surgeon(m, select, rounds=r)
        assert prune(make, case, 7 / 8).info["kept"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nnx", "list", "batch_norm", "embedding", "conv"])
def test_other_trees_and_layers(name, x64):
    case = doubles.CASES[name]()
    found = doubles.setting(case)
    pruned = prune(lambda m: optimal_brain_surgeon(m, rounds=None), case)
    mask = np.asarray(found.site.flat(pruned.mask), bool)
    z, _ = doubles.constrained(found.hessian, found.weights, found.slopes, mask)
    assert_near(found.site.flat(pruned.params), z, F64, 10**5)
    assert jax.tree.structure(pruned.params) == jax.tree.structure(case.params)


@pytest.mark.slow
def test_a_saturated_classifier_in_float32_stays_finite():
    case = doubles.dense(dtype=jnp.float32, n=20)
    sure = jax.tree.map(lambda x: 30 * x, case.params)
    labels = jnp.argmax(case.apply(sure, case.batch[0]), axis=1)
    case = case._replace(params=sure, batch=(case.batch[0], labels))
    for make in (woodfisher, optimal_brain_surgeon,
                 lambda m: optimal_brain_surgeon(m, rounds=None)):  # fmt: skip
        for damping in (1e-8, 1e-3):
            pruned = prune(make, case, damping=damping)
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(pruned.params))
