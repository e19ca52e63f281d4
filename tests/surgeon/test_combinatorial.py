"""The Combinatorial Brain Surgeon: draws, exchanges, update, and what every pruner has to keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.surgeon import joint_surgeon, local_search
from jaxprune.surgeon.combinatorial import combinatorial_brain_surgeon as cbs
from jaxprune.surgeon.inverse_scores import woodfisher
from jaxprune.surgeon.local_search import search_blocks, search_lists, selection_objective
from jaxprune.surgeon.one_by_one import optimal_brain_surgeon
from jaxprune.surgeon.partitions import best_draw, bucket_quantiles, buckets_for
from tests.near import assert_near, assert_trees_equal
from tests.surgeon import surgeon_doubles as doubles

lowest, n_of_m = jp.select.lowest, jp.select.n_of_m
F64 = jnp.float64
KEY = jax.random.key(5)


slow = lambda *values: pytest.param(*values, marks=pytest.mark.slow)


def prune(case, sparsity=0.5, select=None, mask=None, damping=0.1, **options):
    pruner = cbs(doubles.model_of(case, damping), select, **{"draws": 3, **options})
    return pruner(case.params, case.batch, sparsity=sparsity, mask=mask)


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def magnitude(case, sparsity=0.5, select=None):
    return jp.one_shot(jp.saliency.magnitude(), select or lowest())(case.params, sparsity=sparsity)


@pytest.mark.parametrize("buckets", [3, slow(1), slow(10)])
def test_each_bucket_is_pruned_by_magnitude_and_loses_the_same_share(buckets, x64):
    size = jnp.asarray(np.random.default_rng(0).random(31))
    there = jnp.arange(31) < 30
    found = np.asarray(bucket_quantiles(size, there, KEY, buckets=buckets))
    assert found[30] == 1
    assert np.all(found[:30] < 1)
    if buckets == 1:
        np.testing.assert_array_equal(np.argsort(found[:30]), np.argsort(size[:30]))
    # Entries of a bucket share the part of the quantile between ranks.
    shift = np.round(found[:30] * (30 // buckets) % 1, 9)
    numbers = [np.flatnonzero(shift == s) for s in np.unique(shift)]
    assert sorted(map(len, numbers)) == [30 // buckets] * buckets
    for own in numbers:
        np.testing.assert_array_equal(np.argsort(found[own]), np.argsort(np.asarray(size)[own]))
    pruned = np.argsort(found)[:15]
    lost = [np.isin(own, pruned).sum() for own in numbers]
    assert max(lost) - min(lost) <= 1


def test_buckets_by_default_are_those_of_the_paper():
    assert [buckets_for(n) for n in (1, 3, 4, 99, 31360, 10**7)] == [1, 1, 2, 9, 177, 1000]


@pytest.mark.parametrize(
    "select", [n_of_m(2, 4), slow(lowest()), slow(lowest("layer")), slow(lowest(floor=3))]
)
def test_draw_0_is_magnitude_and_the_best_draw_has_the_lowest_true_loss(select, x64):
    case = doubles.dense()
    found = doubles.setting(case, select=select)
    options = {"buckets": None, "key": KEY}
    one = best_draw(found.model, found.site, 0.5, case.batch, draws=1, **options)
    wanted = magnitude(case, 0.5, select)
    assert_trees_equal(found.site.mask(one.mask), wanted.mask)
    assert one.losses == []
    many = best_draw(found.model, found.site, 0.5, case.batch, draws=6, **options)
    loss = found.model.loss_of(wanted.params, case.batch)
    assert many.losses[0] == loss
    assert len(set(many.losses)) > 1
    masked = found.site.weights(jnp.where(many.mask, found.quadratic.weights, 0))
    assert found.model.loss_of(masked, case.batch) == min(many.losses) == many.losses[many.draw]


def walk_by_hand(hessian, w, mask, reach, tries, epsilon):
    """One step of the paper's search: lists sorted once, the objective taken anew for each pair."""
    objective = lambda m: 2 * doubles.selection_rise(hessian, w, m)
    flip = lambda m, *which: np.where(np.isin(np.arange(len(w)), which), ~m, m)
    now = objective(mask)
    signed = np.array([objective(flip(mask, q)) - now for q in range(len(w))])
    pruned = sorted(np.flatnonzero(~mask), key=lambda q: signed[q])
    kept = sorted(np.flatnonzero(mask), key=lambda q: signed[q])
    failed = swaps = 0
    for place, i in enumerate(pruned):
        if failed >= tries:
            break
        failed += 1
        for at in range(max(place - reach, 0), min(place + reach + 1, len(kept))):
            j = kept[at]
            if mask[j] and objective(flip(mask, i, j)) - objective(mask) <= -epsilon:
                mask, failed, swaps = flip(mask, i, j), 0, swaps + 1
                break
    return mask, swaps


