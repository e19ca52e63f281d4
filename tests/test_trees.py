"""Names, masks over trees, and counts in integers."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import trees
from tests.laws import TREES
from tests.near import assert_trees_equal


@pytest.mark.parametrize("name", TREES)
def test_the_default_predicate_takes_the_weights_of_every_kind_of_tree(name):
    row = TREES[name]
    params = row.make()
    taken = {n for n, leaf in trees.named_leaves(params) if trees.default_prunable(n, leaf)}
    assert taken == row.prunable


@pytest.mark.parametrize("name", TREES)
def test_names_tell_leaves_apart(name):
    names = trees.paths(TREES[name].make())
    assert len(set(names)) == len(names)


def test_the_value_of_nnx_and_of_linens_boxes_is_not_part_of_a_name():
    boxed = {"dense": {"kernel": nn.Partitioned(jnp.ones((2, 2)), names=("a", "b"))}}
    assert trees.paths(boxed) == ["dense/kernel"]


def test_a_field_called_value_with_siblings_keeps_its_name():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Attention:
        query: jax.Array
        value: jax.Array

    both = Attention(jnp.ones((2, 2)), jnp.ones((2, 2)))
    assert trees.paths({"bias": both}) == ["bias/query", "bias/value"]
    assert trees.paths(both) == ["query", "value"]
    assert all(trees.default_prunable(*leaf) for leaf in trees.named_leaves({"bias": both}))


@pytest.mark.parametrize("last", ["bias", "scale", "embedding", "mean", "var"])
def test_leaves_that_are_weights_in_shape_only_are_left_out(last):
    assert not trees.default_prunable(f"block/{last}", jnp.ones((3, 3)))
    assert trees.default_prunable(f"{last}/kernel", jnp.ones((3, 3)))


def test_a_mask_zeroes_and_keeps_bits_dtypes_and_what_cannot_be_zero():
    params = {
        "f16": jnp.array([1.5, jnp.nan, jnp.inf, -0.0], jnp.float16),
        "flag": jnp.array([True, False]),
        "int": jnp.array([3, 4]),
        "key": jax.random.key(0),
        "complex": jnp.array([1 + 2j, 3j]),
    }
    mask = jax.tree.map(lambda x: jnp.ones(x.shape, bool), params)
    assert_trees_equal(trees.apply_mask(params, mask), params)
    mask["f16"] = jnp.array([True, False, False, True])
    mask["int"] = jnp.array([False, True])
    mask["complex"] = jnp.array([False, True])
    masked = trees.apply_mask(params, mask)
    assert_trees_equal(
        masked,
        {
            **params,
            "f16": jnp.array([1.5, 0, 0, -0.0], jnp.float16),
            "int": jnp.array([0, 4]),
            "complex": jnp.array([0, 3j]),
        },
    )
    assert_trees_equal(jax.jit(trees.apply_mask)(params, mask), masked)
    assert_trees_equal(trees.apply_mask(masked, mask), masked)


def test_the_full_mask_keeps_every_value_inside_jit_and_outside():
    params = {
        "float": jnp.array([-jnp.inf, -2, -1, -0.5, -0.0, 0, 0.5, 1, 2, jnp.inf, jnp.nan]),
        "int": jnp.array([-2, 0, 2]),
        "key": jax.random.split(jax.random.key(0)),
        "number": 0.5,
    }
    whole = {name: jnp.ones(jnp.shape(leaf), bool) for name, leaf in params.items()}
    assert_trees_equal(trees.full_mask(params), whole)
    assert_trees_equal(jax.jit(trees.full_mask)(params), whole)


def test_either_the_parameters_or_the_mask_alone_may_be_traced():
    params, mask = [jnp.array([1.0, 2.0])], [jnp.array([True, False])]
    expected = trees.apply_mask(params, mask)
    assert_trees_equal(jax.jit(lambda m: trees.apply_mask(params, m))(mask), expected)
    assert_trees_equal(jax.jit(lambda p: trees.apply_mask(p, mask))(params), expected)


def test_counts_are_exact_integers_inside_jit_and_outside():
    rng = np.random.default_rng(0)
    mask = [jnp.asarray(rng.random(s) < 0.7) for s in ((1000, 17), (3,), (), (0, 4))]
    kept = sum(int(np.asarray(m).sum()) for m in mask)
    assert trees.count(mask) == 17_004
    assert (trees.keep(mask), trees.drop(mask)) == (kept, 17_004 - kept)
    assert trees.keep([np.asarray(m) for m in mask] + [True, False]) == kept + 1
    inside = jax.jit(lambda m: (trees.keep(m), trees.drop(m), trees.sparsity(m)))(mask)
    assert inside[0].dtype == jnp.int32
    assert (int(inside[0]), int(inside[1])) == (kept, 17_004 - kept)
    assert trees.sparsity(mask) == (17_004 - kept) / 17_004
    np.testing.assert_allclose(inside[2], trees.sparsity(mask), rtol=1e-7)


@pytest.mark.parametrize("keeps", [True, False])
def test_a_mask_of_one_entry_is_pruned_whole_or_not_at_all(keeps):
    mask = [np.array([keeps])]
    assert trees.sparsity(mask) == trees.prunable_counts(mask, [True])["sparsity"] == 1 - keeps


@pytest.mark.parametrize("empty", [[], [np.ones((0, 2), bool)]])
def test_of_no_entries_none_are_pruned(empty):
    assert trees.sparsity(empty) == 0


def test_what_a_pruner_counts_is_of_the_flagged_leaves():
    mask = {
        "a": jnp.array([[True, False]]),
        "b": jnp.zeros((3,), bool),
        "c": jnp.zeros((0, 2), bool),
    }
    counted = trees.prunable_counts(mask, [True, False, True])
    assert counted == {"kept": 1, "prunable": 2, "sparsity": 0.5}
    assert trees.prunable_counts(mask, [False, False, True])["sparsity"] == 1
    inside = jax.jit(lambda m: trees.prunable_counts(m, [True, True, True]))(mask)
    assert (int(inside["kept"]), int(inside["prunable"])) == (1, 5)


@pytest.mark.parametrize("like", [np.ones(2), 1.0, jnp.ones(2), "committed"])
def test_an_array_from_the_host_goes_where_another_one_is(like):
    last = jax.devices()[-1]
    if isinstance(like, str):
        like = jax.device_put(jnp.ones(2), last)
    found = trees.from_host(np.array([1.0, 2.0], np.float32), like)
    assert_trees_equal(found, jnp.array([1.0, 2.0]))
    committed = isinstance(like, jax.Array) and like.committed
    assert found.committed == committed
    assert found.devices() == ({last} if committed else {jax.devices()[0]})


def test_a_count_past_two_to_the_24_is_not_rounded():
    n = 2**24 + 1  # the first integer that float32 cannot tell from its neighbour
    assert int(jax.jit(trees.keep)([np.ones(n, bool)])) == n


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1), ()])
def test_totals_count_along_axes_and_keep_them(axes):
    rng = np.random.default_rng(1)
    flags = [rng.random((3, 4)) < p for p in (0.2, 0.8)]
    for some in (flags[:1], flags):
        found = trees.totals([jnp.asarray(f) for f in some], axes)
        for total, flag in zip(found, some, strict=True):
            np.testing.assert_array_equal(total, flag.sum(axes, keepdims=True))


def test_replacing_the_selected_leaves_with_themselves_changes_nothing():
    params = TREES["nested dict"].make()
    flags = [True, False, True]
    same = trees.replace_leaves(params, flags, trees.select_leaves(params, flags))
    assert_trees_equal(same, params)
