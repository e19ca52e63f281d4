"""one_shot: score, select, apply, relative to the original parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.laws import weights
from tests.near import assert_trees_equal, no_compilation
from tests.problems import tanh_mlp


def random_weights(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return weights([draw(3, 3, 4, 8), draw(12, 12), draw(12, 8)])


BY_MAGNITUDE = jp.one_shot(jp.saliency.magnitude(), jp.select.lowest())
N = 528  # prunable entries of those


def gone(mask):
    return sum(int((~np.asarray(m)).sum()) for m in jax.tree.leaves(mask))


def test_what_is_pruned_is_zero_and_what_is_kept_keeps_its_bits():
    params = random_weights()
    pruned = BY_MAGNITUDE(params, sparsity=0.6)
    expected = jax.tree.map(lambda p, m: jnp.where(m, p, jnp.zeros_like(p)), params, pruned.mask)
    assert_trees_equal(pruned.params, expected)
    kept = np.abs(np.concatenate([np.asarray(x).ravel() for x in (
        params["conv"]["kernel"], params["deep"][0], params["dense"]["kernel"])]))  # fmt: skip
    cut = np.sort(kept)[round(0.6 * N)]
    for p, m in zip(jax.tree.leaves(params), jax.tree.leaves(pruned.mask), strict=True):
        if p.ndim >= 2 and p.dtype == jnp.float32:
            np.testing.assert_array_equal(m, np.abs(p) >= cut)


def test_info_counts_what_is_prunable_only():
    pruned = BY_MAGNITUDE(random_weights(), sparsity=0.6)
    assert pruned.info == {"kept": N - 317, "prunable": N, "sparsity": 1 - (N - 317) / N}
    assert gone(pruned.mask) == 317 == round(0.6 * N)


def test_pruning_again_is_relative_to_the_original():
    params = random_weights()
    half = BY_MAGNITUDE(params, sparsity=0.5)
    more = BY_MAGNITUDE(half.params, sparsity=0.7, mask=half.mask)
    assert gone(half.mask) == round(0.5 * N)
    assert gone(more.mask) == round(0.7 * N)  # and not 85 %
    for late, early in zip(jax.tree.leaves(more.mask), jax.tree.leaves(half.mask), strict=True):
        assert (late <= early).all()
    assert_trees_equal(more, BY_MAGNITUDE(params, sparsity=0.7))


def test_a_mask_is_applied_before_anything_is_scored():
    params = random_weights()
    half = BY_MAGNITUDE(params, sparsity=0.5)
    seen = []

    def score(params, batch):
        seen.append(params)
        return jax.tree.map(lambda x: jnp.abs(x).astype(jnp.float32), params)

    jp.one_shot(score, jp.select.lowest())(params, sparsity=0.7, mask=half.mask)
    assert_trees_equal(seen[0], half.params)


def test_pruned_weights_stay_pruned_whatever_their_score():
    params = random_weights()
    half = BY_MAGNITUDE(params, sparsity=0.5)
    upside_down = lambda params, batch: jax.tree.map(
        lambda x: jnp.where(x == 0, 100.0, -jnp.abs(x)), params
    )
    more = jp.one_shot(upside_down, jp.select.lowest())(half.params, sparsity=0.6, mask=half.mask)
    assert gone(more.mask) == round(0.6 * N)
    for late, early in zip(jax.tree.leaves(more.mask), jax.tree.leaves(half.mask), strict=True):
        assert (late <= early).all()


def test_less_than_reached_raises_outside_jit_and_holds_inside():
    params = random_weights()
    half = BY_MAGNITUDE(params, sparsity=0.5)
    with pytest.raises(ValueError, match="264 entries of the tree are pruned already, more than"):
        BY_MAGNITUDE(half.params, sparsity=0.3, mask=half.mask)
    inside = jax.jit(lambda p, s, m: BY_MAGNITUDE(p, sparsity=s, mask=m))
    held = inside(half.params, 0.3, half.mask)
    assert_trees_equal(held.mask, half.mask)
    assert_trees_equal(held.params, half.params)


def test_inside_jit_the_same_is_pruned_and_a_new_sparsity_compiles_nothing():
    params = random_weights()
    inside = jax.jit(lambda p, s: BY_MAGNITUDE(p, sparsity=s))
    for sparsity in (0.0, 0.3, 0.9):
        plain, traced = BY_MAGNITUDE(params, sparsity=sparsity), inside(params, sparsity)
        assert_trees_equal(traced.mask, plain.mask)
        assert_trees_equal(traced.params, plain.params)
        assert int(traced.info["kept"]) == plain.info["kept"]
        assert int(traced.info["bad_scores"]) == 0
    with no_compilation():
        inside(params, 0.45)
        BY_MAGNITUDE(params, sparsity=0.45)


@pytest.mark.parametrize(("bad", "kind"), [(jnp.nan, "NaN"), (jnp.inf, "infinite"),
                                           (-jnp.inf, "infinite")])  # fmt: skip
def test_bad_scores_raise_outside_jit_and_inside_the_old_mask_stays_and_they_are_counted(bad, kind):
    params = random_weights()
    half = BY_MAGNITUDE(params, sparsity=0.5)

    def score(params, spoil):
        scores = jax.tree.map(lambda x: jnp.abs(x).astype(jnp.float32), params)
        deep = scores["deep"][0]
        scores["deep"][0] = jnp.where(spoil, deep.at[1, :3].set(bad), deep)
        # What is not prunable may have any score.
        scores["dense"]["bias"] = scores["dense"]["bias"] * jnp.nan
        return scores

    prune = jp.one_shot(score, jp.select.lowest())
    with pytest.raises(ValueError, match=f"score of leaf 'deep/0' is {kind}.* at 3 of 144"):
        prune(params, True, sparsity=0.7, mask=half.mask)
    inside = jax.jit(lambda p, b, s, m: prune(p, b, sparsity=s, mask=m))
    held = inside(params, True, 0.7, half.mask)
    assert_trees_equal(held.mask, half.mask)
    assert int(held.info["bad_scores"]) == 3
    went_on = inside(params, False, 0.7, half.mask)
    assert gone(went_on.mask) == round(0.7 * N)
    assert int(went_on.info["bad_scores"]) == 0


def test_a_users_plain_function_is_a_saliency_but_cannot_be_accumulated():
    plain = lambda params, batch: jax.tree.map(lambda x: jnp.abs(x) * batch, params)
    pruned = jp.one_shot(plain, jp.select.lowest())([jnp.ones((2, 2))], 3.0, sparsity=0.5)
    assert gone(pruned.mask) == 2
    with pytest.raises(TypeError, match=r"cannot be accumulated.*Make it a Saliency"):
        jp.saliency.over_batches(plain)


def test_numpy_and_integer_scores_of_a_users_function_will_do():
    scores = lambda params, batch: [np.array([[3, 1], [2, 0]])]
    params = [np.ones((2, 2), np.float32)]
    plain = jp.one_shot(scores, jp.select.lowest())
    for prune in (plain, jax.jit(plain, static_argnames="sparsity")):
        np.testing.assert_array_equal(
            prune(params, sparsity=0.5).mask[0], [[True, False], [True, False]]
        )


def test_a_mask_may_cover_what_is_not_prunable_and_it_stays_covered():
    params = random_weights()
    mask = jp.trees.full_mask(params)
    mask["dense"]["bias"] = mask["dense"]["bias"].at[0].set(False)
    pruned = BY_MAGNITUDE(params, sparsity=0.5, mask=mask)
    assert not pruned.mask["dense"]["bias"][0]
    assert pruned.params["dense"]["bias"][0] == 0
    assert pruned.info["kept"] == N // 2


def test_n_of_m_needs_no_sparsity():
    pruned = jp.one_shot(jp.saliency.magnitude(), jp.select.n_of_m(2, 4))(random_weights())
    assert gone(pruned.mask) == N // 2


def test_seeds_prune_alike_under_vmap():
    problem = tanh_mlp()
    params = jax.tree.map(lambda x: jnp.stack([x, -2 * x, x**2]), problem.params)
    prune = jp.one_shot(jp.saliency.taylor(problem.apply, problem.loss), jp.select.lowest())
    together = jax.vmap(lambda p: prune(p, problem.batch, sparsity=jnp.float32(0.5)))(params)
    for i in range(3):
        alone = prune(jax.tree.map(lambda x, i=i: x[i], params), problem.batch, sparsity=0.5)
        assert_trees_equal(jax.tree.map(lambda x, i=i: x[i], together.mask), alone.mask)


def test_what_is_no_saliency_or_no_selection_is_said_when_the_pruner_is_made():
    by, select = jp.saliency.magnitude(), jp.select.lowest()
    for makes in (jp.saliency.magnitude, jp.saliency.taylor, jp.saliency.unit_magnitude):
        with pytest.raises(TypeError, match=f"`saliency` is the function {makes.__name__} .*call"):
            jp.one_shot(makes, select)
    with pytest.raises(TypeError, match=r"`saliency` is a Saliency.* got 3"):
        jp.one_shot(3, select)
    for wrong in (jp.select.lowest, "lowest", None):
        with pytest.raises(TypeError, match=r"`select` is a Selection.*with the brackets; got"):
            jp.one_shot(by, wrong)
    assert jp.one_shot(jax.jit(lambda params, batch: params), select)  # any function of one's own


def test_what_a_pruner_returned_is_a_mask_too():
    params = random_weights()
    half = BY_MAGNITUDE(params, sparsity=0.5)
    assert_trees_equal(
        BY_MAGNITUDE(params, sparsity=0.7, mask=half),
        BY_MAGNITUDE(params, sparsity=0.7, mask=half.mask),
    )
    with pytest.raises(TypeError, match=r"mask is all that a Pruner returned: pass its `.mask`"):
        jp.apply_mask(params, half)
