"""straight_through: masked weights in the user's hands, dense ones learning in the state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.transforms import zoo


def through(sparsity=0.5, select=None, every=1, saliency=None):
    return jp.straight_through(
        jp.saliency.magnitude() if saliency is None else saliency,
        jp.select.lowest() if select is None else select,
        jp.schedule.constant(sparsity),
        every=every,
    )


def hidden_weights(state):
    """The dense kernels in the state, by name."""
    return dict(jp.trees.named_leaves(state[-1].dense))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_visible_parameters_are_the_masked_dense_ones_to_one_unit_in_the_last_place(dtype):
    params = jax.tree.map(lambda p: p.astype(dtype), zoo.dense_params())
    tx = optax.chain(optax.adam(0.05), through())
    state = tx.init(params)
    step = zoo.step_of(tx)
    for _ in range(30):
        before = jax.tree.map(np.asarray, params)
        params, state = step(params, state)
        dense, masks = hidden_weights(state), dict(jp.trees.named_leaves(jp.mask_of(state)))
        for name, seen in jp.trees.named_leaves(params):
            if name not in dense:
                continue
            seen, hidden, keep = (np.asarray(x) for x in (seen, dense[name], masks[name]))
            was = dict(jp.trees.named_leaves(before))[name]
            assert seen.dtype == dtype
            assert (seen[~keep] == 0).all()
            # The sum `old + (new - old)` is rounded at the size of the larger of the two.
            size = np.maximum(np.abs(hidden), np.abs(was)).astype(np.float32)
            error = np.abs(seen.astype(np.float32) - hidden.astype(np.float32))
            assert (error <= float(jnp.finfo(dtype).eps) * size)[keep].all()
    assert len(step.traces) == 1


@pytest.mark.every(3)
@pytest.mark.parametrize("optimizer", ["sgd_nesterov", "adam", "lion"])
def test_dense_weights_follow_the_plain_optimizer_on_the_gradients_given(optimizer):
    # Without decay: decay looks at the parameters in the user's hands.
    make = {
        "sgd_nesterov": lambda: optax.sgd(0.05, momentum=0.9, nesterov=True),
        "adam": lambda: optax.adam(0.05),
        "lion": lambda: optax.lion(0.05, weight_decay=0.0),
    }[optimizer]
    plain, masked = make(), optax.chain(make(), through(0.75))
    dense = params = zoo.dense_params()
    state, masked_state = plain.init(dense), masked.init(params)
    for _ in range(10):  # eagerly: two compiled programs may fuse, and round, differently
        grads = jax.grad(zoo.loss)(params, zoo.batch())  # at the masked weights, for both
        updates, state = plain.update(grads, state, dense)
        dense = optax.apply_updates(dense, updates)
        updates, masked_state = masked.update(grads, masked_state, params)
        params = optax.apply_updates(params, updates)
    for name, hidden in hidden_weights(masked_state).items():
        np.testing.assert_array_equal(hidden, dict(jp.trees.named_leaves(dense))[name])
    np.testing.assert_array_equal(params["hidden"]["bias"], dense["hidden"]["bias"])


def test_a_pruned_weight_comes_back_with_all_it_has_learnt():
    params = {"kernel": jnp.array([[1.0, 2.0]])}
    tx = optax.chain(optax.sgd(1.0), through())
    state = tx.init(params)
    seen = []
    for _ in range(4):
        updates, state = tx.update({"kernel": jnp.array([[-0.5, 0.0]])}, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(params["kernel"].tolist())
    # Out of sight it goes 1.5, 2, 2.5; at 2 against 2 the earlier index goes.
    assert seen == [[[0.0, 2.0]], [[0.0, 2.0]], [[2.5, 0.0]], [[3.0, 0.0]]]


def test_between_mask_updates_the_mask_holds_and_weights_still_learn():
    params = {"kernel": jnp.array([[1.0, 2.0]])}
    tx = optax.chain(optax.sgd(1.0), through(every=3))
    state = tx.init(params)
    seen = []
    for _ in range(4):
        updates, state = tx.update({"kernel": jnp.array([[-1.0, 0.0]])}, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(params["kernel"].tolist())
    # Step 0 sees 2 against 2 and drops the first; the next look is at step 3.
    assert seen == [[[0.0, 2.0]], [[0.0, 2.0]], [[0.0, 2.0]], [[5.0, 0.0]]]


@pytest.mark.parametrize(
    ("select", "gone"),
    [
        (jp.select.n_of_m(2, 4), {"hidden/kernel": 24, "only": 8}),
        (jp.select.lowest("layer"), {"hidden/kernel": 24, "only": 8}),
    ],
    ids=["n_of_m", "layer"],
)
def test_every_selection_is_kept_at_every_step(select, gone):
    params = {"hidden": zoo.dense_params()["hidden"], "only": jnp.arange(16.0).reshape(4, 4)}
    tx = optax.chain(optax.adam(0.3), through(select=select))
    state, update = tx.init(params), jax.jit(tx.update)
    for i in range(6):
        noise = jax.tree.map(lambda p, i=i: jax.random.normal(jax.random.key(i), p.shape), params)
        updates, state = update(noise, state, params)
        params = optax.apply_updates(params, updates)
        zeros = {n: int((p == 0).sum()) for n, p in jp.trees.named_leaves(params)}
        assert {n: zeros[n] for n in gone} == gone


def test_what_is_not_prunable_is_stepped_as_if_nothing_were_there():
    params = zoo.dense_params()
    tx = through()
    grads = jax.tree.map(lambda p: jnp.full_like(p, 1e-12), params)  # lost beside the weights
    state = tx.init(params)
    moved = {**params, "hidden": {**params["hidden"], "bias": params["hidden"]["bias"] * 7}}
    updates, state = tx.update(grads, state, moved)  # the caller has set a bias meanwhile
    zoo.assert_same_bits(updates["hidden"]["bias"], grads["hidden"]["bias"])
    assert jp.trees.paths(state.dense) == ["hidden/kernel", "readout/kernel"]


def test_parameters_changed_by_the_caller_are_put_back_to_the_masked_dense_ones():
    params = zoo.dense_params()
    tx = through()
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, state = tx.update(zeros, tx.init(params), params)
    updates, state = tx.update(zeros, state, zeros)
    seen = optax.apply_updates(zeros, updates)
    for name, keep in jp.trees.named_leaves(state.mask):
        if "kernel" in name:
            leaf = dict(jp.trees.named_leaves(params))[name]
            np.testing.assert_array_equal(dict(jp.trees.named_leaves(seen))[name], leaf * keep)


def test_bad_scores_keep_the_mask_of_before_and_are_counted():
    params = {"kernel": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
    tx = through(saliency=lambda params, told: {"kernel": params["kernel"] / told})
    _, state = tx.update(params, tx.init(params), params, batch=jnp.float32(1.0))
    updates, state = tx.update(params, state, params, batch=jnp.float32(0.0))
    np.testing.assert_array_equal(state.mask["kernel"], [[False, False, True, True]])
    assert int(state.refused) == 1
    np.testing.assert_array_equal(
        optax.apply_updates(params, updates)["kernel"], [[0.0, 0.0, 9.0, 12.0]]
    )


def test_parameters_and_state_can_both_be_donated_from_the_first_step_on():
    params = zoo.dense_params()
    tx = optax.chain(optax.sgd(0.1), through())
    state = tx.init(params)
    step = zoo.step_of(tx)
    for _ in range(3):
        params, state = step(params, state)  # it would raise, did the two share an array
    assert zoo.dropped(jp.mask_of(state)) == 36


def test_data_saliencies_score_the_dense_weights_on_the_batch_of_the_step():
    params = zoo.dense_params()
    saliency = jp.saliency.taylor(zoo.loss)
    tx = through(saliency=saliency)
    zeros = jax.tree.map(jnp.zeros_like, params)
    update = jax.jit(tx.update)
    _, state = update(zeros, tx.init(params), params, batch=zoo.batch())
    shown = jp.apply_mask(params, state.mask)
    _, again = update(zeros, state, shown, batch=zoo.batch())
    expected = jp.one_shot(saliency, jp.select.lowest())(params, zoo.batch(), sparsity=0.5).mask
    zoo.assert_same_bits(state.mask, expected)
    zoo.assert_same_bits(again.mask, expected)
