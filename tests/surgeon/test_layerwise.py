"""exact_obs: the greedy order, its losses and the weights, against inverses and least squares."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune as jp
from jaxprune.surgeon.layers import elimination, rowwise
from jaxprune.surgeon.layers.elimination import Rows, eliminate, inverse_of
from jaxprune.surgeon.layers.rowwise import exact_obs
from tests.near import assert_near, assert_trees_equal
from tests.surgeon.layer_doubles import greedy, moment, rising, solved

I, O, N = 12, 5, 40
lowest, n_of_m = jp.select.lowest, jp.select.n_of_m


def dense(w, x):
    return x @ w


def problem(seed=0, i=I, o=O, n=N):
    """Inputs that depend on each other, and weights."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, i)) @ rng.normal(size=(i, i)) / i, rng.normal(size=(i, o))


def prune(x, w, sparsity=None, mask=None, **options):
    pruner = exact_obs(dense, **options)
    return pruner(jnp.asarray(w), (jnp.asarray(x), None), sparsity=sparsity, mask=mask)


def rows_of(h, w, alive=None, allowed=None, groups=None):
    alive = np.ones(w.T.shape, bool) if alive is None else alive.T
    allowed = alive.sum(axis=1, keepdims=True) if allowed is None else allowed
    groups = np.zeros(len(h), int) if groups is None else groups
    dead = np.zeros((1, len(h)), bool)
    return Rows("w", jnp.asarray(h)[None], dead, w.T, alive, groups, allowed)


@pytest.mark.parametrize("block", [5, 16])
@pytest.mark.parametrize("pruned", [0, 0.4])
def test_order_and_losses_are_those_of_an_inverse_at_every_step(block, pruned, monkeypatch, x64):
    monkeypatch.setattr(elimination, "_block", lambda size: min(size, block))
    x, w = problem()
    h = moment(x, 0.01)
    alive = np.random.default_rng(1).random(w.shape) >= pruned
    w = w * alive
    rows = rows_of(h, w, alive)
    found = eliminate(rows, inverse_of(rows), np.arange(O), np.full(O, I))
    np.testing.assert_array_equal(found.reached, alive.T)
    for o in range(O):
        steps = greedy(h, w[:, o], alive[:, o])
        order = [q for q in np.argsort(found.scores[o], kind="stable") if alive[q, o]]
        assert order == [q for q, _ in steps]
        wanted = rising(steps, I)[alive[:, o]]
        assert_near(found.scores[o][alive[:, o]], wanted, jnp.float64, 10**5)


def test_scores_rise_along_each_order_and_what_is_not_reached_is_above(x64):
    x, w = problem(2)
    rows = rows_of(moment(x, 0.01), w)
    short = eliminate(rows, inverse_of(rows), np.array([1, 3]), np.array([3, 7]))
    whole = eliminate(rows, inverse_of(rows), np.array([1, 3]), np.array([I, I]))
    assert whole.reached.all()
    assert all(len(set(scores)) == I for scores in whole.scores)
    for a, b, reached in zip(short.scores, whole.scores, short.reached, strict=True):
        np.testing.assert_array_equal(a[reached], b[reached])
        bound = set(a[~reached])
        assert len(bound) <= 1
        assert all(a[reached].max() < x <= b[~reached].min() for x in bound)


