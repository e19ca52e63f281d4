"""prune_gradually with saliencies that need data, that fail, or that users write themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.transforms import zoo


def gradual(saliency, end=0.5, steps=2, **options):
    return jp.prune_gradually(
        saliency, jp.select.lowest(), jp.schedule.linear(end, steps), **options
    )


def updated(tx, params, states=1, **extra):
    """The state after some updates by zero gradients."""
    state = tx.init(params)
    update = jax.jit(tx.update)
    for _ in range(states):
        _, state = update(jax.tree.map(jnp.zeros_like, params), state, params, **extra)
    return state


SALIENCIES = {
    "taylor": lambda: jp.saliency.taylor(zoo.loss),
    "snip": lambda: jp.saliency.snip(zoo.loss),
    "plain_function": lambda: (
        lambda params, batch: jax.tree.map(
            lambda p, g: jnp.abs(p * g), params, jax.grad(zoo.loss)(params, batch)
        )
    ),
}


@pytest.mark.every(3)
@pytest.mark.parametrize("name", sorted(SALIENCIES))
def test_a_saliency_that_needs_data_reads_the_batch_of_the_step(name):
    params, saliency = zoo.dense_params(), SALIENCIES[name]()
    tx = optax.chain(optax.sgd(0.1), gradual(saliency, steps=1))
    state = updated(tx, params, 2, batch=zoo.batch())
    expected = jp.one_shot(saliency, jp.select.lowest())(params, zoo.batch(), sparsity=0.5).mask
    zoo.assert_same_bits(jp.mask_of(state), expected)
    by_size = jp.one_shot(jp.saliency.magnitude(), jp.select.lowest())(params, sparsity=0.5).mask
    assert (by_size["hidden"]["kernel"] != expected["hidden"]["kernel"]).any()


@pytest.mark.parametrize("factory", [jp.prune_gradually, jp.straight_through])
def test_without_a_batch_the_first_trace_says_how_to_pass_it(factory):
    params = zoo.dense_params()
    tx = optax.chain(
        optax.sgd(0.1),
        factory(jp.saliency.taylor(zoo.loss), jp.select.lowest(), jp.schedule.constant(0.5)),
    )
    state = tx.init(params)
    for update in (tx.update, jax.jit(tx.update)):
        with pytest.raises(ValueError, match=r"tx\.update\(grads, state, params, batch=batch\)"):
            update(params, state, params)


def test_a_saliency_without_data_ignores_a_batch():
    params = zoo.dense_params()
    tx = gradual(jp.saliency.magnitude(), steps=1)
    zoo.assert_same_bits(updated(tx, params, 2), updated(tx, params, 2, batch=zoo.batch()))


def test_the_batch_reaches_it_through_wrappers():
    params = zoo.dense_params()
    tx = optax.MultiSteps(
        optax.apply_if_finite(
            optax.chain(optax.adam(0.1), gradual(jp.saliency.taylor(zoo.loss), steps=1)), 3
        ),
        2,
    ).gradient_transformation()
    step = zoo.step_of(tx, extra=lambda value, grads: {"batch": zoo.batch(), "value": value})
    state = tx.init(params)
    for _ in range(4):
        params, state = step(params, state)
    assert zoo.dropped(jp.mask_of(state)) == 36


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_bad_scores_refuse_the_update_keep_the_old_mask_and_are_counted(bad):
    params = zoo.dense_params()

    def fails_when_told(params, told):
        scores = jax.tree.map(jnp.abs, params)
        spoilt = scores["hidden"]["kernel"].at[2, 3].set(jnp.where(told, bad, 1.0))
        return {**scores, "hidden": {**scores["hidden"], "kernel": spoilt}}

    tx = gradual(fails_when_told, 0.5, 4)
    state, update = tx.init(params), jax.jit(tx.update)
    zeros = jax.tree.map(jnp.zeros_like, params)
    seen = []
    for told in [False, False, True, True, False, True, True]:
        updates, state = update(zeros, state, params, batch=told)
        held = optax.apply_updates(params, updates)
        assert zoo.alive(held, state.mask) == 0
        assert jax.tree.all(jax.tree.map(lambda u: bool(jnp.isfinite(u).all()), updates))
        seen.append((zoo.dropped(state.mask), round(float(state.reached), 6), int(state.refused)))
    # Due at every step: 0, 9, then two refusals, and the next good one catches up with the
    # schedule. It has ended by then, so that bad scores are not even looked at.
    assert seen == [
        (0, 0.0, 0),
        (9, 0.125, 0),
        (9, 0.125, 1),
        (9, 0.125, 2),
        (36, 0.5, 2),
        (36, 0.5, 2),
        (36, 0.5, 2),
    ]


def test_bad_scores_of_a_leaf_that_is_not_prunable_refuse_nothing():
    params = zoo.dense_params()

    def scores(params, batch):
        return jax.tree.map(lambda p: jnp.abs(p) if p.ndim == 2 else p * jnp.nan, params)

    state = updated(gradual(scores, steps=1), params, 2)
    assert zoo.dropped(state.mask) == 36
    assert int(state.refused) == 0


def test_scores_of_another_tree_or_shape_are_an_error_at_the_first_trace():
    params = zoo.dense_params()
    missing = lambda params, batch: {"hidden": params["hidden"]}
    with pytest.raises(ValueError, match=r"scores .* missing .*'readout/kernel'"):
        updated(gradual(missing), params)
    turned = lambda params, batch: jax.tree.map(jnp.transpose, params)
    with pytest.raises(ValueError, match="scores at leaf 'hidden/kernel' has shape"):
        updated(gradual(turned), params)


def test_lower_precision_scores_are_ranked_as_they_are():
    params = {"kernel": jax.random.normal(jax.random.key(0), (16, 16))}
    coarse = lambda params, batch: jax.tree.map(lambda p: jnp.abs(p).astype(jnp.bfloat16), params)
    mask = updated(gradual(coarse, steps=1), params, 2).mask["kernel"]
    sizes = np.asarray(jnp.abs(params["kernel"]).astype(jnp.bfloat16), np.float32)
    assert mask.sum() == 128
    assert sizes[np.asarray(mask)].min() >= sizes[~np.asarray(mask)].max()


def test_pruned_weights_stay_pruned_although_their_scores_are_the_highest():
    params = {"kernel": jnp.arange(1.0, 13.0).reshape(3, 4)}

    def of_the_moment(params, sign):
        return jax.tree.map(lambda p: sign * p, params)

    tx = gradual(of_the_moment, 0.5, 2)
    state = tx.init(params)
    gone = []
    for sign in (1.0, 1.0, -1.0):
        updates, state = tx.update(params, state, params, batch=jnp.float32(sign))
        gone.append(np.flatnonzero(~np.asarray(state.mask["kernel"])).tolist())
        params = optax.apply_updates(params, jax.tree.map(jnp.zeros_like, updates))
    # The three smallest, and then the three largest of those that are left.
    assert gone == [[], [0, 1, 2], [0, 1, 2, 9, 10, 11]]


def test_64_bit_parameters_are_pruned_exactly(x64):
    params = {"kernel": jnp.linspace(1.0, 1.0 + 1e-12, 64, dtype=jnp.float64).reshape(8, 8)}
    tx = optax.chain(optax.adam(0.1), gradual(jp.saliency.magnitude(), steps=1))
    state = updated(tx, params, 2)
    np.testing.assert_array_equal(jp.mask_of(state)["kernel"].ravel(), np.arange(64) >= 32)
    assert state[-1].reached.dtype == jnp.float32
