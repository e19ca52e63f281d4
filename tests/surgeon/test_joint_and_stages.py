"""Joint selection and update as Pruners: around one set of weights, and in stages."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.surgeon import Effort, LocalModel, joint_surgeon, multi_stage_surgeon
from jaxprune.surgeon.allocation import is_global, search_shares
from jaxprune.surgeon.local_model import Site, split_examples
from jaxprune.surgeon.pursuit import drawn_probes, sparsities
from jaxprune.surgeon.quadratic import Quadratic
from tests.problems import softmax_loss

QUICK = Effort(rounds=2, pursuits=1, blocks=3, block=8)
SELECTIONS = {
    "global": (jp.select.lowest(), 0.6),
    "layer": (jp.select.lowest("layer"), 0.5),
    "output": (jp.select.lowest("output"), 0.5),
    "2:4": (jp.select.n_of_m(2, 4), 0.5),
    "one leaf": (jp.select.lowest(prunable=lambda name, leaf: name == "first"), 0.5),
}


def apply(params, x):
    return jnp.tanh(x @ params["first"]) @ params["second"]


@pytest.fixture(scope="module")
def trained():
    """A network of 8-8-4 that knows its data, float32."""
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "first": jax.random.normal(keys[0], (8, 8)) / 2,
        "second": jax.random.normal(keys[1], (8, 4)) / 2,
    }
    x = jax.random.normal(keys[2], (160, 8))
    batch = (x, jnp.argmax(x @ jax.random.normal(keys[3], (8, 4)), axis=1))
    mean = jax.jit(lambda p: jnp.mean(softmax_loss(apply(p, batch[0]), batch[1])))
    step = jax.jit(lambda p: jax.tree.map(lambda w, g: w - g, p, jax.grad(mean)(p)))
    for _ in range(150):
        params = step(params)
    return params, batch, mean


@pytest.fixture(scope="module")
def model():
    return LocalModel(apply, softmax_loss, damping=1e-3, examples=60)


def goes(select, sparsity, params):
    """How many entries are to go."""
    flags = jp.trees.prunable_flags(params, select.prunable)
    return round(sparsity * jp.trees.count(jp.trees.select_leaves(params, flags)))


@pytest.mark.every(5)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow) if n in ("output", "one leaf") else n
        for n in SELECTIONS
    ],
)
@pytest.mark.parametrize("kind", ["joint", "stages"])
def test_sparsity_is_exact_and_pruned_weights_are_0_in_every_scope(kind, name, trained, model):
    params, batch, _ = trained
    select, sparsity = SELECTIONS[name]
    if kind == "joint":
        prune = joint_surgeon(model, select, effort=QUICK)
    else:
        prune = multi_stage_surgeon(model, select, stages=2, tuning=1, dampings=(0.1,))
    pruned = prune(params, batch, sparsity=sparsity)
    assert jp.trees.drop(pruned.mask) == goes(select, sparsity, params)
    for leaf, mask in zip(pruned.params.values(), pruned.mask.values(), strict=True):
        assert np.all(np.asarray(leaf)[~np.asarray(mask)] == 0)
    if name == "2:4":
        for mask in pruned.mask.values():
            assert np.all(np.asarray(mask).reshape(-1, 4, mask.shape[1]).sum(1) == 2)
    if name == "one leaf":
        assert np.array_equal(pruned.params["second"], params["second"])


def test_the_objective_never_rises_and_ends_below_magnitude_with_the_update(trained, model):
    params, batch, _ = trained
    info = joint_surgeon(model, effort=QUICK)(params, batch, sparsity=0.7).info
    assert info["objective"] < info["objective_rounds"] <= info["objective_magnitude"]


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0])
def test_predicted_rise_is_the_measured_one_on_a_quadratic_loss(scale):
    x = jax.random.normal(jax.random.key(1), (30, 8))
    w = jax.random.normal(jax.random.key(2), (8, 1))
    loss = lambda y, t: 0.5 * (y - t) ** 2
    linear = lambda w, x: x @ w[:, 0]
    bend = jp.curvature.sketched_gauss_newton(linear, loss)  # the Hessian: one output
    local = LocalModel(linear, loss, bend, damping=1e-6, examples=None)
    batch = (x, linear(w, x))
    pruned = joint_surgeon(local, scales=(scale,))(w, batch, sparsity=0.5)
    rise = local.loss_of(pruned.params, batch) - local.loss_of(w, batch)
    np.testing.assert_allclose(rise, pruned.info["objective"], rtol=1e-3)


def test_one_key_one_result(trained, model):
    params, batch, _ = trained
    keyed = replace(model, key=jax.random.key(3))
    first, second = (joint_surgeon(keyed, effort=QUICK)(params, batch, sparsity=0.6) for _ in "12")
    assert jax.tree.all(jax.tree.map(np.array_equal, first.params, second.params))
    other = joint_surgeon(replace(model, key=jax.random.key(4)), effort=QUICK)
    found = other(params, batch, sparsity=0.6)
    assert not np.array_equal(found.params["first"], first.params["first"])


def test_dampings_and_scales_are_chosen_by_the_loss_on_other_examples(trained, model):
    params, batch, _ = trained
    prune = joint_surgeon(model, effort=QUICK, dampings=(1e-1, 1e-3), scales=(0.5, 1.0))
    info = prune(params, batch, sparsity=0.7).info
    assert len(info["tried"]) == 4
    best = min(info["tried"], key=lambda tried: tried["loss"])
    assert (info["damping"], info["scale"]) == (best["damping"], best["scale"])


@pytest.mark.parametrize(("examples", "many"), [(None, 40), (39, 40), (31, 40), (30, 10)])
def test_a_handful_of_examples_left_over_does_not_judge_alone(examples, many):
    local = LocalModel(apply, softmax_loss, examples=examples, judged=20)
    chosen, judges = split_examples(local, (jnp.arange(40), jnp.arange(40)))
    assert chosen[0].size == (examples or 40)
    assert judges[0].size == min(many, 20)
    if many == 10:
        assert not set(np.asarray(judges[0])) & set(np.asarray(chosen[0]))
    few = replace(local, judged=5, examples=33)  # as many as judge anyway are left over
    chosen, judges = split_examples(few, (jnp.arange(40), jnp.arange(40)))
    assert judges[0].size == 5
    assert not set(np.asarray(judges[0])) & set(np.asarray(chosen[0]))


def test_shares_never_raise_the_loss_and_keep_the_count(trained, model):
    params, batch, _ = trained
    site = Site(params, jp.select.lowest(), model.adjust, None)
    w = site.flat(params)
    found, info = search_shares(
        model, site, [jnp.abs(w)], 0.7, batch, tries=20, key=jax.random.key(0)
    )
    assert info["loss_shares"] <= info["loss_global"]
    mask = found(params, jax.tree.map(jnp.abs, params), sparsity=0.7)
    assert jp.trees.drop(mask) == round(0.7 * 96)
    masked = jp.apply_mask(params, mask)
    np.testing.assert_allclose(model.loss_of(masked, batch), info["loss_shares"], rtol=1e-6)
    assert not is_global(Site(params, jp.select.lowest("layer"), model.adjust, None))
    pruned = joint_surgeon(model, effort=QUICK, share_tries=10)(params, batch, sparsity=0.8)
    assert jp.trees.drop(pruned.mask) == round(0.8 * 96)


def test_shares_that_would_empty_a_leaf_are_left_alone(trained, model):
    params, batch, _ = trained
    small = {**params, "second": params["second"] * 1e-6}  # goes first, all of it
    select = jp.select.lowest(floor=0)
    site = Site(small, select, model.adjust, None)
    scores = [jnp.abs(site.flat(small))]
    found, info = search_shares(model, site, scores, 0.6, batch, tries=5, key=jax.random.key(0))
    assert found is select
    assert info["loss_shares"] == info["loss_global"]
    prune = joint_surgeon(model, select, effort=QUICK, share_tries=4)
    assert jp.trees.drop(prune(small, batch, sparsity=0.6).mask) == round(0.6 * 96)


def test_shares_of_a_tree_with_a_leaf_without_entries(trained, model):
    params, batch, _ = trained
    wide = {**params, "third": jnp.zeros((0, 4))}
    site = Site(wide, jp.select.lowest(), model.adjust, None)
    scores = [jnp.abs(site.flat(wide))]
    found, _ = search_shares(model, site, scores, 0.6, batch, tries=5, key=jax.random.key(0))
    assert jp.trees.drop(found(wide, jax.tree.map(jnp.abs, wide), sparsity=0.6)) == 58


def test_other_pruners_are_starts_and_the_loss_judges_them_too(trained, model):
    params, batch, _ = trained
    start = jp.surgeon.exact_obs(apply, select=jp.select.lowest())
    prune = joint_surgeon(model, effort=QUICK, scales=(0.5, 1.0), starts=(start,))
    pruned = prune(params, batch, sparsity=0.8)
    own = [tried for tried in pruned.info["tried"] if "start" in tried]
    assert [tried["scale"] for tried in own] == [0.0, 0.5, 1.0]
    assert min(t["loss"] for t in pruned.info["tried"]) <= own[0]["loss"]
    assert jp.trees.drop(pruned.mask) == round(0.8 * 96)
    shared = joint_surgeon(model, effort=QUICK, starts=(start,), share_tries=4)
    assert jp.trees.drop(shared(params, batch, sparsity=0.8).mask) == round(0.8 * 96)
    other = joint_surgeon(model, effort=QUICK, starts=(jp.surgeon.exact_obs(apply),))
    with pytest.raises(ValueError, match=r"starts\[0\].*same `select`"):
        other(params, batch, sparsity=0.57)  # 36 and 18 leaf by leaf, 55 in one ranking


def test_stages_end_below_one_quadratic(trained, model):
    params, batch, mean = trained
    bent = replace(model, fisher=jp.curvature.sketched_gauss_newton(apply, softmax_loss))
    once = joint_surgeon(bent, effort=QUICK)(params, batch, sparsity=0.8)
    staged = multi_stage_surgeon(bent, stages=4, tuning=3)(params, batch, sparsity=0.8)
    assert mean(staged.params) < mean(once.params)
    stages = staged.info["stages"]
    assert len(stages) == 7
    sparsities = [stage["sparsity"] for stage in stages]
    assert sparsities == sorted(sparsities)
    assert sparsities[3:] == [pytest.approx(round(0.8 * 96) / 96)] * 4


def test_stages_follow_a_schedule_and_a_given_mask_stays(trained, model):
    params, batch, _ = trained
    old = jax.tree.map(lambda w: jnp.abs(w) > 0.2, params)
    linear = lambda step: step / 2
    prune = multi_stage_surgeon(model, stages=2, tuning=0, schedule=linear, dampings=(0.1,))
    pruned = prune(params, batch, sparsity=0.75, mask=old)
    reached = jp.trees.drop(old) / 96
    halfway = pruned.info["stages"][0]["sparsity"]
    assert abs(halfway - (reached + 0.75) / 2) < 1 / 96
    assert not any(
        bool(jnp.any(m & ~o)) for m, o in zip(pruned.mask.values(), old.values(), strict=True)
    )
    assert jp.trees.drop(pruned.mask) == 72


@pytest.mark.parametrize("kind", ["joint", "stages"])
@pytest.mark.parametrize("scope", ["layer", "erk"])
def test_a_given_mask_may_have_taken_more_from_one_layer(scope, kind, trained, model):
    params, batch, _ = trained
    select = jp.select.lowest(scope)
    # Of one layer nothing yet; or of one layer more than what is asked for over all.
    uneven = jp.select.lowest({"first": 0.5, "second": 0.0}) if scope == "layer" else select
    old = jp.one_shot(jp.saliency.magnitude(), uneven)(params, sparsity=0.5).mask
    if kind == "joint":
        prune = joint_surgeon(model, select, effort=QUICK)
    else:
        prune = multi_stage_surgeon(model, select, stages=3, tuning=0, dampings=(0.1,))
    for sparsity in (0.5, 0.52):
        pruned = prune(params, batch, sparsity=sparsity, mask=old)
        wanted = select(params, jax.tree.map(jnp.abs, params), sparsity=sparsity)
        for name, mask in pruned.mask.items():
            assert int(mask.sum()) == int(wanted[name].sum())
            assert not bool(jnp.any(mask & ~old[name]))


def test_stages_draw_their_examples_with_the_models_key_unless_given_one(trained, model):
    params, batch, _ = trained
    keyed = [replace(model, key=jax.random.key(k)) for k in (3, 4)]

    def run(model, key):
        options = {"stages": 1, "tuning": 0, "dampings": (0.1,), "probes": None, "key": key}
        return multi_stage_surgeon(model, **options)(params, batch, sparsity=0.6).params["first"]

    first, second = (run(each, None) for each in keyed)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(run(keyed[0], None), first)
    given = [run(each, jax.random.key(5)) for each in (*keyed, model)]
    np.testing.assert_array_equal(given[0], given[1])
    np.testing.assert_array_equal(given[0], given[2])


@pytest.mark.parametrize("scales", [(0.0, 0.5, 1.0), (1000.0,)])
def test_no_weights_are_judged_twice(scales, trained, model, monkeypatch):
    params, batch, _ = trained
    seen, true = [], LocalModel.loss_of

    def loss_of(self, params, judge):
        seen.append(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves((params, judge))))
        return true(self, params, judge)

    monkeypatch.setattr(LocalModel, "loss_of", loss_of)
    prune = multi_stage_surgeon(model, stages=1, tuning=2, dampings=(0.1, 0.01), scales=scales)
    info = prune(params, batch, sparsity=0.3).info
    assert len(set(seen)) == len(seen)
    assert [tried["scale"] for tried in info["tried"]].count(0.0) == 1  # the last prunes nothing


def test_where_every_update_harms_larger_dampings_are_tried(trained, model):
    params, batch, _ = trained
    prune = multi_stage_surgeon(model, stages=1, tuning=0, dampings=(1e-3,), scales=(1000.0,))
    info = prune(params, batch, sparsity=0.3).info
    assert max(tried["damping"] for tried in info["tried"]) == pytest.approx(1)
    assert info["stages"][0]["loss"] == min(tried["loss"] for tried in info["tried"])


def test_iterative_passes_the_mask_along(trained, model):
    params, batch, _ = trained
    prune = joint_surgeon(model, effort=QUICK)
    slow = jp.iterative(prune, jp.schedule.linear(0.5, 2), rounds=2)
    pruned = slow(params, batch, sparsity=0.6)
    assert jp.trees.drop(pruned.mask) == round(0.6 * 96)
    assert [r["sparsity"] for r in pruned.info["rounds"]] == [
        pytest.approx(29 / 96), pytest.approx(58 / 96)
    ]  # fmt: skip


def test_probes_are_drawn_only_where_entries_outnumber_examples():
    def drawn(entries, examples):
        vector, one = jnp.zeros(entries), jnp.ones(())
        quadratic = Quadratic((), vector, vector, one, examples, ((entries,),))
        return drawn_probes(quadratic, 8, jax.random.key(0))

    assert drawn(80, 20) is None
    assert drawn(1000, 8) is None
    assert drawn(81, 20).shape == (20, 8)


def test_a_pattern_takes_one_stage_and_those_that_tune(trained, model):
    params, batch, _ = trained
    told = []
    prune = multi_stage_surgeon(
        model, jp.select.n_of_m(2, 4), stages=3, tuning=1, dampings=(0.1,),
        progress=lambda *said: told.append(said),
    )  # fmt: skip
    assert [s["sparsity"] for s in prune(params, batch).info["stages"]] == [0.5, 0.5]
    assert told == [("stage", 1, 2), ("stage", 2, 2)]


def test_a_path_begins_where_the_selection_goes_on_from_the_mask(trained, model):
    params, _, _ = trained
    select = jp.select.lowest({"first": lambda s: s / 2, "second": lambda s: s})
    old = {"first": jnp.arange(64).reshape(8, 8) >= 26, "second": jnp.ones((8, 4), bool)}
    site = Site(params, select, model.adjust, old)  # of the first 0.4, which is asked for at 0.8
    path = list(sparsities(site, 0.9, 3))
    assert path == sorted(path)
    assert 0.8 <= path[0] < path[-1] == 0.9
    for sparsity in path:
        site.choose(jnp.ones(site.size), sparsity)
