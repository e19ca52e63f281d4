"""Many seeds at once: vmap gives what one by one gives, and off-steps cost nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.transforms import MaskState
from tests.transforms import zoo

SEEDS = 3
UNBATCHED_STEP = MaskState(step=None, mask=0, reached=0, refused=0, dense=0)


def seeded(seed):
    return {"kernel": jax.random.normal(jax.random.key(seed), (9, 8)), "bias": jnp.ones(8)}


def targets(params):
    return jnp.mean((jnp.ones((4, 9)) @ params["kernel"] + params["bias"] - 1) ** 2)


def step_of(tx):
    def step(params, state):
        updates, state = tx.update(jax.grad(targets)(params), state, params)
        return optax.apply_updates(params, updates), state

    return step


@pytest.mark.every(5)
@pytest.mark.parametrize(
    "masking",
    [
        zoo.magnitude_pruning(0.5, 3, every=2),
        zoo.TRANSFORMS["straight_through"](),
        jp.freeze_random(jax.random.key(0), 0.5),
    ],
    ids=["prune_gradually", "straight_through", "freeze_random"],
)
def test_seeds_trained_together_have_the_masks_they_have_alone(masking):
    tx = optax.chain(optax.sgd(0.1), masking)
    together = jax.vmap(seeded)(jnp.arange(SEEDS))
    state = jax.vmap(tx.init)(together)
    step = jax.jit(jax.vmap(step_of(tx)))
    for _ in range(6):
        together, state = step(together, state)
    for seed in range(SEEDS):
        alone = seeded(seed)
        own, one = tx.init(alone), jax.jit(step_of(tx))
        for _ in range(6):
            alone, own = one(alone, own)
        mine = jax.tree.map(lambda x, seed=seed: x[seed], (together, jp.mask_of(state)))
        zoo.assert_same_bits(mine[1], jp.mask_of(own))
        assert zoo.dropped(mine[1]) == 36
        for a, b in zip(jax.tree.leaves(mine[0]), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=64 * jnp.finfo(jnp.float32).eps)


@pytest.mark.parametrize("batched", [True, False])
def test_with_an_unbatched_step_counter_nothing_is_scored_between_updates(batched):
    calls = []

    def counted(params, batch):
        jax.debug.callback(lambda: calls.append(1))
        return jax.tree.map(jnp.abs, params)

    gradual = jp.prune_gradually(
        counted, jp.select.lowest("layer"), jp.schedule.linear(0.5, 8), every=4
    )
    together = jax.vmap(seeded)(jnp.arange(SEEDS))
    axes = MaskState(0, 0, 0, 0, 0) if batched else UNBATCHED_STEP
    state = jax.vmap(gradual.init, out_axes=axes)(together)
    step = jax.jit(jax.vmap(step_of(gradual), in_axes=(0, axes), out_axes=(0, axes)))
    for _ in range(9):
        together, state = step(together, state)
    jax.effects_barrier()
    # A batched counter makes `cond` a `select`: scored at all 9 steps, not at 0, 4 and 8.
    assert len(calls) == (9 if batched else 3)  # one call for all seeds together
    assert zoo.dropped(state.mask) == SEEDS * 36
    assert np.shape(state.step) == ((SEEDS,) if batched else ())


def test_one_seed_with_bad_scores_is_refused_alone():
    gradual = jp.prune_gradually(
        lambda params, spoil: jax.tree.map(lambda p: jnp.abs(p) / spoil, params),
        jp.select.lowest(),
        jp.schedule.constant(0.5),
    )
    together = jax.vmap(seeded)(jnp.arange(SEEDS))
    state = jax.vmap(gradual.init)(together)
    spoil = jnp.array([1.0, 0.0, 1.0])
    update = jax.vmap(lambda p, s, b: gradual.update(p, s, p, batch=b))
    _, state = update(together, state, spoil)
    assert state.refused.tolist() == [0, 1, 0]
    assert (~state.mask["kernel"]).sum(axis=(1, 2)).tolist() == [36, 0, 36]