@pytest.mark.parametrize("tries", [20, slow(2)])
def test_the_paper_search_walks_as_by_hand(tries, x64):
    case = doubles.dense()._replace(adjust=lambda name, leaf: False)
    found = doubles.setting(case, select=lowest(floor=0), damping=0.01)
    mask = found.site.choose(jnp.asarray(np.random.default_rng(1).random(24)), 0.5)
    walked, swaps = local_search._walk(
        found.quadratic, mask, found.site.parts(), jnp.asarray(np.diag(found.hessian)),
        jnp.asarray(1e-4), jnp.int32(tries), reach=3,
    )  # fmt: skip
    wanted, wanted_swaps = walk_by_hand(
        found.hessian, found.weights, np.asarray(mask), 3, tries, 1e-4
    )
    assert int(swaps) == wanted_swaps > 0
    np.testing.assert_array_equal(walked, wanted)


def test_the_paper_search_returns_the_set_of_best_true_loss_inside_parts(x64):
    case = doubles.dense()
    found = doubles.setting(case, select=n_of_m(2, 4), damping=0.01)
    mask = found.site.choose(jnp.asarray(np.random.default_rng(1).random(28)), 0.5)
    w = found.quadratic.weights
    loss_of = lambda m: found.model.loss_of(found.site.weights(jnp.where(m, w, 0)), case.batch)
    options = {"reach": 10, "tries": 20, "steps": 5, "patience": 2, "epsilon": 1e-6}
    searched = search_lists(found.quadratic, found.site, 0.5, mask, loss_of, **options)
    assert searched.swaps > 0
    assert len(searched.losses) > 1
    assert loss_of(searched.mask) == min(searched.losses)
    parts = np.asarray(found.site.parts())
    np.testing.assert_array_equal(np.bincount(parts[np.asarray(~searched.mask)]), [2] * 6)


@pytest.mark.parametrize("seed", [0, slow(1)])
def test_selection_of_few_weights_is_the_best_of_all_sets(seed, x64):
    case = doubles.dense(5, seed, sizes=(2, 2, 2))
    found = doubles.setting(case, select=lowest(floor=0))
    free = np.flatnonzero(found.site.candidates)
    for kept in (2, 5):
        mask = found.site.choose(jnp.abs(found.quadratic.weights), 1 - kept / len(free))
        searched = search_blocks(
            found.quadratic, found.site, 1 - kept / len(free), mask,
            block=8, steps=5, epsilon=1e-4,
        )  # fmt: skip
        best = doubles.best_set(
            found.hessian, found.weights, free, kept, doubles.selection_rise
        )  # fmt: skip
        rise = selection_objective(found.quadratic, searched.mask)
        np.testing.assert_allclose(rise, best, rtol=1e-9)


def test_a_swap_that_pays_is_found_where_weights_cancel_one_another(x64):
    # One input, given to 40 weights: half the square of the sum of what is pruned.
    w = jnp.full((40, 1), 50.0).at[:3, 0].set(jnp.array([3.0, -2.0, 2.0]))
    apply = lambda w, x: x @ w[:, 0]
    x = jnp.ones((1, 40))
    case = doubles.Case(w, apply, doubles.squared_error, (x, apply(w, x) - 1))
    found = doubles.setting(case, damping=1e-6)
    mask = jnp.arange(40) >= 2
    searched = search_blocks(found.quadratic, found.site, 0.05, mask, block=40, steps=9, epsilon=0)
    np.testing.assert_array_equal(np.flatnonzero(~searched.mask), [1, 2])  # -2 and 2