@pytest.mark.parametrize("scope", ["layer", "output", "global", {"": 0.5}])
def test_the_selection_decides_between_the_losses(scope, x64):
    x, w = problem(3)
    w[:, 1] *= 1e-3  # this output is worth nothing: all of it goes first
    h = moment(x, 0.01)
    pruned = prune(x, w, 0.5, select=lowest(scope))
    scores = np.stack([rising(greedy(h, w[:, o]), I) for o in range(O)], axis=1)
    # Running maxima tie; then the order of elimination decides, and within a row it is a prefix.
    ranks = np.stack([[q for q, _ in greedy(h, w[:, o])] for o in range(O)], axis=1)
    keep = np.ones(w.shape, bool)
    if scope == "output":
        for o in range(O):
            keep[ranks[: I // 2, o], o] = False
    else:
        order = sorted((scores[q, o], t, q, o) for o in range(O) for t, q in enumerate(ranks[:, o]))
        for _, _, q, o in order[: round(0.5 * w.size)]:
            keep[q, o] = False
    np.testing.assert_array_equal(pruned.mask, keep)
    assert pruned.info["kept"] == 30
    assert_near(pruned.params, solved(h, w, keep), jnp.float64, 10**5)


@pytest.mark.slow
def test_few_steps_at_first_give_the_masks_of_complete_eliminations(monkeypatch, x64):
    x, w = problem(4, i=20, o=6)
    x *= 10.0 ** np.linspace(-1, 1, 20)
    whole = prune(x, w, 0.5)
    monkeypatch.setattr(rowwise, "_SPARE", -3)
    monkeypatch.setattr(elimination, "_block", lambda size: 2)
    rounds = []
    advance = rowwise._Rival.advance
    monkeypatch.setattr(rowwise._Rival, "advance", lambda r: rounds.append(1) or advance(r))
    np.testing.assert_array_equal(prune(x, w, 0.5).mask, whole.mask)
    assert len(rounds) > 2  # some rows had to go on


@pytest.mark.parametrize("scope", ["layer", "output"])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_new_weights_never_do_worse_than_the_mask_alone(seed, scope):
    x, w = problem(seed)
    for sparsity in (0.2, 0.5, 0.9):
        pruned = prune(np.float32(x), np.float32(w), sparsity, select=lowest(scope))
        error = pruned.info["output_error"][""]
        assert 0 < error["updated"] <= error["removed"] <= 4
        y = x @ w
        for name, new in (("removed", w * pruned.mask), ("updated", pruned.params)):
            expected = np.sum((x @ new - y) ** 2) / np.sum(y**2)
            np.testing.assert_allclose(error[name], expected, rtol=1e-3)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 3), (3, 12)])
