"""Pruners and training transformations on random trees, step by step against numpy."""

import warnings
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests import doubles
from tests.fuzz.drawing import (
    FEW,
    Row,
    another_leaf,
    each,
    float_specs,
    floats,
    holds,
    is_floating,
    nested,
    random_mask,
    raw,
    same_tree,
    spoiled,
)

MAGNITUDE = jp.saliency.magnitude()
TWO = (((3, 4), "float32"), ((4,), "float32"))
BY_RANK = jp.select.lowest(prunable=is_floating)
BY_LEAF = jp.select.lowest("layer", prunable=is_floating, floor=0)


def plain(params, batch):
    """Magnitude as a user's own function: nothing is compiled for a new tree."""

    def size(w):
        weight = is_floating("", w)
        return np.abs(np.asarray(w, np.float32)) if weight else np.zeros(w.shape, np.float32)

    return jax.tree.map(size, params)


def weights(draw):
    """A tree of weights, with leaves that are none among them; their names."""
    specs = float_specs(draw) if draw.wide else FEW[0]
    leaves = [jnp.asarray(floats(draw, *spec)) for spec in specs]
    if draw.yes():
        leaves.append(another_leaf(draw))
    return nested(draw, leaves)


def prunable(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree) if is_floating("", x)]


def sizes(tree):
    """Magnitudes as a selection reads them."""
    return [doubles.flushed(np.abs(x.astype(np.float32))) for x in prunable(tree)]


def masked(tree, mask):
    """`where(mask, w, 0)` bit by bit, in numpy; keys and flags as they are."""

    def leaf(w, keep):
        if w.dtype == bool or jnp.issubdtype(w.dtype, jax.dtypes.prng_key):
            return raw(w)
        return raw(np.where(np.asarray(keep), np.asarray(w), np.zeros((), w.dtype)))

    return jax.tree.leaves(jax.tree.map(leaf, tree, mask), is_leaf=lambda x: isinstance(x, tuple))


def bits(tree):
    return jax.tree.leaves(jax.tree.map(raw, tree), is_leaf=lambda x: isinstance(x, tuple))


def is_masked(found, tree, mask):
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    assert bits(found) == masked(tree, mask)


def shares(draw, tree):
    """Two rising sparsities that the floor of one allows."""
    n = [x.size for x in prunable(tree)]
    most = sum(max(k - 1, 0) for k in n)
    goes = sorted(draw.number(0, most) for _ in range(2))
    return [k / max(sum(n), 1) for k in goes]


def at_once(draw):
    """The mask is the ranking's; to go on from a mask is to prune at once; bad scores are named."""
    tree, names = weights(draw)
    low, high = shares(draw, tree)
    prune = jp.one_shot(MAGNITUDE if draw.wide else plain, BY_RANK)
    some = prune(tree, sparsity=low)
    more = prune(tree, sparsity=high, mask=some.mask)
    for found, share in ((some, low), (more, high)):
        for mask, truth in zip(
            taken(found.mask, tree), doubles.one_ranking(sizes(tree), share), strict=True
        ):
            np.testing.assert_array_equal(mask, truth)
        is_masked(found.params, tree, found.mask)
        n = sum(x.size for x in prunable(tree))
        assert (found.info["prunable"], found.info["kept"]) == (n, n - round(share * n))
    if round(low * n) < round(high * n):
        with pytest.raises(ValueError, match="pruned already"):
            prune(tree, sparsity=low, mask=more.mask)
    with pytest.raises(ValueError, match="must lie in"):
        prune(tree, sparsity=1.0)
    leaves = jax.tree.leaves(tree)
    full = [i for i, x in enumerate(leaves) if x.size and is_floating("", x)]
    if full:
        i = draw.one(full)
        leaves[i] = spoiled(draw, leaves[i])
        with pytest.raises(ValueError, match="infinite") as caught:
            prune(same_tree(tree, leaves), sparsity=low)
        assert f"{jp.trees.label(names[i])} is" in str(caught.value)


def taken(mask, tree):
    """The masks of the leaves that take part, in order; the others keep all."""
    pairs = zip(jax.tree.leaves(mask), jax.tree.leaves(tree), strict=True)
    found = [(np.asarray(m), is_floating("", w)) for m, w in pairs]
    assert all(m.all() for m, part in found if not part)
    return [m for m, part in found if part]


def in_rounds(draw):
    """Rounds nest and end where one shot does; what tuning revives is zeroed, with a warning."""
    tree, _ = weights(draw)
    _, end = shares(draw, tree)
    rounds = draw.number(1, 3)
    prune = jp.one_shot(MAGNITUDE if draw.wide else plain, BY_RANK)
    seen = []

    def tune(params, mask):
        seen.append(mask)
        return params if quiet else tree

    quiet = draw.yes()
    slow = jp.iterative(prune, jp.schedule.cubic(0.5, rounds), rounds, tune)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = slow(tree, sparsity=end)
    at_once_ = prune(tree, sparsity=end)
    assert bits(found.mask) == bits(at_once_.mask)
    is_masked(found.params, tree, found.mask)
    for before, after in pairwise(seen):
        for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True):
            assert not (np.asarray(b) & ~np.asarray(a)).any()
    gone = [~m & (w != 0) for m, w in zip(taken(found.mask, tree), prunable(tree), strict=True)]
    if not quiet and any(g.any() for g in gone):
        subnormal = all((np.abs(w[g].astype(np.float32)) < 1.2e-38).all()
                        for w, g in zip(prunable(tree), gone, strict=True))  # fmt: skip
        assert subnormal or any("fine_tune revived" in str(w.message) for w in caught)
    with pytest.raises(ValueError, match="must rise"):
        jp.iterative(prune, lambda r: 0.9 - 0.1 * r, 2 + rounds)


