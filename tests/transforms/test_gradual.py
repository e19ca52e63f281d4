"""prune_gradually: how much is pruned, when, and what is left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.transforms import zoo

SCHEDULES = {
    "linear": jp.schedule.linear(0.8, 10),
    "cubic": jp.schedule.cubic(0.9, 10, begin=2),
    "exponential": jp.schedule.exponential(0.75, 8, initial=0.1),
    "constant": jp.schedule.constant(0.35),
    "optax_polynomial": optax.polynomial_schedule(0.0, 0.6, 2, 10),
}


def noise(like, seed):
    return jax.tree.map(lambda p: jax.random.normal(jax.random.key(seed), p.shape), like)


def masks_over(tx, params, steps, update=None):
    """The parameters and the mask after every update by random gradients."""
    update = jax.jit(tx.update) if update is None else update
    state = tx.init(params)
    for i in range(steps):
        updates, state = update(noise(params, i), state, params)
        params = optax.apply_updates(params, updates)
        yield params, jp.mask_of(state)


@pytest.mark.every(5)
@pytest.mark.parametrize(
    ("name", "every"), [*((name, 1) for name in sorted(SCHEDULES)), ("cubic", 3), ("linear", 5)]
)
def test_the_count_is_the_rounded_schedule_after_every_update_and_masks_nest(name, every):
    schedule = SCHEDULES[name]
    params = {"a": jax.random.normal(jax.random.key(1), (61, 16)), "b": jnp.ones((7, 3))}
    n = 61 * 16 + 7 * 3
    tx = jp.prune_gradually(
        jp.saliency.magnitude(), jp.select.lowest(floor=0), schedule, every=every
    )
    before = jp.trees.full_mask(params)
    for i, (now, mask) in enumerate(masks_over(tx, params, 14)):
        reached = float(schedule(i - i % every))
        # Float32 carries the schedule to seven decimals; beside a half it may round either way.
        assert abs(zoo.dropped(mask) - reached * n) <= 0.5 + 1e-6 * n
        assert jax.tree.all(jax.tree.map(lambda old, new: bool((old | ~new).all()), before, mask))
        assert zoo.alive(now, mask) == 0
        before = mask
    assert zoo.dropped(mask) == round(float(schedule(13 - 13 % every)) * n)


def test_mask_updates_come_at_step_zero_and_then_every_so_many():
    params = zoo.dense_params()
    tx = jp.prune_gradually(
        jp.saliency.magnitude(), jp.select.lowest(), lambda step: (step + 1) / 100, every=4
    )
    counts = [zoo.dropped(mask) for _, mask in masks_over(tx, params, 10)]
    assert counts == [round(s * 72) for s in [0.01] * 4 + [0.05] * 4 + [0.09] * 2]


def test_the_scores_are_those_of_the_parameters_before_the_step():
    params = {"kernel": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
    tx = optax.chain(
        optax.sgd(1.0),
        jp.prune_gradually(jp.saliency.magnitude(), jp.select.lowest(), jp.schedule.constant(0.5)),
    )
    upside_down = {"kernel": jnp.array([[-9.0, -9.0, 2.9, 3.9]])}
    updates, _ = tx.update(upside_down, tx.init(params), params)
    np.testing.assert_array_equal(
        optax.apply_updates(params, updates)["kernel"],
        [[0.0, 0.0, np.float32(3.0) - np.float32(2.9), np.float32(4.0) - np.float32(3.9)]],
    )


def test_after_the_schedule_the_mask_holds_although_the_ranking_changes():
    params = {"kernel": jax.random.normal(jax.random.key(0), (20, 5))}
    tx = optax.chain(optax.sgd(1.0), zoo.magnitude_pruning(0.5, 2))
    history = list(masks_over(tx, params, 8))
    for later, mask in history[3:]:
        zoo.assert_same_bits(mask, history[2][1])
        sizes = np.abs(np.asarray(later["kernel"]))[np.asarray(mask["kernel"])]
        assert len(sizes) == 50
    fresh = jp.one_shot(jp.saliency.magnitude(), jp.select.lowest())(params, sparsity=0.5).mask
    assert (fresh["kernel"] != mask["kernel"]).any()


def counted(scores, calls):
    """A plain score function that records every time it is truly evaluated."""

    def saliency(params, batch):
        jax.debug.callback(lambda: calls.append(1))
        return scores(params, batch)

    return saliency


@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("every", "schedule", "expected"),
    [
        (1, jp.schedule.linear(0.5, 4), 4),  # steps 1, 2, 3, 4; at 0 nothing is due
        (3, jp.schedule.linear(0.5, 7), 3),  # steps 3, 6, 9
        (5, jp.schedule.constant(0.5), 1),  # step 0
        (1, jp.schedule.constant(0.0), 0),
    ],
)
def test_nothing_is_scored_between_updates_nor_after_the_end(every, schedule, expected):
    calls = []
    tx = jp.prune_gradually(
        counted(jp.saliency.magnitude(), calls), jp.select.lowest(), schedule, every=every
    )
    for _ in masks_over(tx, zoo.dense_params(), 15):
        pass
    jax.effects_barrier()
    assert len(calls) == expected


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "sgd_nesterov"])
def test_at_zero_sparsity_the_updates_are_bit_for_bit_those_of_the_chain_without_it(optimizer):
    plain = zoo.OPTIMIZERS[optimizer]()
    masked = optax.chain(zoo.OPTIMIZERS[optimizer](), zoo.magnitude_pruning(0.0))
    params = zoo.dense_params()
    state, masked_state = plain.init(params), masked.init(params)
    update, masked_update = jax.jit(plain.update), jax.jit(masked.update)
    for _ in range(3):
        grads = jax.grad(zoo.loss)(params, zoo.batch())
        expected, state = update(grads, state, params)
        found, masked_state = masked_update(grads, masked_state, params)
        zoo.assert_same_bits(found, expected)
        params = optax.apply_updates(params, expected)
    assert zoo.dropped(jp.mask_of(masked_state)) == 0


def test_at_zero_sparsity_ten_jitted_steps_are_the_plain_ones_to_rounding():
    def trained(tx):
        @jax.jit
        def step(params, state):
            updates, state = tx.update(jax.grad(zoo.loss)(params, zoo.batch()), state, params)
            return optax.apply_updates(params, updates), state

        params = zoo.dense_params()
        state = tx.init(params)
        for _ in range(10):
            params, state = step(params, state)
        return params

    plain = optax.adamw(1e-2)
    ours = trained(optax.chain(optax.adamw(1e-2), zoo.magnitude_pruning(0.0)))
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(near, ours, trained(plain))


SELECTIONS = {
    "layer": (jp.select.lowest("layer"), {"hidden/kernel": 24, "readout/kernel": 12}),
    "output": (jp.select.lowest("output"), {"hidden/kernel": 24, "readout/kernel": 12}),
    "own": (
        jp.select.lowest({"hidden/kernel": 0.25, "readout/kernel": lambda s: s / 2}),
        {"hidden/kernel": 12, "readout/kernel": 6},
    ),
    "n_of_m": (jp.select.n_of_m(1, 2), {"hidden/kernel": 24, "readout/kernel": 12}),
    "blocks": (jp.select.blocks((2, 2), "layer"), {"hidden/kernel": 24, "readout/kernel": 12}),
    "chosen": (
        jp.select.lowest(prunable=lambda name, leaf: name == "readout/kernel"),
        {"hidden/kernel": 0, "readout/kernel": 12},
    ),
}


@pytest.mark.every(3)
@pytest.mark.parametrize("name", sorted(SELECTIONS))
def test_every_selection_prunes_its_own_share_inside_the_step(name):
    select, expected = SELECTIONS[name]
    tx = jp.prune_gradually(jp.saliency.magnitude(), select, jp.schedule.constant(0.5))
    *_, (params, mask) = masks_over(tx, zoo.dense_params(), 2)
    gone = {n: int((~m).sum()) for n, m in jp.trees.named_leaves(mask) if "kernel" in n}
    assert gone == expected
    assert zoo.alive(params, mask) == 0
    if name == "n_of_m":
        assert (mask["hidden"]["kernel"].reshape(4, 2, 6).sum(axis=1) == 1).all()


@pytest.mark.parametrize("every", [1, 2])
def test_masks_are_those_of_a_selection_by_brute_force(every):
    params = {"a": jax.random.normal(jax.random.key(0), (9, 7)), "b": jnp.ones((4, 5))}
    tx = [
        jp.prune_gradually(jp.saliency.magnitude(), select, jp.schedule.cubic(0.8, 5), every=every)
        for select in (jp.select.lowest("layer"), zoo.ranked_in_pairs())
    ]
    for (_, mask), (_, expected) in zip(
        masks_over(tx[0], params, 7), masks_over(tx[1], params, 7), strict=True
    ):
        zoo.assert_same_bits(mask, expected)


def test_eager_and_jitted_updates_draw_the_same_masks():
    params = {"kernel": jax.random.normal(jax.random.key(0), (10, 10))}
    for sparsity in (0.35, 0.285):
        tx = jp.prune_gradually(
            jp.saliency.magnitude(), jp.select.lowest(), jp.schedule.linear(sparsity, 3)
        )
        jitted = list(masks_over(tx, params, 4))
        eager = list(masks_over(tx, params, 4, tx.update))
        zoo.assert_same_bits(jitted, eager)


def test_a_traced_schedule_and_a_python_one_give_the_same_counts():
    params = {"kernel": jax.random.normal(jax.random.key(0), (50, 20))}
    table = [0.0, 0.1, 0.25, 0.3333333, 0.5, 0.9]
    tx = jp.prune_gradually(
        jp.saliency.magnitude(),
        jp.select.lowest(),
        lambda step: jnp.array(table)[jnp.minimum(step, 5)],
    )
    counts = [zoo.dropped(mask) for _, mask in masks_over(tx, params, 8)]
    assert counts == [round(table[min(i, 5)] * 1000) for i in range(8)]


@pytest.mark.parametrize("every", [0, -1, 2.0, True, "2"])
def test_every_is_a_positive_number_of_steps(every):
    for factory in (jp.prune_gradually, jp.straight_through):
        with pytest.raises(ValueError, match="`every` is steps between mask updates"):
            factory(
                jp.saliency.magnitude(),
                jp.select.lowest(),
                jp.schedule.constant(0.5),
                every=every,
            )


@pytest.mark.parametrize("factory", [jp.prune_gradually, jp.straight_through])
def test_what_cannot_be_pruned_is_an_error_at_init_that_says_so(factory):
    schedule = jp.schedule.constant(0.5)
    only_kernels = factory(jp.saliency.magnitude(), jp.select.lowest(), schedule)
    with pytest.raises(ValueError, match=r"Nothing to prune: .*'bias'"):
        only_kernels.init({"bias": jnp.ones(3)})
    everything = jp.select.lowest(prunable=lambda name, leaf: True)
    with pytest.raises(TypeError, match="Cannot prune leaf 'count': its dtype is int32"):
        factory(jp.saliency.magnitude(), everything, schedule).init(
            {"count": jnp.int32(1), "kernel": jnp.ones((2, 2))}
        )


def test_a_schedule_that_falls_back_revives_nothing():
    params = zoo.dense_params()
    tx = jp.prune_gradually(
        jp.saliency.magnitude(),
        jp.select.lowest(),
        lambda step: jnp.where(step < 3, 0.5, 0.1),
    )
    masks = [mask for _, mask in masks_over(tx, params, 6)]
    for mask in masks:
        zoo.assert_same_bits(mask, masks[0])


def test_a_selection_that_would_revive_pruned_weights_cannot():
    ignores_what_is_pruned = jp.Selection(
        jp.trees.default_prunable,
        lambda params, scores, sparsity: jax.tree.map(lambda p: p > 0, params),
    )
    params = {"kernel": jnp.array([[1.0, -1.0], [2.0, -2.0]])}
    tx = jp.prune_gradually(
        jp.saliency.magnitude(), ignores_what_is_pruned, jp.schedule.linear(0.5, 4)
    )
    state = tx.init(params)
    for weights in (params, params, jax.tree.map(jnp.negative, params)):
        _, state = tx.update(params, state, weights)
    assert not jp.mask_of(state)["kernel"].any()


PATTERN = {"kernel": jnp.arange(1.0, 17).reshape(8, 2)}


@pytest.mark.parametrize("make", [jp.prune_gradually, jp.straight_through])
def test_a_pattern_comes_at_once_and_what_is_reached_is_its_own_sparsity(make):
    schedule = jp.schedule.cubic(0.9, 1000, begin=2)  # above 0 from step 3
    tx = make(jp.saliency.magnitude(), jp.select.n_of_m(1, 4), schedule)
    state, params, update = tx.init(PATTERN), PATTERN, jax.jit(tx.update)
    for step in range(5):
        updates, state = update(jax.tree.map(jnp.zeros_like, params), state, params)
        params = optax.apply_updates(params, updates)
        assert zoo.dropped(jp.mask_of(state)) == (12 if step > 2 else 0)
        assert float(state.reached) == (0.75 if step > 2 else 0)
    assert int(state.refused) == 0


@pytest.mark.parametrize("make", [jp.prune_gradually, jp.straight_through])
@pytest.mark.parametrize("wrong", [90.0, 1.0, -0.5, jnp.nan, jnp.inf])
def test_a_sparsity_outside_0_to_1_is_refused_and_counted(make, wrong):
    schedule = lambda step: jnp.where(step == 2, wrong, 0.25)
    tx = make(jp.saliency.magnitude(), jp.select.lowest(), schedule, every=2)
    state, params, update = tx.init(PATTERN), PATTERN, jax.jit(tx.update)
    for step in range(5):
        updates, state = update(jax.tree.map(jnp.zeros_like, params), state, params)
        params = optax.apply_updates(params, updates)
        assert int(state.refused) == (1 if step >= 2 else 0)
        assert zoo.dropped(jp.mask_of(state)) == 4
        assert float(state.reached) == 0.25
    always = make(jp.saliency.magnitude(), jp.select.lowest(), lambda step: wrong)
    _, state = always.update(PATTERN, always.init(PATTERN), PATTERN)
    assert (int(state.refused), zoo.dropped(jp.mask_of(state))) == (1, 0)


@pytest.mark.parametrize("make", [jp.prune_gradually, jp.straight_through])
def test_arguments_of_another_kind_are_told_when_it_is_made(make):
    by, select, schedule = jp.saliency.magnitude(), jp.select.lowest(), jp.schedule.constant(0.5)
    with pytest.raises(TypeError, match=r"`schedule` is a function .* got 0\.9"):
        make(by, select, 0.9)
    with pytest.raises(TypeError, match="`saliency` is the function magnitude that makes one"):
        make(jp.saliency.magnitude, select, schedule)
    with pytest.raises(TypeError, match="`select` is a Selection"):
        make(by, jp.select.lowest, schedule)
    with pytest.raises(ValueError, match=r"`every` is steps .* integer >= 1; got 1\.5"):
        make(by, select, schedule, every=1.5)
    assert make(by, select, schedule, every=np.int64(2))