def test_a_block_search_never_rises_and_keeps_floors(x64):
    case = doubles.dense()
    small = {**case.params, "second": {"kernel": case.params["second"]["kernel"] * 1e-2}}
    case = case._replace(params=small)
    found = doubles.setting(case, select=lowest(floor=3), damping=0.01)
    mask = found.site.choose(jnp.asarray(np.random.default_rng(1).random(28)), 0.5)
    searched = search_blocks(
        found.quadratic, found.site, 0.5, mask, block=8, steps=20, epsilon=0.0
    )  # fmt: skip
    before, after = (selection_objective(found.quadratic, m) for m in (mask, searched.mask))
    assert searched.swaps > 0
    assert after < before
    assert int(jnp.sum(searched.mask)) == int(jnp.sum(mask))
    assert int(found.site.mask(searched.mask)["second"]["kernel"].sum()) >= 3


def test_the_update_is_the_constrained_minimum_of_the_mask(x64):
    case = doubles.dense()
    found = doubles.setting(case)
    pruned = prune(case)
    mask = np.asarray(found.site.flat(pruned.mask), bool)
    z, rise = doubles.constrained(found.hessian, found.weights, found.slopes, mask)
    assert_near(found.site.flat(pruned.params), z, F64, 10**5)
    np.testing.assert_allclose(pruned.info["objective"], rise, rtol=1e-8)
    selected = doubles.selection_rise(found.hessian, found.weights, mask)
    np.testing.assert_allclose(pruned.info["objective_selection"], selected, rtol=1e-8)
    assert pruned.info["objective"] <= pruned.info["objective_selection"]
    only = prune(case, update=False)
    assert_trees_equal(only.params, jp.apply_mask(case.params, only.mask))
    np.testing.assert_allclose(
        only.info["objective"], only.info["objective_selection"], rtol=1e-9
    )  # fmt: skip


@pytest.mark.slow
def test_the_candidate_of_the_lowest_true_loss_is_returned(x64):
    case = doubles.dense()
    model = doubles.model_of(case)
    pruned = prune(case, scales=(0.0, 0.5, 1.0), dampings=(0.01, 1.0))
    losses = [t["loss"] for t in pruned.info["tried"]]
    assert len(losses) in (6, 12)
    assert model.loss_of(pruned.params, case.batch) == min(losses)
    assert {t["scale"] for t in pruned.info["tried"]} == {0.0, 0.5, 1.0}


@pytest.mark.parametrize("search", ["exchange", slow("paper"), slow(None)])
def test_one_key_one_result_another_key_other_draws(search, x64):
    case = doubles.dense()
    runs = [prune(case, search=search, key=jax.random.key(k)) for k in (1, 1, 2)]
    assert_trees_equal(runs[0].params, runs[1].params)
    assert runs[0].info["losses_draws"] == runs[1].info["losses_draws"]
    assert runs[0].info["losses_draws"][1:] != runs[2].info["losses_draws"][1:]


PRUNERS = {
    "woodfisher": woodfisher,
    "obs": optimal_brain_surgeon,
    "obs, one at a time": lambda m, s: optimal_brain_surgeon(m, s, rounds=None),
    "obs, rounds": lambda m, s: optimal_brain_surgeon(m, s, rounds=3),
    "cbs": lambda m, s: cbs(m, s, draws=3),
    "cbs, paper": lambda m, s: cbs(m, s, draws=3, search="paper"),
    "joint": joint_surgeon,
}
SELECTS = {
    "global": (lowest(), 0.7),
    "layer": (lowest("layer"), 0.5),
    "output": (lowest("output"), 0.5),
    "2:4": (n_of_m(2, 4), 0.5),
    "protected": (lowest(prunable=lambda name, leaf: name == "first/kernel"), 0.5),
}


