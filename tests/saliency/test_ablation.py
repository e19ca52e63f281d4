"""Ablation against masks by hand; damage from random masks against numpy and against ablation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.saliency import ablation
from tests.near import assert_near, no_compilation
from tests.saliency.unit_cases import bare, case, loss, mean_loss, near, vector

saliency = jp.saliency
KEY = jax.random.key(5)
UNITS = 12


def fall(outputs, targets):
    return targets - outputs[:, 0]


@functools.cache
def additive():
    """The loss is a sum over units, so that every damage is the unit's own."""
    rng = np.random.default_rng(1)
    params = [jnp.asarray(rng.normal(size=s)) for s in ((3, UNITS), (UNITS, 1))]
    apply = lambda w, x: jax.nn.relu(x @ w[0]) @ w[1]
    batch = (jnp.asarray(rng.normal(size=(7, 3))), jnp.asarray(rng.normal(size=7)))
    return params, batch, jp.couple(apply, params, batch[0])


@functools.cache
def measured(estimator, masks, rate=0.3, seed=5):
    """Damage and standard errors of the chain of 9 units: a loss that is not additive."""
    found, key = case("chain"), jax.random.key(seed)
    scorer = saliency.damage_with_errors(
        found.coupling, loss, key, masks=masks, rate=rate, estimator=estimator
    )
    stats = scorer.measure(found.params, found.batch)
    dropped = ablation._drawn(found.coupling, key, masks, rate, estimator, 1)
    return stats, scorer.score(found.params, stats), dropped


def in_order(scores, coupling):
    return np.concatenate([np.asarray(scores[name]) for name in coupling.groups])


@pytest.mark.every(3)
@pytest.mark.parametrize("name", ["chain", "residual", "conv", "resnext", "gqa_transformer"])
def test_ablation_is_the_loss_of_the_masked_model(name, x64):
    found = case(name)
    run = jax.jit(functools.partial(mean_loss, found))
    whole, expected = run(found.params, found.batch), {}
    for group_name, group in found.coupling.groups.items():
        alone = []
        for unit in range(group.units):
            if group.units == 1:
                mask = jax.tree.map(lambda x: jnp.ones(x.shape, bool), found.params)
                mask = without_group(found, group, mask)
            else:
                mask = found.coupling.mask({group_name: np.arange(group.units) != unit},
                                           found.params)  # fmt: skip
            alone.append(run(jp.apply_mask(found.params, mask), found.batch) - whole)
        expected[group_name] = np.array(alone)
    near(saliency.unit_ablation(found.coupling, loss)(found.params, found.batch), expected)


def without_group(found, group, mask):
    leaves = {name: np.array(leaf) for name, leaf in jp.trees.named_leaves(mask)}
    for member in group.members:
        leaves[member.leaf][(slice(None),) * member.axis + (member.positions.ravel(),)] = False
    return jax.tree.unflatten(jax.tree.structure(mask), list(leaves.values()))


def test_chunks_change_nothing(x64):
    found = case("residual")
    whole = saliency.unit_ablation(found.coupling, loss)(found.params, found.batch)
    for chunk in (1, 5, 100):
        scorer = saliency.unit_ablation(found.coupling, loss, chunk=chunk)
        near(scorer(found.params, found.batch), whole, 1e3)
    masks = lambda chunk: saliency.dropout_damage(
        found.coupling, loss, KEY, masks=10, rate=0.4, chunk=chunk
    )
    stats = [masks(chunk).measure(found.params, found.batch).sums for chunk in (None, 1, 4)]
    for other in stats[1:]:
        assert_near(other, stats[0], jnp.float64)


def test_a_unit_that_nobody_hears_of_can_go():
    found = bare("chain")
    silent = found.params["two"]["kernel"].at[2].set(0)
    params = {**found.params, "two": {"kernel": silent}}
    scores = saliency.unit_ablation(found.coupling, loss)(params, found.batch)
    assert scores["one"][2] == 0
    assert (np.delete(vector(scores), 2) != 0).all()


