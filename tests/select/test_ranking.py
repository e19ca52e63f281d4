"""What is particular to `lowest`: floors, masks that came before, mappings."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests import doubles


def tree(*arrays):
    return [jnp.asarray(a, jnp.float32) for a in arrays]


BIG, SMALL = np.arange(1.0, 17).reshape(4, 4) + 100, np.arange(1.0, 5).reshape(2, 2)


@pytest.mark.parametrize("floor", [0, 1, 3, 4, 7])
def test_the_floor_keeps_each_leafs_best_and_the_total_stays_exact(floor):
    scores = tree(BIG, SMALL)  # every entry of SMALL ranks below every entry of BIG
    for goes in range(1, min(21 - floor - min(floor, 4), 20)):
        masks = jp.select.lowest(floor=floor)(scores, scores, sparsity=goes / 20)
        assert sum(int((~m).sum()) for m in masks) == goes
        small = min(goes, 4 - min(floor, 4))
        assert int((~masks[1]).sum()) == small
        np.testing.assert_array_equal(masks[1].ravel(), np.arange(4) >= small)
        np.testing.assert_array_equal(masks[0].ravel(), np.arange(16) >= goes - small)


def test_the_floor_is_kept_inside_jit_too_and_the_total_is_exact():
    rng = np.random.default_rng(0)
    for floor in (0, 1, 3):
        scores = [rng.integers(0, 4, s).astype(np.float32) for s in ((6, 5), (2, 2), (1, 3))]
        scores[1] -= 10
        select = jp.select.lowest(floor=floor)
        masks = jax.jit(lambda s, t, select=select: select(t, t, sparsity=s))
        for sparsity in (0.0, 0.2, 0.5, 0.75):
            found = masks(sparsity, tree(*scores))
            for m, expected in zip(
                found, doubles.one_ranking(scores, sparsity, floor), strict=True
            ):
                np.testing.assert_array_equal(m, expected)


def test_a_floor_that_forbids_the_sparsity_is_an_error_that_says_so():
    scores = tree(BIG, SMALL)
    with pytest.raises(ValueError, match=r"Cannot prune 19 of 20 entries: floor=1 protects 2"):
        jp.select.lowest()(scores, scores, sparsity=0.95)
    for scope in ("layer", "erk"):
        with pytest.raises(ValueError, match=r"leaf '.' would keep 0 of its .* floor=1"):
            jp.select.lowest(scope)(tree(SMALL), tree(SMALL), sparsity=0.95)
    with pytest.raises(ValueError, match="leaf '0' would keep 0 of its 4 entries"):
        jp.select.lowest("output")(tree(SMALL), tree(SMALL), sparsity=0.9)


@pytest.mark.every(3)
@pytest.mark.parametrize("scope", ["global", "layer", "output", "erk"])
@pytest.mark.parametrize("floor", [1, 2, 3])
def test_inside_jit_a_floor_that_forbids_the_sparsity_wins(scope, floor):
    scores = tree(BIG, SMALL)
    masks = jax.jit(lambda s: jp.select.lowest(scope, floor=floor)(scores, scores, sparsity=s))(
        0.99
    )
    for mask, leaf in zip(masks, scores, strict=True):
        kept = np.asarray(leaf)[np.asarray(mask)]
        assert kept.size >= floor
        assert kept.max() == leaf.max()
        if scope != "output":
            np.testing.assert_array_equal(np.sort(kept), np.sort(leaf.ravel())[-floor:])


def test_a_leaf_that_is_pruned_already_has_nothing_left_to_protect():
    scores = tree(BIG, np.full((2, 2), -np.inf))
    for sparsity in (0.2, 0.5, 0.75, 0.95):
        goes = round(sparsity * 20)
        eager = jp.select.lowest()(scores, scores, sparsity=sparsity)
        jitted = jax.jit(lambda s: jp.select.lowest()(scores, scores, sparsity=s))(sparsity)
        for masks in (eager, jitted):
            assert not masks[1].any()
            np.testing.assert_array_equal(masks[0].ravel(), np.arange(16) >= goes - 4)


@pytest.mark.parametrize("scope", ["global", "layer", "output"])
def test_less_than_is_pruned_already_raises_outside_jit_and_holds_inside(scope):
    scores = tree(np.where(np.arange(16).reshape(4, 4) < 8, -np.inf, BIG))
    select = jp.select.lowest(scope)
    with pytest.raises(ValueError, match=r"are pruned already, more than the \d asked for"):
        select(scores, scores, sparsity=0.25)
    held = jax.jit(lambda s: select(scores, scores, sparsity=s))(0.25)
    np.testing.assert_array_equal(held[0], np.isfinite(scores[0]))


def test_a_mapping_gives_leaves_their_own_sparsities_and_the_others_the_calls():
    params = {"a": jnp.asarray(BIG), "b": jnp.asarray(BIG), "c": jnp.asarray(BIG)}
    select = jp.select.lowest({"a": 0.25, "b": lambda s: s**2})
    gone = jax.tree.map(lambda m: int((~m).sum()), select(params, params, sparsity=0.5))
    assert gone == {"a": 4, "b": 4, "c": 8}
    traced = jax.jit(lambda s: select(params, params, sparsity=s))(0.5)
    assert jax.tree.map(lambda m: int((~m).sum()), traced) == gone


def test_a_mapping_that_names_every_leaf_needs_no_sparsity():
    params = {"a": jnp.asarray(BIG), "b": jnp.asarray(SMALL)}
    mask = jp.select.lowest({"a": 0.25, "b": 0.5})(params, params)
    assert [int((~m).sum()) for m in jax.tree.leaves(mask)] == [4, 2]
    with pytest.raises(ValueError, match="needs a sparsity"):
        jp.select.lowest({"a": 0.25})(params, params)


def test_scores_known_at_trace_time_are_selected_inside_jit():
    scores = tree(BIG)
    for sparsity in (0.5, None):
        given = jax.jit(lambda s, fixed=sparsity: jp.select.lowest()(
            scores, scores, sparsity=s if fixed is None else fixed))(0.5)  # fmt: skip
        np.testing.assert_array_equal(given[0].ravel(), np.arange(16) >= 8)


def test_empty_leaves_take_no_part():
    params = tree(BIG, np.zeros((0, 3)), np.zeros((3, 0)))
    for scope in ("global", "layer", "output", "erk"):
        masks = jp.select.lowest(scope)(params, params, sparsity=0.5)
        assert [int((~m).sum()) for m in masks] == [8, 0, 0]
        assert [m.shape for m in masks] == [p.shape for p in params]


def test_each_scope_says_which_entries_compete():
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(4), "c": jnp.ones((3, 2))}
    rows, columns = np.indices((2, 3))
    more_rows, more_columns = np.indices((3, 2))
    none = lambda leaf: np.zeros(leaf.shape)
    expected = {
        "global": (none(rows), none(more_rows)),
        "layer": (none(rows), none(more_rows) + 1),
        "erk": (none(rows), none(more_rows) + 1),
        "output": (columns, more_columns + 3),
    }
    for scope, (a, c) in expected.items():
        found = jp.select.lowest(scope).parts(params)
        jax.tree.map(np.testing.assert_array_equal, found, {"a": a, "b": np.full(4, -1), "c": c})
    for axis, a, c in ((0, rows, more_rows + 2), ({"c": 0}, columns, more_rows + 3)):
        found = jp.select.lowest("output", output_axis=axis).parts(params)
        jax.tree.map(np.testing.assert_array_equal, found, {"a": a, "b": np.full(4, -1), "c": c})
    assert jp.select.lowest("output", prunable=lambda *_: True).parts(jnp.ones(())) == 0


def test_an_output_axis_is_an_integer_of_any_kind_or_names_leaves_that_exist():
    tree = {"a": jnp.arange(12.0).reshape(4, 3), "b": jnp.arange(12.0).reshape(4, 3)}
    choose = lambda axis: jp.select.lowest("output", output_axis=axis)(tree, tree, sparsity=1 / 3)
    first = {"a": np.asarray([[False] + [True] * 2] * 4), "b": np.asarray([[True] * 3] * 4)}
    for axis in ({"a": np.int64(0)}, {"a": 0, "b": -1}):
        np.testing.assert_array_equal(choose(axis)["a"], first["a"])
        np.testing.assert_array_equal(choose(axis)["b"], choose(-1)["b"])
    np.testing.assert_array_equal(choose(np.int64(0))["b"], first["a"])
    with pytest.raises(ValueError, match=r"`output_axis` names 'c', and no leaf .*\['a', 'b'\]"):
        choose({"c": 0})
    for axis in (None, "0", 0.5, {"a": None}):
        with pytest.raises(TypeError, match="`output_axis` is an axis, an integer, or a mapping"):
            choose(axis)
    # Inside a wrapper that holds a leaf back its name is still one.
    part = {"a": tree["a"], "b": optax.MaskedNode()}
    assert jp.select.lowest("output", output_axis={"a": 0, "b": 0})(part, part, sparsity=0.5)
    whole = {"a": tree["a"], "c": optax.MaskedNode()}
    assert jp.select.lowest("output", output_axis={"a": 0, "c/d": 0})(whole, whole, sparsity=0.5)


def test_a_name_that_two_leaves_share_gives_neither_a_sparsity_of_its_own():
    tree = {"a/b": jnp.ones((2, 2)), "a": {"b": jnp.ones((2, 2))}, "c": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match=r"share the names \['a/b'\]"):
        jp.select.lowest({"a/b": 0.5})(tree, tree, sparsity=0.0)
    with pytest.raises(ValueError, match=r"share the names \['a/b'\]"):
        jp.select.lowest("output", output_axis={"a/b": 0})(tree, tree, sparsity=0.0)
    assert int(jp.select.lowest({"c": 0.5})(tree, tree, sparsity=0.0)["c"].sum()) == 2
