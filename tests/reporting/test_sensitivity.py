"""Sensitivity curves: one leaf at a time, exactly the lowest scores of it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.reporting import sensitivity

SPARSITIES = (0.25, 0.5, 0.9)


def make(seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    params = {
        "a": {"kernel": jax.random.normal(keys[0], (5, 4)), "bias": jnp.ones(4)},
        "b": {"kernel": jax.random.normal(keys[1], (4, 3)), "bias": jnp.ones(3)},
    }
    scores = jax.tree.map(lambda p: jax.random.normal(keys[2], p.shape), params)
    return params, scores


def pruned_by_hand(params, scores, layer, sparsity):
    flat = np.asarray(params[layer]["kernel"]).ravel().copy()
    order = np.argsort(np.asarray(scores[layer]["kernel"]).ravel(), kind="stable")
    flat[order[: round(sparsity * flat.size)]] = 0
    kernel = flat.reshape(params[layer]["kernel"].shape)
    return params | {layer: params[layer] | {"kernel": jnp.asarray(kernel)}}


def evaluate(params):
    hidden = jnp.tanh(jnp.arange(10.0).reshape(2, 5) @ params["a"]["kernel"] + params["a"]["bias"])
    return float(jnp.sum(hidden @ params["b"]["kernel"] + params["b"]["bias"]))


def test_each_value_is_that_of_the_leaf_pruned_alone_by_hand():
    params, scores = make()
    found = sensitivity(params, scores, evaluate, SPARSITIES)
    assert found.names == ("a/kernel", "b/kernel")
    assert found.sparsities == SPARSITIES
    by_hand = [
        [evaluate(pruned_by_hand(params, scores, layer, s)) for s in SPARSITIES] for layer in "ab"
    ]
    np.testing.assert_array_equal(found.values, by_hand)
    assert found.baseline == evaluate(params)


def test_other_leaves_are_untouched_and_the_count_is_exact():
    params, scores = make()
    seen = []

    def look(p):
        seen.append([int(jnp.count_nonzero(leaf)) for leaf in jax.tree.leaves(p)])
        return 0.0

    sensitivity(params, scores, look, SPARSITIES)
    # leaves: a/bias 4, a/kernel 20, b/bias 3, b/kernel 12
    pruned_a = [[4, 20 - round(s * 20), 3, 12] for s in SPARSITIES]
    pruned_b = [[4, 20, 3, 12 - round(s * 12)] for s in SPARSITIES]
    assert seen == [*pruned_a, *pruned_b, [4, 20, 3, 12]]


def test_sparsities_of_a_generator_are_all_tried():
    params = {"a": {"kernel": jnp.ones((2, 2))}, "b": {"kernel": jnp.ones((2, 2))}}
    total = lambda params: float(sum(map(jnp.sum, jax.tree.leaves(params))))
    found = sensitivity(params, params, total, (s for s in (0.25, 0.5)))
    assert found == sensitivity(params, params, total, (0.25, 0.5))
    assert found.values == ((7.0, 6.0), (7.0, 6.0))


def test_ties_go_by_index():
    params = jnp.arange(1.0, 9.0).reshape(2, 4)
    seen = []
    sensitivity(params, jnp.zeros((2, 4)), lambda p: seen.append(np.asarray(p)) or 0.0, (0.5,))
    np.testing.assert_array_equal(seen[0], [[0, 0, 0, 0], [5, 6, 7, 8]])


def test_a_leaf_may_be_emptied_because_no_floor_protects_it():
    params = {"kernel": jnp.ones((2, 2))}
    found = sensitivity(params, params, lambda p: float(jnp.sum(p["kernel"])), (0.9,))
    assert found.values == ((0.0,),)  # round(0.9 * 4) = 4


def test_only_prunable_leaves_are_tried():
    params, scores = make()
    only = sensitivity(
        params, scores, evaluate, (0.5,), prunable=lambda name, leaf: name == "b/bias"
    )
    assert only.names == ("b/bias",)


def test_it_is_plain_data():
    params, scores = make()
    found = sensitivity(params, scores, evaluate, (0.5,))
    assert json.loads(json.dumps(found.as_dict())) == {
        "names": list(found.names),
        "sparsities": [0.5],
        "values": [list(v) for v in found.values],
        "baseline": found.baseline,
    }


def test_progress_changes_no_value(capsys):
    params, scores = make()
    quiet = sensitivity(params, scores, evaluate, (0.5,))
    assert capsys.readouterr().out == ""
    assert sensitivity(params, scores, evaluate, (0.5,), progress=True) == quiet
    assert "sensitivity" in capsys.readouterr().out


def test_bad_sparsities_and_scores_are_errors():
    params, scores = make()
    with pytest.raises(ValueError, match=r"1\.5"):
        sensitivity(params, scores, evaluate, (1.5,))
    with pytest.raises(ValueError, match="b/kernel"):
        sensitivity(params, scores | {"b": {"bias": jnp.ones(3)}}, evaluate)


def test_leaves_that_share_a_name_are_an_error():
    params = {"a/b": jnp.ones((2, 2)), "a": {"b": jnp.ones((2, 2))}}
    with pytest.raises(ValueError, match=r"share the names \['a/b'\]"):
        sensitivity(params, params, lambda p: 0.0)