def tickets(draw):
    tree, _ = weights(draw)
    mask = random_mask(draw, tree)
    info = {"kept": jp.trees.keep(mask)}
    given = draw.one([mask, jp.Pruned(tree, mask, info)])
    is_masked(jp.rewind(given, tree), tree, mask)
    with pytest.raises(TypeError, match="a mask is bool"):
        jp.rewind(jax.tree.map(lambda m: m.astype(np.int8), mask), tree)


def training(draw, few=3):
    """Float weights in a tree, and gradients of them: leaves of a shape that compiled before."""
    specs = [(shape, "float32") for shape, _ in float_specs(draw)] if draw.wide else TWO
    leaves = [jnp.asarray(floats(draw, *spec, "ties")) for spec in specs]
    tree = nested(draw, leaves)[0] if draw.wide else {"a": leaves, "b": None}
    gradients = [
        same_tree(
            tree, [jnp.asarray(floats(draw, *s, draw.one(["ties", "normal"]))) for s in specs]
        )
        for _ in range(few)
    ]
    return tree, gradients


def stepped(tx, tree, gradients, update=None):
    """`(params, state)` before the first step and after each."""
    state = tx.init(tree)
    yield tree, state
    for gradient in gradients:
        updates, state = (update or tx.update)(gradient, state, tree)
        tree = optax.apply_updates(tree, updates)
        yield tree, state