@pytest.mark.parametrize("estimator", ["difference", "least_squares"])
def test_stats_are_losses_summed_over_examples_under_the_same_masks(estimator, x64):
    found = case("chain")
    scorer = saliency.dropout_damage(
        found.coupling, loss, KEY, masks=20, rate=0.3, estimator=estimator
    )
    parts = [jax.tree.map(lambda x, s=s: x[s], found.batch) for s in (slice(0, 2), slice(2, 5))]
    first, second = (scorer.measure(found.params, part) for part in parts)
    whole = scorer.measure(found.params, found.batch)
    both = saliency.add(first, second)
    assert (int(both.count), both.sums.shape) == (5, (20,))
    assert_near(both.sums, whole.sums, jnp.float64)
    near(scorer.score(found.params, both), scorer(found.params, found.batch), 1e4)


def test_each_mask_drops_what_was_drawn_and_each_unit_its_share(x64):
    stats, _, dropped = measured("difference", 20)
    assert dropped.shape == (20, 9)
    np.testing.assert_array_equal(dropped.sum(0), 6)
    assert len(np.unique(dropped.T, axis=0)) == 9
    found = case("chain")
    sizes = np.cumsum([g.units for g in found.coupling.groups.values()])[:-1]
    for row in (0, 7, 19):
        kept = dict(zip(found.coupling.groups, np.split(~dropped[row], sizes), strict=True))
        masked = jp.apply_mask(found.params, found.coupling.mask(kept, found.params))
        expected = 5 * mean_loss(found, masked, found.batch)
        assert_near(stats.sums[row], expected, jnp.float64, 1e3)


def test_the_difference_and_its_error_are_those_of_numpy(x64):
    stats, (damage, error), dropped = measured("difference", 40)
    losses, coupling = np.asarray(stats.sums) / 5, case("chain").coupling
    gone = [losses[column] for column in dropped.T]
    kept = [losses[~column] for column in dropped.T]
    expected = [g.mean() - k.mean() for g, k in zip(gone, kept, strict=True)]
    assert_near(in_order(damage, coupling), expected, jnp.float64, 1e3)
    expected = [np.sqrt(g.var(ddof=1) / len(g) + k.var(ddof=1) / len(k))
                for g, k in zip(gone, kept, strict=True)]  # fmt: skip
    assert_near(in_order(error, coupling), expected, jnp.float64, 1e3)


def test_least_squares_and_their_errors_are_those_of_numpy(x64):
    stats, (damage, error), dropped = measured("least_squares", 40)
    losses, coupling = np.asarray(stats.sums) / 5, case("chain").coupling
    design = np.concatenate([np.ones((40, 1)), dropped], 1)
    fit, residue, _, _ = np.linalg.lstsq(design, losses)
    assert_near(in_order(damage, coupling), fit[1:], jnp.float64, 1e4)
    covariance = np.linalg.inv(design.T @ design) * residue / (40 - 10)
    assert_near(in_order(error, coupling), np.sqrt(np.diag(covariance))[1:], jnp.float64, 1e4)


@pytest.mark.parametrize(("masks", "rate"), [(24, 0.5), (60, 0.1)])
def test_least_squares_are_exact_where_damages_add_up(masks, rate, x64):
    params, batch, coupling = additive()
    exact = saliency.unit_ablation(coupling, fall)(params, batch)
    scorer = saliency.damage_with_errors(
        coupling, fall, KEY, masks=masks, rate=rate, estimator="least_squares"
    )
    damage, error = scorer(params, batch)
    near(damage, exact, 1e4)
    assert np.max(vector(error)) < 1e-10


def test_as_many_masks_as_unknowns_are_enough_for_damage_but_not_for_errors(x64):
    params, batch, coupling = additive()
    options = {"masks": UNITS + 1, "rate": 0.5, "estimator": "least_squares"}
    damage = saliency.dropout_damage(coupling, fall, KEY, **options)(params, batch)
    near(damage, saliency.unit_ablation(coupling, fall)(params, batch), 1e5)
    with pytest.raises(ValueError, match="at least 14 masks"):
        saliency.damage_with_errors(coupling, fall, KEY, **options)


