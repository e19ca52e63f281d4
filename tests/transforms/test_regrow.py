"""regrow: SET and RigL against numpy, exact counts, when masks move, and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.select.threshold import keep_largest
from jaxprune.transforms import regrowing
from tests.transforms import zoo
from tests.transforms.regrown import KEY, by_pairs, kept, noise, params, rigl, run

# Laws of what is done with a ranking take that of all pairs, which compiles in no time.


@pytest.fixture
def ranked_in_pairs(monkeypatch):
    monkeypatch.setattr(regrowing, "keep_largest", by_pairs)


quick = pytest.mark.usefixtures("ranked_in_pairs")


def test_ranking_in_pairs_is_the_ranking_of_the_package():
    scores = jnp.array([[1.0, -jnp.inf, 1.0], [0.5, 3.0, 1.0]])
    for pruned in range(7):
        zoo.assert_same_bits(by_pairs(scores, pruned), keep_largest(scores, jnp.int32(pruned)))


# Brute force, in numpy.


def smallest_first(values, allowed):
    """Positions allowed, by value and then by index: the package's order."""
    return sorted(np.flatnonzero(allowed), key=lambda i: (values.flat[i], i))


def one_update(mask, weights, growth, fraction):
    """Algorithm 1 of RigL for one leaf: the new mask, and what grew."""
    goes = round(fraction * int(mask.sum()))
    stays = mask.copy()
    stays.flat[smallest_first(np.abs(weights), mask.ravel())[:goes]] = False
    order = smallest_first(growth, ~stays.ravel())
    new = stays.copy()
    new.flat[order[len(order) - goes :]] = True
    return new, new & ~mask