def frozen(draw):
    """Kept weights take their steps with momentum, pruned ones are 0 whatever it says."""
    tree, gradients = training(draw)
    mask = random_mask(draw, tree)
    tx = optax.chain(optax.sgd(0.5, momentum=0.5), jp.freeze_pruned(mask))
    *_, (found, state) = stepped(tx, tree, gradients)
    parts = zip(*map(jax.tree.leaves, (tree, mask, found, *gradients)), strict=True)
    for w, keep, new, *slopes in parts:
        w, speed = np.asarray(w), np.float32(0)
        for slope in slopes:
            speed = np.float32(0.5) * speed + np.asarray(slope)
            w = w - np.float32(0.5) * speed
        np.testing.assert_allclose(new, np.where(keep, w, 0), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(np.asarray(new)[~np.asarray(keep)], 0)
    assert bits(jp.mask_of(state)) == bits(mask)
    other = jax.tree.map(jnp.logical_not, mask)
    assert bits(jp.mask_of(jp.with_mask(state, other))) == bits(other)
    with pytest.raises(ValueError, match="expected one"):
        jp.mask_of((state, state))
    with pytest.raises(ValueError, match="does not have the tree structure"):
        jp.with_mask(state, {"other": mask})
    with pytest.raises(TypeError, match="a mask is bool"):
        jp.freeze_pruned(jax.tree.map(lambda m: m.astype(np.int8), mask)).init(tree)


def frozen_at_random(draw):
    """Exactly `round(sparsity n)` of each leaf go, where the key says, and stay."""
    tree, gradients = training(draw, 1)
    share, key = draw.number(0, 99) / 100, jax.random.key(draw.number(0, 9))
    tx = jp.transforms.freeze_random(key, share, BY_LEAF)
    *_, (found, state) = stepped(tx, tree, gradients)
    mask = jp.mask_of(state)
    for w, m in zip(*map(jax.tree.leaves, (found, mask)), strict=True):
        assert (~np.asarray(m)).sum() == round(share * m.size)
        np.testing.assert_array_equal(np.asarray(w)[~np.asarray(m)], 0)
    assert bits(mask) == bits(jp.mask_of(tx.init(tree)))
    drawn = jp.saliency.random(key)(tree)
    for m, s in zip(*map(jax.tree.leaves, (mask, drawn)), strict=True):
        np.testing.assert_array_equal(m, doubles.by_leaf([np.asarray(s)], [share])[0])


GRADUAL = jp.prune_gradually(MAGNITUDE, BY_RANK, jp.schedule.linear(0.6, 4), every=2)
GRADUAL_UPDATE = jax.jit(GRADUAL.update)


def gradual(draw):
    """At steps 0, 2, .. what is left is ranked anew; nothing that is pruned comes back."""
    tree, gradients = training(draw, 6)
    n = sum(x.size for x in prunable(tree))
    most = sum(max(x.size - 1, 0) for x in prunable(tree))
    mask = [np.ones(x.shape, bool) for x in prunable(tree)]
    states = stepped(GRADUAL, tree, gradients, GRADUAL_UPDATE)
    before, _ = next(states)
    for step, (after, state) in enumerate(states):
        if step % 2 == 0:
            share = 0.6 * min(step / 4, 1)
            ranking = [np.where(m, s, -np.inf) for m, s in zip(mask, sizes(before), strict=True)]
            goes = min(round(round(share, 7) * n), most)
            mask = doubles.one_ranking(ranking, goes / max(n, 1))
        kept, left = (jax.tree.leaves(t) for t in (jp.mask_of(state), after))
        for m, found, w in zip(mask, kept, left, strict=True):
            np.testing.assert_array_equal(found, m)
            np.testing.assert_array_equal(np.asarray(w)[~m], 0)
        before = after
    with pytest.raises(ValueError, match="were not passed"):
        GRADUAL.update(gradients[0], GRADUAL.init(tree))


THROUGH = jp.straight_through(MAGNITUDE, BY_RANK, jp.schedule.constant(0.4))
THROUGH_UPDATE = jax.jit(THROUGH.update)


def through(draw):
    """The parameters in hand are masked dense ones, which take every step."""
    tree, gradients = training(draw)
    dense = prunable(tree)
    n, most = sum(x.size for x in dense), sum(max(x.size - 1, 0) for x in dense)
    states = stepped(THROUGH, tree, gradients, THROUGH_UPDATE)
    next(states)
    for gradient, (after, _) in zip(gradients, states, strict=True):
        dense = [w + np.asarray(g) for w, g in zip(dense, jax.tree.leaves(gradient), strict=True)]
        goes = min(round(0.4 * n), most)
        mask = doubles.one_ranking([np.abs(w) for w in dense], goes / max(n, 1))
        for w, m, found in zip(dense, mask, jax.tree.leaves(after), strict=True):
            np.testing.assert_allclose(found, np.where(m, w, 0), rtol=1e-5, atol=1e-6)


def moved(draw):
    """Counts never change; what grows is of the largest gradients; pruned stays 0."""
    tree, gradients = training(draw, 5)
    mask = random_mask(draw, tree)
    tx = jp.regrow(optax.sgd(0.5), mask=mask, every=2, stop=9, fraction=lambda t: 0.5,
                   prunable=is_floating)  # fmt: skip
    start = jp.apply_mask(tree, mask)
    states = stepped(tx, start, gradients, jax.jit(tx.update))
    old, before = next(states)[0], mask
    for step, (after, state) in enumerate(states):
        now = jp.mask_of(state)
        for w, g, a, b, new in zip(*map(jax.tree.leaves, (old, gradients[step], before, now,
                                                          after)), strict=True):  # fmt: skip
            w, g, a, b = map(np.asarray, (w, g, a, b))
            expected = a
            if step in (2, 4):
                k = int(np.round(np.float32(0.5) * a.sum()))
                left = doubles.lose(np.where(a, np.abs(w), -np.inf), a.size - a.sum() + k)
                grown = doubles.lose(np.where(left, -np.inf, np.abs(g)), a.size - k)
                expected = left | grown
                still = np.where(expected & a, w, 0)
                np.testing.assert_array_equal(new, still)
            np.testing.assert_array_equal(b, expected)
            np.testing.assert_array_equal(np.asarray(new)[~b], 0)
        old, before = after, now


def renewed(draw):
    """Moments of the chosen entries start again, the others stay, bit for bit."""
    tree, gradients = training(draw, 1)
    tx = optax.adam(0.1)
    *_, (_, state) = stepped(tx, tree, gradients)
    chosen = random_mask(draw, tree)
    new = jp.transforms.reset_moments(tx, state, tree, chosen)
    for part in ("mu", "nu"):
        old, now = getattr(state[0], part), getattr(new[0], part)
        assert bits(now) == masked(old, jax.tree.map(jnp.logical_not, chosen))
    assert bits(new[0].count) == bits(state[0].count)
    with pytest.raises(ValueError, match="tree of entries to reset"):
        jp.transforms.reset_moments(tx, state, tree, [chosen])


LAWS = {
    "one_shot": Row(at_once, fast=7, slow=500),
    "iterative": Row(in_rounds, fast=6, slow=300),
    "rewind": Row(tickets, fast=10),
    "apply_mask": Row(tickets, fast=10),
    "transforms.freeze_pruned": Row(frozen, fast=3, slow=300),
    "transforms.mask_of": Row(frozen, fast=3, slow=300),
    "transforms.with_mask": Row(frozen, fast=3, slow=300),
    "transforms.freeze_random": Row(frozen_at_random, fast=1, slow=300),
    "transforms.prune_gradually": Row(gradual, fast=2, slow=200),
    "transforms.straight_through": Row(through, fast=2, slow=200),
    "transforms.regrow": Row(moved, fast=1, slow=200),
    "transforms.reset_moments": Row(renewed, fast=2, slow=300),
}


@each(LAWS)
def test_pruners_and_transformations_do_what_numpy_does(row):
    holds(row)


@pytest.mark.slow
@each(LAWS, wide=True)
def test_pruners_and_transformations_do_what_numpy_does_in_hundreds_of_cases(row):
    holds(row, wide=True)
