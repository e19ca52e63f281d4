"""Laws that every saliency keeps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.dense import dense, flat, is_float
from tests.laws import SALIENCIES, TREES
from tests.near import assert_near, assert_trees_equal, no_compilation
from tests.problems import cluttered

SPLITS = [(2, 2, 1), (1, 2, 2), (1, 1, 1, 2), (1, 1, 1, 1, 1)]
STEP_BY_STEP = ("magnitude", "lamp", "taylor", "snip")  # the others take minutes without jit
MEASURED = [name for name, row in SALIENCIES.items() if row.data]
WITH_FORMULA = [name for name, row in SALIENCIES.items() if row.formula is not None]
FORMED = [name for name, row in SALIENCIES.items() if row.make(cluttered()).formed is not None]
# A standard deviation is the root of a difference of means: roundings of the means weigh more.
ROUNDINGS = {"obd-sd, damage spread": 1e4, "obd-sd, gradient variance": 1e3}


def near(actual, desired, dtype, roundings):
    """As `assert_near`, where leaves that cannot be scored are NaN in both."""
    holes = np.isnan(desired)
    np.testing.assert_array_equal(np.isnan(actual), holes)
    assert_near(np.where(holes, 0, actual), np.where(holes, 0, desired), dtype, roundings)


@functools.cache
def made(name):
    """One saliency for all the laws, so that what it compiles is compiled once."""
    return SALIENCIES[name].make(cluttered())


@functools.cache
def scored(name):
    """Its float32 scores, as numpy."""
    problem = cluttered()
    return flat(problem.params, made(name)(problem.params, problem.batch))


def cut(batch, sizes):
    ends = np.cumsum(sizes)
    return [jax.tree.map(lambda x, a=end - size, b=end: x[a:b], batch)
            for size, end in zip(sizes, ends, strict=True)]  # fmt: skip


@pytest.mark.every(3)
@pytest.mark.parametrize("name", WITH_FORMULA)
def test_the_score_is_the_formula_of_the_docstring(name, x64):
    problem = cluttered(jnp.float64)
    scores = made(name)(problem.params, problem.batch if SALIENCIES[name].data else None)
    expected = SALIENCIES[name].formula(dense("cluttered"))
    # Gauss-Newton's root comes from an eigendecomposition.
    near(flat(problem.params, scores), expected, jnp.float64, ROUNDINGS.get(name, 1000))


@pytest.mark.every(3)
@pytest.mark.parametrize("name", SALIENCIES)
def test_scores_have_the_structure_and_shapes_of_the_parameters_and_are_float32(name):
    problem = cluttered()
    scores = made(name)(problem.params, problem.batch)
    assert jax.tree.structure(scores) == jax.tree.structure(problem.params)
    for score, leaf in zip(jax.tree.leaves(scores), jax.tree.leaves(problem.params), strict=True):
        assert score.shape == leaf.shape
        assert score.dtype == jnp.float32


@pytest.mark.parametrize("name", SALIENCIES)
def test_float64_leaves_have_float64_scores_and_their_neighbours_float32_ones(name, x64):
    params = cluttered(jnp.float64).params
    params["net"]["head"]["kernel"] = params["net"]["head"]["kernel"].astype(jnp.float32)
    params["net"]["hidden"]["bias"] = params["net"]["hidden"]["bias"].astype(jnp.bfloat16)
    scores = jax.eval_shape(made(name), params, cluttered(jnp.float64).batch)
    for score, leaf in zip(jax.tree.leaves(scores), jax.tree.leaves(params), strict=True):
        assert score.dtype == (jnp.float64 if leaf.dtype == jnp.float64 else jnp.float32)


@pytest.mark.every(5)
@pytest.mark.parametrize("name", SALIENCIES)
def test_inside_jit_and_outside_the_scores_are_the_same(name):
    problem, roundings = cluttered(), ROUNDINGS.get(name, 1000)
    inside = jax.jit(made(name))(problem.params, problem.batch)
    near(flat(problem.params, inside), scored(name), jnp.float32, roundings)
    if name in STEP_BY_STEP:
        with jax.disable_jit():
            off = made(name)(problem.params, problem.batch)
        near(flat(problem.params, off), scored(name), jnp.float32, roundings)


@pytest.mark.every(5)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", FORMED)
def test_scores_formed_as_they_are_read_are_those_kept_in_memory_to_the_last_bit(name, dtype):
    saliency, problem = made(name), cluttered(dtype)
    read = lambda tree: jax.tree.map(
        lambda leaf: leaf.read(), tree, is_leaf=lambda leaf: isinstance(leaf, jp.types.Formed)
    )
    formed = jax.jit(lambda params, batch: read(saliency.formed(params, batch)))
    kept = jax.jit(saliency)(problem.params, problem.batch)
    assert_trees_equal(formed(problem.params, problem.batch), kept)


@pytest.mark.every(3)
@pytest.mark.parametrize("name", SALIENCIES)
def test_bfloat16_parameters_are_scored_in_float32(name):
    problem = cluttered()
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if is_float(x) else x, problem.params)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32) if is_float(x) else x, narrow)
    found = made(name)(narrow, problem.batch)
    same = flat(problem.params, made(name)(wide, problem.batch))
    # First derivatives are the user's own, taken in the parameters' precision.
    first_order = name in ("taylor", "snip")
    dtype, roundings = (jnp.bfloat16, 8) if first_order else (jnp.float32, 1e4)
    near(flat(problem.params, found), same, dtype, roundings)
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype("float32")}


@pytest.mark.every(3)
@pytest.mark.parametrize("name", SALIENCIES)
def test_a_second_call_compiles_nothing(name):
    problem, inside = cluttered(), jax.jit(made(name))
    double = lambda tree: jax.tree.map(lambda x: x * 2 if is_float(x) else x, tree)
    moved, doubled = double(problem.params), double(problem.batch)
    for call in (made(name), inside):
        call(problem.params, problem.batch)
        with no_compilation():
            call(moved, doubled)


@pytest.mark.every(3)
@pytest.mark.parametrize("name", MEASURED)
def test_sums_over_any_batches_score_as_one_big_batch(name, x64):
    problem = cluttered(jnp.float64)
    whole = flat(problem.params, made(name)(problem.params, problem.batch))
    several = jp.saliency.over_batches(made(name))
    for sizes in SPLITS:
        stats = several.measure(problem.params, iter(cut(problem.batch, sizes)))
        assert int(stats.count) == sum(sizes)
        split = flat(problem.params, several.score(problem.params, stats))
        near(split, whole, jnp.float64, ROUNDINGS.get(name, 1000))


@pytest.mark.parametrize("name", MEASURED)
def test_a_mean_of_scores_is_another_score_where_the_formula_is_not_linear(name, x64):
    """The negative control of the law above: averaging scores is not scoring averages."""
    problem, sizes = cluttered(jnp.float64), SPLITS[0]
    score = lambda batch: flat(problem.params, made(name)(problem.params, batch))
    averaged = np.average([score(b) for b in cut(problem.batch, sizes)], axis=0, weights=sizes)
    whole = score(problem.batch)
    gap = np.nanmax(np.abs(averaged - whole)) / np.nanmax(np.abs(whole))
    linear = name.startswith(("obd,", "fisher"))
    assert gap < 1e-12 if linear else gap > 1e-3


@pytest.mark.parametrize("name", SALIENCIES)
def test_integers_keys_flags_and_empty_leaves_pass_through(name):
    problem = cluttered()
    scores = made(name)(problem.params, problem.batch)
    assert scores["empty"].shape == (0, 3)
    if name not in ("random", "wanda", "obd-sd, input spread"):
        assert not any(np.any(scores[leaf]) for leaf in ("flag", "key", "step"))
    prune = jp.one_shot(made(name), jp.select.lowest())
    pruned = prune(problem.params, problem.batch, sparsity=0.5)
    for leaf in ("flag", "key", "step", "scalar", "empty"):
        assert_trees_equal(pruned.params[leaf], problem.params[leaf])
    assert pruned.info["kept"] == 12  # of two kernels, 3 x 4 and 4 x 3


@pytest.mark.parametrize("name", MEASURED)
def test_stats_are_sums_that_grow_with_the_batch(name):
    params, batch = cluttered().params, cluttered().batch
    once = made(name).measure(params, batch)
    twice = jp.saliency.add(once, once)
    assert (int(once.count), int(twice.count)) == (5, 10)
    assert_trees_equal(made(name).score(params, twice), made(name).score(params, once))


def over_any_tree(params, x):
    """A model that any tree of parameters fits."""
    leaves = [leaf for leaf in jax.tree.leaves(params) if is_float(leaf)]
    total = sum(jnp.sum(jnp.tanh(leaf.astype(jnp.float32)) ** 2) for leaf in leaves)
    return total * x[:, 0]


ANY_TREE = {
    "lamp": jp.saliency.lamp(),
    "random": jp.saliency.random(jax.random.key(0)),
    "taylor": jp.saliency.taylor(over_any_tree, lambda y, t: (y - t) ** 2),
    "obd": jp.saliency.optimal_brain_damage(
        jp.curvature.gauss_newton_diagonal(over_any_tree, lambda y, t: (y - t) ** 2)
    ),
}


@pytest.mark.every(5)
@pytest.mark.parametrize("tree", TREES)
def test_every_kind_of_tree_is_scored_and_pruned_to_the_exact_count(tree):
    params, batch = TREES[tree].make(), (jnp.ones((3, 1)), jnp.zeros(3))
    for saliency in ANY_TREE.values():
        scores = saliency(params, batch)
        assert jax.tree.structure(scores) == jax.tree.structure(params)
        assert [np.shape(s) for s in jax.tree.leaves(scores)] == [
            np.shape(p) for p in jax.tree.leaves(params)
        ]
        assert all(np.isfinite(s).all() for s in jax.tree.leaves(scores))
    prune = jp.one_shot(jp.saliency.magnitude(), jp.select.lowest(floor=0))
    check_pruned(prune(params, sparsity=0.5), params, TREES[tree])


def check_pruned(pruned, params, row):
    assert jax.tree.structure(pruned.params) == jax.tree.structure(params)
    assert jax.tree.structure(pruned.mask) == jax.tree.structure(params)
    total = gone = 0
    for (leaf_name, before), after, mask in zip(
        jp.trees.named_leaves(params),
        jax.tree.leaves(pruned.params),
        jax.tree.leaves(pruned.mask),
        strict=True,
    ):
        assert after.dtype == before.dtype
        if leaf_name in row.prunable:
            total, gone = total + mask.size, gone + int((~mask).sum())
            np.testing.assert_array_equal(after, np.where(mask, before, 0))
        else:
            assert mask.all()
            assert_trees_equal(after, before)
    assert gone == round(0.5 * total) > 0