def drawn(step, number, like):
    """The uniform numbers that random growth ranks, by the documented use of the key."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.split(KEY)[1], step), number)
    return np.asarray(jax.random.uniform(key, like.shape))


@pytest.mark.every(3)
@pytest.mark.parametrize("grow", ["gradient", "random"])
def test_masks_weights_and_momentum_are_those_of_a_numpy_double(grow):
    history = list(run(rigl(grow=grow), params(), 9))
    state = rigl(grow=grow).init(params())
    masks = jax.tree.map(np.asarray, jp.mask_of(state))
    weights = jax.tree.map(np.asarray, jp.apply_mask(params(), masks))
    trace = jax.tree.map(np.zeros_like, weights)
    for step, (now, state) in enumerate(history):
        grads = jax.tree.map(np.asarray, noise(weights, step))
        moves = step in (2, 4, 6)
        fraction = 0.25 * (1 + np.cos(np.pi * step / 7))
        for name in weights:
            if moves and name != "bias":
                number = ["smooth", "tied"].index(name)
                growth = np.abs(grads[name])
                if grow == "random":
                    growth = drawn(step, number, weights[name])
                new, grown = one_update(masks[name], weights[name], growth, fraction)
                assert grown.any() or step == 6
                masks[name] = new
                weights[name] = np.where(new & ~grown, weights[name], 0)
                trace[name] = np.where(grown, 0, trace[name])
            elif not moves:
                trace[name] = np.where(masks[name], grads[name], 0) + trace[name] * 0.5
                weights[name] = np.where(masks[name], weights[name] - 0.25 * trace[name], 0)
        zoo.assert_same_bits(jp.mask_of(state), jax.tree.map(jnp.asarray, masks))
        for name in weights:
            np.testing.assert_allclose(now[name], weights[name], rtol=0, atol=1e-5)
            np.testing.assert_allclose(state.inner[0].trace[name], trace[name], rtol=0, atol=1e-5)


@quick
def test_a_weight_that_is_dropped_and_grows_again_at_once_keeps_its_value_and_momentum():
    mask = {"kernel": jnp.array([[True, True, False]])}
    start = {"kernel": jnp.array([[4.0, 1.0, 0.0]])}
    grads = {"kernel": jnp.array([[0.0, 0.5, 0.25]])}
    tx = rigl(mask=mask)
    state = tx.init(start)
    for _ in range(3):
        before, trace = start, state.inner[0].trace
        updates, state = tx.update(grads, state, start)
        start = optax.apply_updates(start, updates)
    zoo.assert_same_bits(jp.mask_of(state), mask)
    zoo.assert_same_bits((start, state.inner[0].trace), (before, trace))
    assert trace["kernel"][0, 1] != 0


def test_the_drop_fraction_is_the_cosine_of_the_paper_traced_or_not():
    decay = jp.schedule.cosine_decay(0.3, 100)
    for step, expected in [(0, 0.3), (25, 0.15 * (1 + 0.5**0.5)), (50, 0.15), (100, 0), (999, 0)]:
        assert decay(step) == pytest.approx(expected, abs=1e-12)
        assert float(jax.jit(decay)(step)) == pytest.approx(expected, abs=1e-6)
    for step in range(0, 101, 10):
        assert decay(step) == pytest.approx(
            float(optax.cosine_decay_schedule(0.3, 100)(step)), abs=1e-6
        )


SCOPES = {
    "layer": ({}, {"tied": 15, "smooth": 12}),
    "own": ({"scope": {"tied": 0.9, "smooth": lambda s: s / 2}}, {"tied": 3, "smooth": 18}),
    "chosen": ({"scope": "layer", "prunable": lambda name, leaf: name == "tied"}, {"tied": 15}),
}


@pytest.mark.every(3)
@quick
@pytest.mark.parametrize(
    ("name", "grow"), [("layer", "gradient"), ("own", "random"), ("chosen", "gradient")]
)
def test_every_leaf_keeps_exactly_its_count_at_every_step_and_the_rest_is_zero(name, grow):
    options, expected = SCOPES[name]
    tx = rigl(**{"scope": "layer"} | options, grow=grow)
    all_entries = {n: p.size for n, p in params().items()}
    moved = 0
    before = jp.mask_of(tx.init(params()))
    for now, state in run(tx, params(), 8):
        mask = jp.mask_of(state)
        assert kept(mask) == all_entries | expected
        assert zoo.alive(now, mask) == 0
        changes = jp.reporting.mask_changes(before, mask).values()
        assert all(change.dropped == change.revived for change in changes)
        moved += sum(change.revived for change in changes)
        before = mask
    assert moved > 0
    assert int(state.masking.refused) == 0


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
def test_erk_densities_are_those_of_the_paper_and_keep_the_overall_sparsity(sparsity):
    found = kept(jp.mask_of(rigl(sparsity=sparsity).init(params())))
    # Densities e * sum(shape) / size, the same e for all: counts e * sum(shape), whole numbers.
    e = (1 - sparsity) * 54 / (11 + 10)
    assert abs(found["tied"] - e * 11) <= 0.5
    assert abs(found["smooth"] - e * 10) <= 0.5
    assert abs(found["tied"] + found["smooth"] - (1 - sparsity) * 54) <= 1


@quick
def test_masks_move_only_at_multiples_of_every_below_stop():
    tx = rigl(every=3, stop=9)
    before, moved = jp.mask_of(tx.init(params())), []
    for step, (_, state) in enumerate(run(tx, params(), 14)):
        if any(c.revived for c in jp.reporting.mask_changes(before, jp.mask_of(state)).values()):
            moved.append(step)
        before = jp.mask_of(state)
    assert moved == [3, 6]


@quick
def test_at_fraction_zero_the_masks_never_change():
    tx = rigl(fraction=0.0)
    start = jp.mask_of(tx.init(params()))
    for _, state in run(tx, params(), 5):
        zoo.assert_same_bits(jp.mask_of(state), start)


@quick
def test_without_a_mask_update_training_is_that_of_frozen_masks_bit_for_bit():
    tx = rigl(every=50, stop=100)
    mask = jp.mask_of(tx.init(params()))
    frozen = optax.chain(
        optax.stateless(lambda grads, _: jp.apply_mask(grads, mask)),
        optax.sgd(0.25, momentum=0.5),
        jp.freeze_pruned(mask),
    )
    start, state = jp.apply_mask(params(), mask), frozen.init(params())
    for i, (now, _) in enumerate(run(tx, params(), 4)):
        updates, state = jax.jit(frozen.update)(noise(start, i), state, start)
        start = optax.apply_updates(start, updates)
        zoo.assert_same_bits(now, start)


@quick
def test_eager_and_jitted_updates_are_the_same():
    tx = rigl(grow="random")
    jitted, eager = run(tx, params(), 5), run(tx, params(), 5, tx.update)
    for (a, one), (b, other) in zip(jitted, eager, strict=True):
        zoo.assert_same_bits(jp.mask_of(one), jp.mask_of(other))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)


@quick
@pytest.mark.parametrize("grow", ["gradient", "random"])
def test_a_loop_restarted_from_a_checkpoint_ends_with_the_bits_of_an_uninterrupted_one(
    grow, tmp_path
):
    tx = rigl(optax.adam(0.125), grow=grow)
    update = jax.jit(tx.update)
    *_, whole = run(tx, params(), 7, update)
    *_, (half, state) = run(tx, params(), 3, update)
    jp.checkpoint.save(tmp_path, {"params": half, "opt_state": state}, step=3)
    like = {"params": params(1), "opt_state": rigl(optax.adam(0.125), grow=grow).init(params(1))}
    found = jp.checkpoint.restore(tmp_path, like)
    *_, end = run(tx, found["params"], 4, update, found["opt_state"], first=3)
    bits = lambda tree: jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        tree,
    )
    zoo.assert_same_bits(bits(end), bits(whole))


@quick
def test_the_callers_key_and_mask_outlive_a_donated_step():
    mask = jp.mask_of(rigl().init(params()))
    tx = rigl(mask=mask, key=KEY, grow="random")
    now, state = zoo.copied(params()), tx.init(params())
    step = jax.jit(lambda p, s: tx.update(p, s, p), donate_argnums=(0, 1))
    for _ in range(3):
        now, state = step(now, state)
    assert kept(mask) == kept(jp.mask_of(state))
    assert not KEY.is_deleted()


@quick
def test_seeds_trained_together_have_the_masks_they_have_alone():
    mask = jp.mask_of(rigl().init(params()))

    def train(seed):
        tx = rigl(grow="random", key=jax.random.key(seed), mask=mask)
        for now, state in run(tx, params(), 3, tx.update):
            last = now, jp.mask_of(state)
        return last

    together = jax.jit(jax.vmap(train))(jnp.arange(2))
    assert (together[1]["smooth"][0] != together[1]["smooth"][1]).any()
    for seed in range(2):
        mine = jax.tree.map(lambda x, seed=seed: x[seed], together)
        own = train(seed)
        zoo.assert_same_bits(mine[1], own[1])
        for x, y in zip(jax.tree.leaves(mine[0]), jax.tree.leaves(own[0]), strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)


@quick
def test_a_mask_update_with_nan_gradients_is_refused_and_counted():
    tx = rigl(every=2)
    now, state = params(), tx.init(params())
    update = jax.jit(tx.update)
    for step in range(3):
        grads = jax.tree.map(lambda p, bad=step == 2: jnp.full_like(p, jnp.nan if bad else 1), now)
        before, mask = now, jp.mask_of(state)
        updates, state = update(grads, state, now)
        now = optax.apply_updates(now, updates)
    zoo.assert_same_bits((now, jp.mask_of(state)), (before, mask))
    assert int(state.masking.refused) == 1


# Errors.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity .* must lie in \[0, 1\), got 1.0"),
        ({"every": 1}, "`every` is steps between mask updates, an integer >= 2"),
        ({"stop": 0}, "`stop` is the step"),
        ({"fraction": 1.0}, r"`fraction` is the share .* got 1.0"),
        ({"key": None}, r"random mask at the start needs a PRNG key: pass `key=jax.random.key"),
        ({"mask": {}, "grow": "random"}, "Random growth .SET. needs a PRNG key"),
        ({"mask": {}, "sparsity": 0.5}, "Pass either `sparsity`"),
        ({"grow": "momentum"}, "Unknown growth 'momentum'"),
        ({"scope": "global"}, "Unknown scope 'global'"),
    ],
)
def test_what_cannot_be_is_an_error_that_says_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        rigl(**options)


def test_what_is_no_optimizer_is_an_error():
    with pytest.raises(TypeError, match=r"wraps an Optax transformation.*got float"):
        rigl(0.1)


def test_bad_masks_and_leaves_are_named_at_init():
    whole = jp.trees.full_mask(params())
    with pytest.raises(ValueError, match=r"mask at leaf 'tied' has shape \(2, 2\)"):
        rigl(mask=whole | {"tied": jnp.ones((2, 2), bool)}).init(params())
    with pytest.raises(TypeError, match="mask at leaf 'tied' has dtype float32"):
        rigl(mask=whole | {"tied": jnp.ones((6, 5))}).init(params())
    with pytest.raises(ValueError, match="'smooth' would keep 0 of its 24 entries"):
        rigl(scope={"smooth": 0.999}).init(params())
    with pytest.raises(ValueError, match="No prunable leaf is named 'smoth'"):
        rigl(scope={"smoth": 0.5}).init(params())


def test_a_prunable_leaf_without_gradient_is_named():
    tx = rigl()
    state = tx.init(params())
    with pytest.raises(ValueError, match=r"no gradient for leaf 'tied'.*grow=\"random\""):
        tx.update(params() | {"tied": None}, state, params())
    with pytest.raises(ValueError, match="they were not passed"):
        tx.update(params(), state)
