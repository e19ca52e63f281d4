"""Every optimizer keeps pruned weights at exactly 0 with the mask, and revives them without."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxprune as jp
from tests.transforms import zoo

STEPS = 50

each_optimizer = pytest.mark.parametrize("name", sorted(zoo.OPTIMIZERS))


def fit(tx, params, mask):
    """Train; the largest number of pruned entries that were alive after any step, and the end."""
    step = zoo.step_of(tx, extra=zoo.extra_arguments)
    watch = jax.jit(lambda params, most: jnp.maximum(most, zoo.alive(params, mask)))
    # Some optimizers keep the very arrays they are given, and then two donated ones are the same.
    state, most = tx.init(zoo.copied(params)), jnp.int32(0)
    params = zoo.copied(params)
    for _ in range(STEPS):
        params, state = step(params, state)
        most = watch(params, most)
    return params, int(most), step


@pytest.mark.every(5)
@each_optimizer
def test_pruned_weights_stay_exactly_zero_over_fifty_donated_steps_compiled_once(name):
    start, mask = zoo.masked_start()
    tx = optax.chain(zoo.OPTIMIZERS[name](), jp.freeze_pruned(mask))
    end, most_alive, step = fit(tx, start, mask)
    assert most_alive == 0
    assert len(step.traces) == 1  # and nothing was compiled after the first step
    moved = (end["hidden"]["kernel"] != start["hidden"]["kernel"]) & mask["hidden"]["kernel"]
    assert moved.sum() == mask["hidden"]["kernel"].sum()  # what is kept does train


@pytest.mark.every(3)
@each_optimizer
def test_without_the_mask_the_same_optimizer_revives_pruned_weights(name):
    start, mask = zoo.masked_start()
    end, most_alive, _ = fit(zoo.OPTIMIZERS[name](), start, mask)
    assert most_alive > 0.9 * zoo.dropped(mask)
    assert zoo.alive(end, mask) > 0
