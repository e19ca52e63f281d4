"""iterative: rounds of a Pruner, and what is built from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.near import assert_trees_equal

N = 200


def params(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {"a": draw(10, 10), "b": draw(20, 5), "bias": draw(5)}


BY_MAGNITUDE = jp.one_shot(jp.saliency.magnitude(), jp.select.lowest())


def gone(mask):
    return sum(int((~np.asarray(m)).sum()) for m in jax.tree.leaves(mask))


def test_every_round_prunes_to_its_share_of_the_end_relative_to_the_original():
    rounds, rise = 4, jp.schedule.cubic(0.5, 4)
    pruned = jp.iterative(BY_MAGNITUDE, rise, rounds)(params(), sparsity=0.9)
    kept = [info["kept"] for info in pruned.info["rounds"]]
    assert kept == [N - round(0.9 * rise(r) / 0.5 * N) for r in range(1, rounds + 1)]
    assert gone(pruned.mask) == round(0.9 * N)
    assert pruned.info["kept"] == N - round(0.9 * N)


def test_without_fine_tuning_magnitude_in_rounds_is_magnitude_at_once():
    rounds = jp.iterative(BY_MAGNITUDE, jp.schedule.linear(0.8, 5), 5)(params(), sparsity=0.8)
    at_once = BY_MAGNITUDE(params(), sparsity=0.8)
    assert_trees_equal((rounds.params, rounds.mask), (at_once.params, at_once.mask))


def test_without_fine_tuning_scores_are_taken_anew_from_what_is_left():
    # A model whose second weight matters only while the first is there.
    apply = lambda w, x: x * (w[0, 0] * w[0, 1] + w[0, 2] * 0.5 + 0 * w[0, 3])[None]
    score = jp.saliency.taylor(apply, lambda y, t: (y - t) ** 2)
    prune = jp.one_shot(score, jp.select.lowest(floor=1))
    w = jnp.array([[0.1, 3.0, 0.9, 1.0]])
    batch = (jnp.ones(4), jnp.zeros(4))
    rounds = jp.iterative(prune, jp.schedule.linear(0.75, 3), 3)(w, batch, sparsity=0.75)
    np.testing.assert_array_equal(rounds.mask, [[False, False, True, False]])
    first = prune(w, batch, sparsity=0.5)
    np.testing.assert_array_equal(first.mask, [[False, True, True, False]])


def test_fine_tuning_comes_after_every_round_with_that_rounds_mask():
    seen = []

    def fine_tune(p, mask):
        seen.append(gone(mask))
        return jax.tree.map(lambda x, m: jnp.where(m, x + 0.1, x), p, mask)

    rise = jp.schedule.linear(0.6, 3)
    pruned = jp.iterative(BY_MAGNITUDE, rise, 3, fine_tune)(params(), sparsity=0.6)
    assert seen == [40, 80, 120]
    start = params()
    expected = jnp.where(pruned.mask["bias"], start["bias"] + 0.1 + 0.1 + 0.1, 0)
    np.testing.assert_array_equal(pruned.params["bias"], expected)


def test_weights_that_fine_tuning_revives_are_zeroed_again_with_a_warning():
    revive = lambda p, mask: {**p, "a": p["a"] + 1.0}
    prune = jp.iterative(BY_MAGNITUDE, jp.schedule.constant(0.5), 1, revive)
    with pytest.warns(UserWarning, match=r"revived \d+ pruned entries of leaf 'a'.*freeze_pruned"):
        pruned = prune(params(), sparsity=0.5)
    for p, m in zip(jax.tree.leaves(pruned.params), jax.tree.leaves(pruned.mask), strict=True):
        assert not np.any(np.asarray(p)[~np.asarray(m)])
    # A revived NaN is no less revived.
    spoil = lambda p, mask: {**p, "a": p["a"] * jnp.nan}
    with pytest.warns(UserWarning, match="revived"):
        jp.iterative(BY_MAGNITUDE, jp.schedule.constant(0.5), 1, spoil)(params(), sparsity=0.5)


def test_lottery_ticket_rewinding_is_a_fine_tune_that_starts_from_the_beginning():
    initial = params()
    train = lambda p, mask: jax.tree.map(lambda x, m: jnp.where(m, 2 * x + 0.3, 0), p, mask)

    def rewind_and_train(_, mask):
        return train(jp.apply_mask(initial, mask), mask)

    rise = jp.schedule.exponential(0.75, 3)
    trained = train(initial, jp.trees.full_mask(initial))
    ticket = jp.iterative(BY_MAGNITUDE, rise, 3, rewind_and_train)(trained, sparsity=0.75)

    p, mask = trained, None
    for r in range(1, 4):  # the paper's algorithm, written out
        step = BY_MAGNITUDE(p, sparsity=rise(r), mask=mask)
        mask = step.mask
        p = train(jp.apply_mask(initial, mask), mask)
    assert_trees_equal((ticket.params, ticket.mask), (p, mask))
    winning = jp.apply_mask(initial, ticket.mask)
    for a, b, m in zip(*(jax.tree.leaves(t) for t in (winning, initial, mask)), strict=True):
        np.testing.assert_array_equal(a, np.where(m, b, 0))


def test_a_composite_is_a_pruner_and_composes():
    twice = jp.iterative(BY_MAGNITUDE, jp.schedule.linear(0.5, 2), 2)
    nested = jp.iterative(twice, jp.schedule.constant(0.5), 1)
    assert_trees_equal(nested(params(), sparsity=0.5).mask, twice(params(), sparsity=0.5).mask)
    assert isinstance(twice, jp.Pruner)


def test_a_mask_that_came_before_is_where_the_rounds_begin():
    half = BY_MAGNITUDE(params(), sparsity=0.5)
    rise = jp.schedule.linear(0.9, 2, initial=0.5)
    more = jp.iterative(BY_MAGNITUDE, rise, 2)(half.params, sparsity=0.9, mask=half.mask)
    assert [info["kept"] for info in more.info["rounds"]] == [60, 20]
    whole = jp.iterative(BY_MAGNITUDE, rise, 2)(half.params, sparsity=0.9, mask=half)
    assert_trees_equal(whole.mask, more.mask)
    from_nothing = jp.iterative(BY_MAGNITUDE, jp.schedule.linear(0.9, 9), 9)
    with pytest.raises(ValueError, match="pruned already, more than the 20 asked for"):
        from_nothing(half.params, sparsity=0.9, mask=half.mask)


def test_rounds_without_fine_tuning_run_inside_jit_with_a_traced_end():
    prune = jp.iterative(BY_MAGNITUDE, jp.schedule.linear(0.8, 3), 3)
    inside = jax.jit(lambda p, s: prune(p, sparsity=s).mask)
    for sparsity in (0.3, 0.8):
        assert_trees_equal(inside(params(), sparsity), prune(params(), sparsity=sparsity).mask)


@pytest.mark.parametrize("rounds", [0, -1, 1.5, True, "3"])
def test_rounds_are_a_whole_number(rounds):
    with pytest.raises(ValueError, match=r"integer >= 1; got "):
        jp.iterative(BY_MAGNITUDE, jp.schedule.linear(0.9, 3), rounds)


def test_a_path_that_falls_or_stays_at_zero_is_refused_when_it_is_made():
    falling = lambda r: 0.9 - 0.1 * r
    with pytest.raises(ValueError, match="must rise"):
        jp.iterative(BY_MAGNITUDE, falling, 3)
    with pytest.raises(ValueError, match="Is `rounds` its number of steps"):
        jp.iterative(BY_MAGNITUDE, jp.schedule.linear(0.9, 10, begin=5), 3)
    with pytest.raises(ValueError, match="must rise"):
        jp.iterative(BY_MAGNITUDE, lambda r: float("nan"), 3)


def test_a_fine_tune_that_returns_nothing_is_named():
    prune = jp.iterative(BY_MAGNITUDE, jp.schedule.linear(0.5, 2), np.int64(2), lambda p, m: None)
    with pytest.raises(ValueError, match=r"result of `fine_tune` does not have the tree structure"):
        prune(params(), sparsity=0.5)
    with pytest.raises(TypeError, match=r"`schedule` is a function.* got 0\.5"):
        jp.iterative(BY_MAGNITUDE, 0.5, 2)


def test_units_whose_widths_are_rounded_go_in_rounds():
    """A round may take more than its share, and the next then asks for less than is gone."""
    w = [jnp.arange(1.0, 21)[None], jnp.ones((20, 1))]
    coupling = jp.couple(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], w, jnp.ones((1, 1)))
    by = jp.saliency.unit_magnitude(coupling)
    prune = jp.one_shot(by, jp.select.lowest_units(coupling, round_to=8))
    shares = {1: 0.5, 2: 0.55, 3: 0.6}
    info = jp.iterative(prune, shares.get, 3)(w, sparsity=0.6).info
    assert [done["units"] for done in info["rounds"]] == [{"0": 8}] * 3
