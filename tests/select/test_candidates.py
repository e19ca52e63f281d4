"""What selections choose from."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.select.candidates import candidates, check_prunable, losing, mask_in

SELECT = jp.select.lowest()
PARAMS = {"bias": jnp.ones(3), "kernel": jnp.arange(6.0).reshape(2, 3)}


def test_a_tree_of_which_nothing_can_go_is_refused_before_anything_is_scored():
    check_prunable(SELECT, PARAMS)
    with pytest.raises(ValueError, match="Nothing to prune"):
        check_prunable(SELECT, {"bias": jnp.ones(3)})
    with pytest.raises(TypeError, match="'kernel': its dtype is int32"):
        check_prunable(jp.select.lowest(prunable=lambda name, _: True), {"kernel": jnp.arange(3)})


def test_units_are_looked_for_in_the_tree_that_was_coupled():
    weights = [jnp.ones((2, 5)), jnp.ones((5, 2))]
    coupling = jp.couple(lambda w, x: jnp.maximum(x @ w[0], 0) @ w[1], weights, jnp.ones((3, 2)))
    select = jp.select.lowest_units(coupling)
    assert losing(select) == ("0",)
    check_prunable(select, weights)
    with pytest.raises(ValueError, match="coupled"):
        check_prunable(select, [weights[0], jnp.ones((4, 2))])


def test_what_is_pruned_is_no_candidate_and_what_is_not_prunable_is_left_alone():
    mask = {"bias": jnp.array([True, False, True]), "kernel": PARAMS["kernel"] % 2 == 0}
    found, bad = candidates(SELECT, PARAMS, PARAMS, mask)
    assert bad is None
    np.testing.assert_array_equal(found["bias"], PARAMS["bias"])
    expected = np.where(mask["kernel"], PARAMS["kernel"], -np.inf)
    np.testing.assert_array_equal(found["kernel"], expected)
    assert candidates(SELECT, PARAMS, PARAMS, None)[0] is PARAMS


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_scores_that_are_not_finite_are_counted_by_leaf_where_something_can_go(bad):
    candidates(SELECT, PARAMS, {**PARAMS, "bias": PARAMS["bias"] * bad}, None)
    scores = {**PARAMS, "kernel": PARAMS["kernel"].at[1].set(bad)}
    with pytest.raises(ValueError, match=r"leaf 'kernel' is .*infinite at 3 of 6 entries"):
        candidates(SELECT, PARAMS, scores, None)


def test_the_mask_of_what_a_pruner_returned_is_its_mask():
    pruned = jp.one_shot(jp.saliency.magnitude(), SELECT)(PARAMS, sparsity=0.5)
    assert mask_in(pruned) is pruned.mask
    assert mask_in(pruned.mask) is pruned.mask