def test_groups_that_have_lost_enough_are_protected(n, m, x64):
    x, w = problem(5)
    h = moment(x, 0.01)
    pruned = prune(x, w, select=n_of_m(n, m))
    for o in range(O):
        gone = [q for q, _ in greedy(h, w[:, o], groups=np.arange(I) // m, most=m - n)]
        assert set(np.flatnonzero(~pruned.mask[:, o])) == set(gone)
    assert_near(pruned.params, solved(h, w, np.asarray(pruned.mask)), jnp.float64, 10**5)


def test_groups_may_lie_anywhere_among_the_inputs(x64):
    conv = lambda w, x: lax.conv_general_dilated(
        x, w, (1,), "VALID", dimension_numbers=("NHC", "HIO", "NHC")
    )
    x, w = problem(6)
    x, w = x.reshape(N, 4, 3), w.reshape(4, 3, O)
    for axis, groups in (
        (0, np.arange(I) // 3 // 2 * 3 + np.arange(I) % 3),
        (1, np.arange(I) // 3),
    ):
        m = 2 if axis == 0 else 3
        pruner = exact_obs(conv, select=n_of_m(1, m, axis=axis))
        mask = np.asarray(pruner(jnp.asarray(w), (jnp.asarray(x), None)).mask).reshape(I, O)
        for o in range(O):
            steps = greedy(
                moment(x.reshape(N, I), 0.01), w.reshape(I, O)[:, o], None, groups, m - 1
            )
            assert set(np.flatnonzero(~mask[:, o])) == {q for q, _ in steps}


def test_blocks_are_chosen_by_the_losses_of_their_entries_and_solved_exactly(x64):
    x, w = problem(7, o=6)
    pruned = prune(x, w, 0.5, select=jp.select.blocks((3, 2), "layer"))
    tiles = np.asarray(pruned.mask).reshape(4, 3, 3, 2).swapaxes(1, 2).reshape(12, 6)
    assert (tiles == tiles[:, :1]).all()
    assert tiles[:, 0].sum() == 6
    expected = solved(moment(x, 0.01), w, np.asarray(pruned.mask))
    assert_near(pruned.params, expected, jnp.float64, 10**5)


def test_what_was_pruned_stays_pruned_and_out_of_every_solve(x64):
    x, w = problem(8)
    first = prune(x, w, 0.3)
    mask, h = np.asarray(first.mask), moment(x, 0.01)
    second = prune(x, w, 0.7, mask=first.mask)
    assert not np.any(second.mask & ~mask)
    assert second.info["kept"] == w.size - round(0.7 * w.size)
    start = w * mask  # what is pruned is 0 now, whatever it was
    scores = np.stack([rising(greedy(h, start[:, o], mask[:, o]), I) for o in range(O)], axis=1)
    more = round(0.7 * w.size) - (~mask).sum()
    gone = np.sort(scores[mask])[:more]
    # Up to ties of running maxima, the lowest losses go.
    assert np.sum(scores[mask & ~np.asarray(second.mask)] > gone.max()) == 0
    expected = np.zeros_like(w)
    for o in range(O):
        alive = mask[:, o]
        own = h[np.ix_(alive, alive)]
        keep = np.asarray(second.mask)[alive, o : o + 1]
        expected[alive, o] = solved(own, start[alive, o : o + 1], keep)[:, 0]
    assert_near(second.params, expected, jnp.float64, 10**5)


def test_the_same_sparsity_again_changes_no_bit_and_less_is_an_error():
    x, w = problem(9)
    first = prune(x, w, 0.5)
    again = prune(x, first.params, 0.5, mask=first.mask)
    assert_trees_equal((again.params, again.mask), (first.params, first.mask))
    assert again.info["output_error"][""] == {"removed": 0.0, "updated": 0.0}
    with pytest.raises(ValueError, match="pruned already, more than"):
        prune(x, first.params, 0.4, mask=first.mask)


def test_outputs_that_lose_nothing_keep_their_bits():
    x, w = problem(10)
    w[:, 2] *= 1e4
    w = jnp.asarray(w, jnp.float32).at[3, 2].set(-0.0)
    pruned = prune(x, w, 0.3, select=lowest("layer"))
    assert pruned.mask[jnp.arange(I) != 3, 2].all()
    if pruned.mask[3, 2]:
        assert_trees_equal(pruned.params[:, 2], w[:, 2])


def test_permuting_outputs_permutes_the_result(x64):
    x, w = problem(11)
    order = np.random.default_rng(0).permutation(O)
    a, b = (prune(x, some, 0.5) for some in (w, w[:, order]))
    np.testing.assert_array_equal(np.asarray(a.mask)[:, order], b.mask)
    assert_near(np.asarray(a.params)[:, order], b.params, jnp.float64)


@pytest.mark.parametrize("damping", [0.0, 1e-6, 0.01])
def test_dead_inputs_cost_nothing_and_go_first(damping):
    x, w = problem(12)
    dead = [0, 5, 6]
    x[:, dead] = 0
    pruned = prune(np.float32(x), np.float32(w), 0.25, damping=damping)
    mask = np.asarray(pruned.mask)
    assert not mask[dead].any()
    assert mask.sum() == w.size - 15
    live = [q for q in range(I) if q not in dead]
    np.testing.assert_array_equal(np.asarray(pruned.params)[live], np.float32(w[live]))
    some = prune(np.float32(x), np.float32(w), 0.1, damping=damping)
    assert np.isfinite(some.params).all()
    assert np.asarray(some.mask)[live].all()
    nothing = prune(np.zeros_like(x, np.float32), np.float32(w), 0.5, damping=damping)
    assert nothing.info["kept"] == 30
    assert np.isfinite(nothing.params).all()


def test_twin_inputs_take_over_from_each_other():
    rng = np.random.default_rng(13)
    x, w = rng.normal(size=(N, I)), np.ones((I, O))
    x[:, 1] = x[:, 0]
    pruned = prune(np.float32(x), np.float32(w), 5 / 60, damping=1e-4)
    mask = np.asarray(pruned.mask)
    assert (mask[:2].sum(axis=0) == 1).all()
    assert mask[2:].all()
    np.testing.assert_allclose(np.sum(pruned.params[:2], axis=0), 2, rtol=0.01)
    with pytest.raises(ValueError, match=r"the only leaf are linearly dependent.*damping"):
        prune(
            np.zeros((4, 3), np.float32) + [[1.0], [2], [3], [4]], np.ones((3, 2)), 0.5, damping=0
        )


def test_what_is_dependent_but_for_rounding_counts_as_dependent():
    for seed in range(8):
        x, w = problem(seed)
        x[:, 3] = x[:, 7] - 2 * x[:, 1]
        h = np.float32(moment(np.float32(x)))
        with pytest.raises(ValueError, match=r"leaf 'w' are linearly dependent.*damping"):
            inverse_of(rows_of(h, np.float32(w)))


def test_without_damping_regular_moments_give_plain_least_squares(x64):
    x, w = problem(14)
    pruned = prune(x, w, 0.5, damping=0)
    expected = solved(moment(x), w, np.asarray(pruned.mask))
    assert_near(pruned.params, expected, jnp.float64, 10**6)
