"""Laws that every selection keeps, whatever the scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests import doubles
from tests.laws import SELECTIONS, SHAPES, prunable_leaves, weights
from tests.near import assert_trees_equal, no_compilation

SPARSITIES = [0.0, 0.1, 0.25, 0.5, 0.7, 0.9]
TOTAL = sum(int(np.prod(shape)) for shape in SHAPES.values())
SOME = ["global", "layer", "output", "2:4 along inputs", "blocks 2x2"]  # one of each mechanism
BY_SPARSITY = [name for name, row in SELECTIONS.items() if row.sparsity is None]


def sparsities(row):
    return SPARSITIES if row.sparsity is None else [row.sparsity]


def draw(kind: str) -> list[np.ndarray]:
    """Float32 scores of the prunable leaves; all sums of a block of them are exact."""
    rng = np.random.default_rng(list(kind.encode()))
    integers = lambda low, high: [rng.integers(low, high, s) for s in SHAPES.values()]
    if kind == "distinct":
        flat = rng.permutation(TOTAL) - TOTAL // 3
        cuts = np.cumsum([int(np.prod(s)) for s in SHAPES.values()])[:-1]
        found = [x.reshape(s) for x, s in zip(np.split(flat, cuts), SHAPES.values(), strict=True)]
    elif kind == "few values":
        found = integers(-2, 3)
    elif kind == "all equal":
        found = [np.full(s, 7) for s in SHAPES.values()]
    elif kind == "all negative":
        found = integers(-(2**12), 0)
    elif kind == "zeros of both signs":
        found = [np.where(rng.random(s) < 0.5, -0.0, 0.0) for s in SHAPES.values()]
    elif kind == "partly pruned":
        found = [np.where(rng.random(s) < 0.08, -np.inf, x) for s, x in zip(
            SHAPES.values(), integers(-50, 50), strict=True)]  # fmt: skip
    return [x.astype(np.float32) for x in found]


KINDS = ["distinct", "few values", "all equal", "all negative", "zeros of both signs"]


def choose(row, scores, sparsity):
    tree = weights([jnp.asarray(s) for s in scores])
    return row.make()(tree, tree, sparsity=sparsity)


@functools.cache
def sweep(name):
    """Masks for many traced sparsities at once: [sparsities, ...] per leaf, and the sparsities."""
    many = np.linspace(0, 0.9, 91).round(7)
    tree = weights([jnp.asarray(s) for s in draw("few values")])
    select = SELECTIONS[name].make()
    masks = jax.jit(jax.vmap(lambda s: select(tree, tree, sparsity=s)))(jnp.float32(many))
    return many, prunable_leaves(masks)


@pytest.mark.every(3)
@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("kind", [*KINDS, "partly pruned"])
def test_a_selection_is_its_numpy_double(name, kind):
    row, scores = SELECTIONS[name], draw(kind)
    for sparsity in sparsities(row):
        reached = 0.7 if "erk" in name else 0.25  # of some part: less is an error, tested elsewhere
        if kind == "partly pruned" and row.sparsity is None and sparsity < reached:
            continue
        found = prunable_leaves(choose(row, scores, sparsity))
        for mask, expected in zip(found, row.double(list(SHAPES), scores, sparsity), strict=True):
            np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_exactly_as_many_go_as_were_asked_for_under_ties_too(name, kind):
    row, scores = SELECTIONS[name], draw(kind)
    for sparsity in sparsities(row):
        gone = sum(int((~m).sum()) for m in prunable_leaves(choose(row, scores, sparsity)))
        assert gone == row.count(list(SHAPES.values()), sparsity)


@pytest.mark.every(5)
@pytest.mark.parametrize("name", BY_SPARSITY)
def test_a_traced_sparsity_prunes_what_a_number_prunes(name):
    many, found = sweep(name)
    for i in range(0, len(many), 15):
        expected = prunable_leaves(choose(SELECTIONS[name], draw("few values"), float(many[i])))
        for masks, mask in zip(found, expected, strict=True):
            np.testing.assert_array_equal(masks[i], mask)


@pytest.mark.every(3)
@pytest.mark.parametrize("name", BY_SPARSITY)
def test_every_traced_sparsity_gives_the_exact_count(name):
    many, found = sweep(name)
    gone = sum((~m).reshape(len(many), -1).sum(1) for m in found)
    expected = [SELECTIONS[name].count(list(SHAPES.values()), float(s)) for s in many]
    # A share of n that is a half in decimals, such as .145 * 100, may go either way; the table has
    # no such share with Python's float product on the other side.
    np.testing.assert_array_equal(gone, expected)


@pytest.mark.parametrize("name", BY_SPARSITY)
def test_a_higher_sparsity_prunes_a_superset(name):
    for masks in sweep(name)[1]:
        assert (masks[1:] <= masks[:-1]).all()


@pytest.mark.parametrize("name", SELECTIONS)
def test_selecting_again_changes_nothing_and_what_was_pruned_stays(name):
    row, scores = SELECTIONS[name], draw("few values")
    for sparsity in sparsities(row):
        first = prunable_leaves(choose(row, scores, sparsity))
        # The pruned entries now have the best finite scores, hidden by the Pruner's -inf.
        hidden = [np.where(m, s, -np.inf).astype(np.float32)
                  for m, s in zip(first, scores, strict=True)]  # fmt: skip
        again = prunable_leaves(choose(row, hidden, sparsity))
        for a, b in zip(again, first, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", SELECTIONS)
def test_leaves_that_are_not_prunable_are_kept_whole(name):
    row = SELECTIONS[name]
    mask = choose(row, draw("all negative"), row.sparsity or 0.7)
    assert mask["dense"]["bias"].all()
    assert mask["step"].all()
    assert jax.tree.structure(mask) == jax.tree.structure(weights())
    assert {m.dtype for m in jax.tree.leaves(mask)} == {np.dtype(bool)}
    only = row.make(prunable=lambda n, leaf: n == "deep/0") if name != "mapping" else None
    if only is not None:
        tree = weights([jnp.asarray(s) for s in draw("distinct")])
        alone = only(tree, tree, sparsity=row.sparsity or 0.5)
        assert alone["conv"]["kernel"].all()
        assert not alone["deep"][0].all()


@pytest.mark.parametrize("name", BY_SPARSITY)
def test_zero_percent_is_a_bit_exact_no_op(name):
    row = SELECTIONS[name]
    if name == "mapping":
        row = row._replace(make=lambda: jp.select.lowest({"deep/0": lambda s: s}))
    params = weights([jnp.asarray(s) for s in draw("zeros of both signs")])
    params["conv"]["kernel"] = params["conv"]["kernel"].at[0, 0, 0, 0].set(1e-42)  # subnormal
    pruned = jp.one_shot(jp.saliency.magnitude(), row.make())(params, sparsity=0.0)
    assert all(m.all() for m in jax.tree.leaves(pruned.mask))
    assert_trees_equal(pruned.params, params)


@pytest.mark.parametrize("name", BY_SPARSITY)
def test_a_new_sparsity_and_new_scores_compile_nothing(name):
    trees = [weights([jnp.asarray(s) for s in draw(kind)]) for kind in ("distinct", "few values")]
    SELECTIONS[name].make()(trees[0], trees[0], sparsity=0.5)
    with no_compilation():
        SELECTIONS[name].make()(trees[1], trees[1], sparsity=0.3)


@pytest.mark.every(3)
@pytest.mark.parametrize("name", [*SOME, "erk"])
def test_a_stack_of_trees_under_vmap_is_selected_tree_by_tree(name):
    row, seeds = SELECTIONS[name], ("distinct", "all equal", "all negative")
    trees = [weights([jnp.asarray(s) for s in draw(kind)]) for kind in seeds]
    sparsity = row.sparsity or 0.5
    one = lambda tree: row.make()(tree, tree, sparsity=sparsity)
    stacked = jax.vmap(one)(jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees))
    for i, tree in enumerate(trees):
        assert_trees_equal(jax.tree.map(lambda m, i=i: m[i], stacked), one(tree))


@pytest.mark.parametrize("name", ["global", "layer", "erk", "mapping"])
def test_distinct_scores_are_ranked_wherever_they_stand(name):
    row, scores = SELECTIONS[name], draw("distinct")
    rng = np.random.default_rng(0)
    orders = [rng.permutation(s.size) for s in scores]
    shuffle = lambda x, order: x.ravel()[order].reshape(x.shape)
    mixed = [shuffle(s, o) for s, o in zip(scores, orders, strict=True)]
    plain = prunable_leaves(choose(row, scores, 0.6))
    for mask, m, order in zip(prunable_leaves(choose(row, mixed, 0.6)), plain, orders, strict=True):
        np.testing.assert_array_equal(mask, shuffle(m, order))


@pytest.mark.parametrize("name", [n for n in SELECTIONS if not n.startswith("blocks")])
def test_any_float_is_a_score(name):
    """Powers of ten from -37 to 38, both signs, the largest floats, and subnormals (= 0)."""
    row, rng = SELECTIONS[name], np.random.default_rng(0)
    scores = []
    for shape in SHAPES.values():
        powers = 10.0 ** rng.uniform(-44, 38.5, shape)
        x = np.clip(powers * rng.choice([-1, 1], shape), -3.4028234e38, 3.4028234e38)
        x[rng.random(shape) < 0.05] = 3.4028234e38
        x[rng.random(shape) < 0.05] = -3.4028234e38
        scores.append(x.astype(np.float32))
    for sparsity in sparsities(row):
        found = prunable_leaves(choose(row, scores, sparsity))
        expected = row.double(list(SHAPES), [doubles.flushed(s) for s in scores], sparsity)
        for mask, truth in zip(found, expected, strict=True):
            np.testing.assert_array_equal(mask, truth)


@pytest.mark.every(3)
@pytest.mark.parametrize("name", SOME)
def test_float64_scores_are_told_apart_where_float32_would_tie(name, x64):
    row, rng = SELECTIONS[name], np.random.default_rng(1)
    scores = [1.0 + 2.0**-40 * rng.integers(0, 1000, s) for s in SHAPES.values()]
    sparsity = row.sparsity or 0.5
    tree = weights([jnp.asarray(s, jnp.float64) for s in scores])
    found = prunable_leaves(row.make()(tree, tree, sparsity=sparsity))
    for mask, truth in zip(found, row.double(list(SHAPES), scores, sparsity), strict=True):
        np.testing.assert_array_equal(mask, truth)