def test_differences_go_to_ablation_and_their_errors_cover(x64):
    """Over 400 keys and 12 units: centred, two errors cover 95 %, and fall as 1 / sqrt(masks)."""
    params, batch, coupling = additive()
    exact = in_order(saliency.unit_ablation(coupling, fall)(params, batch), coupling)

    def estimated(masks, key):
        dropped = ablation._drawn(coupling, key, masks, 0.2, "difference", 1).astype(float)
        return ablation._difference(dropped, 1.7 + dropped @ exact)  # what the model would say

    found = {}
    for masks in (100, 800):
        keys = jax.random.split(KEY, 400)
        damage, error = jax.jit(jax.vmap(functools.partial(estimated, masks)))(keys)
        assert 0.93 < np.mean(np.abs(damage - exact) < 2 * error) < 0.97
        assert (np.abs(np.mean(damage - exact, 0)) < 4 * np.std(damage, 0) / 400**0.5).all()
        np.testing.assert_allclose(np.std(damage, 0), np.mean(error, 0), rtol=0.15)
        found[masks] = np.mean(error)
    assert 0.95 * 8**-0.5 < found[800] / found[100] < 1.05 * 8**-0.5
    scorer = saliency.dropout_damage(coupling, fall, KEY, masks=800, rate=0.2)
    distance = np.abs(in_order(scorer(params, batch), coupling) - exact)
    assert np.max(distance) < 4 * found[800]


def test_least_squares_know_more_than_differences_of_the_same_masks(x64):
    _, (_, rough), _ = measured("difference", 60)
    _, (_, fine), _ = measured("least_squares", 60)
    assert np.mean(vector(fine)) < 0.8 * np.mean(vector(rough))


def test_dropout_damage_is_the_damage_with_errors_and_their_stats_are_the_same(x64):
    stats, (damage, _), _ = measured("difference", 20)
    found = case("chain")
    scorer = saliency.dropout_damage(found.coupling, loss, KEY, masks=20, rate=0.3)
    near(scorer.score(found.params, stats), damage, 0)
    assert_near(scorer.measure(found.params, found.batch).sums, stats.sums, jnp.float64)


def test_other_keys_draw_other_masks_and_traced_keys_the_same(x64):
    found = case("chain")
    damage = lambda key: saliency.dropout_damage(
        found.coupling, loss, key, masks=20, rate=0.3, estimator="least_squares"
    )(found.params, found.batch)
    here = damage(KEY)
    near(jax.jit(damage)(KEY), here, 1e4)
    assert np.max(np.abs(vector(damage(jax.random.key(6))) - vector(here))) > 1e-3


def test_a_second_call_compiles_nothing():
    found = bare("chain")
    scorers = [
        saliency.unit_ablation(found.coupling, loss, chunk=4),
        saliency.dropout_damage(found.coupling, loss, KEY, masks=10, rate=0.3, chunk=4),
    ]
    moved = jax.tree.map(lambda w: 1.5 * w, found.params)
    for scorer in scorers:
        scorer(found.params, found.batch)
        with no_compilation():
            scorer(moved, found.batch)


BAD = [
    ({"masks": 0}, "`masks` is how many"),
    ({"masks": 2.5}, "`masks` is how many"),
    ({"masks": 8, "chunk": 0}, "`chunk` is how many"),
    ({"masks": 8, "rate": 0.0}, r"in \(0, 1\)"),
    ({"masks": 8, "rate": 1.0}, r"in \(0, 1\)"),
    ({"masks": 8, "rate": True}, r"in \(0, 1\)"),
    ({"masks": 4, "rate": 0.1}, "dropped in 0 of 4 masks"),
    ({"masks": 4, "rate": 0.9}, "dropped in 4 of 4 masks"),
    ({"masks": 9, "rate": 0.5, "estimator": "least_squares"}, "at least 10 masks, got 9"),
    ({"masks": 12, "rate": 0.1, "estimator": "least_squares"}, "too alike"),
    ({"masks": 8, "estimator": "ridge"}, "one of .*difference"),
]


@pytest.mark.parametrize(("options", "text"), BAD, ids=str)
def test_bad_input_is_told(options, text):
    with pytest.raises(ValueError, match=text):
        saliency.dropout_damage(chain_coupling(), loss, KEY, **options)


@functools.cache
def chain_coupling():
    return bare("chain").coupling


def test_errors_want_two_masks_of_each_kind():
    options = {"masks": 10, "rate": 0.1}
    saliency.dropout_damage(chain_coupling(), loss, KEY, **options)
    with pytest.raises(ValueError, match="at least 2"):
        saliency.damage_with_errors(chain_coupling(), loss, KEY, **options)


def test_a_batch_is_needed():
    with pytest.raises(ValueError, match="needs data"):
        saliency.unit_ablation(chain_coupling(), loss)(bare("chain").params)