@pytest.mark.parametrize("name", ["cbs", *(slow(n) for n in PRUNERS if n != "cbs")])
@pytest.mark.parametrize("scope", ["2:4", *(slow(s) for s in SELECTS if s != "2:4")])
def test_sparsity_is_exact_in_every_scope(name, scope, x64):
    case = doubles.dense()
    model = doubles.model_of(case)
    select, sparsity = SELECTS[scope]
    pruner = PRUNERS[name](model, select)
    pruned = pruner(case.params, case.batch, sparsity=sparsity)
    wanted = magnitude(case, sparsity, select)
    assert pruned.info["kept"] == wanted.info["kept"]
    assert np.all((flat(pruned.params) == 0) == ~flat(pruned.mask))
    parts = flat(select.parts(case.params))
    counts = lambda mask: np.bincount(parts[~flat(mask)], minlength=8)
    np.testing.assert_array_equal(counts(pruned.mask), counts(wanted.mask))


@pytest.mark.parametrize("name", ["cbs", *(slow(n) for n in PRUNERS if n != "cbs")])
def test_masks_stay_and_are_passed_along(name, x64):
    case = doubles.dense()
    pruner = PRUNERS[name](doubles.model_of(case), lowest())
    first = magnitude(case, 0.25)
    again = pruner(case.params, case.batch, sparsity=0.75, mask=first.mask)
    assert again.info["kept"] == 6
    assert not np.any(flat(again.mask) & ~flat(first.mask))
    steps = jp.iterative(pruner, jp.schedule.cubic(0.75, 2), rounds=2)
    assert steps(case.params, case.batch, sparsity=0.75).info["kept"] == 6


def test_rounds_go_on_from_a_mask_that_one_layer_has_most_of(x64):
    case = doubles.dense()
    first = jp.one_shot(
        jp.saliency.magnitude(), lowest({"first/kernel": 0.5, "second/kernel": 0.0})
    )
    mask = first(case.params, sparsity=0.5).mask
    pruner = PRUNERS["obs, rounds"](doubles.model_of(case), lowest("layer"))
    pruned = pruner(case.params, case.batch, sparsity=0.5, mask=mask)
    assert int(pruned.mask["first"]["kernel"].sum()) == 8
    assert int(pruned.mask["second"]["kernel"].sum()) == 4


@pytest.mark.slow
def test_damping_0_is_solved_where_it_can_be_and_named_where_not(x64):
    many = doubles.dense(40)
    found = doubles.setting(many)
    pruned = prune(many, 0.5, damping=0.0)
    mask = np.asarray(found.site.flat(pruned.mask), bool)
    hessian = found.gradients.T @ found.gradients / 40
    z, _ = doubles.constrained(hessian, found.weights, found.slopes, mask)
    np.testing.assert_allclose(found.site.flat(pruned.params), z, atol=1e-6)
    with pytest.raises(ValueError, match="damping"):
        joint_surgeon(doubles.model_of(many, 0.0))


def test_without_gradients_magnitude_decides(x64):
    case = doubles.dense()._replace(loss=lambda outputs, targets: 0.0 * outputs.sum(axis=1))
    for search in ("exchange", "paper"):
        pruned = prune(case, search=search)
        assert_trees_equal(pruned.mask, magnitude(case).mask)
        assert_trees_equal(pruned.params, magnitude(case).params)


@pytest.mark.slow
def test_blocks_are_drawn_and_updated_but_not_searched(x64):
    case = doubles.dense()
    pruned = prune(case, select=jp.select.blocks((2, 2)))
    assert pruned.info["kept"] == 12
    assert pruned.info["swaps"] == 0


@pytest.mark.slow
def test_a_single_weight_left(x64):
    case = doubles.dense()
    select = lowest(prunable=lambda name, leaf: name == "second/kernel")
    for search in ("exchange", "paper"):
        assert prune(case, 7 / 8, select, search=search).info["kept"] == 1
    assert joint_surgeon(doubles.model_of(case), select)(
        case.params, case.batch, sparsity=7 / 8
    ).info["kept"] == 1  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nnx", "list", "batch_norm", "embedding", "conv"])
def test_other_trees_and_layers(name, x64):
    case = doubles.CASES[name]()
    found = doubles.setting(case)
    for search in ("exchange", "paper"):
        pruned = prune(case, search=search)
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
    for damping in (1e-8, 1e-3):
        for search in ("exchange", "paper"):
            pruned = prune(case, damping=damping, search=search)
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(pruned.params))
        joint = joint_surgeon(doubles.model_of(case, damping))
        pruned = joint(case.params, case.batch, sparsity=0.5)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(pruned.params))
