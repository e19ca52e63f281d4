"""freeze_pruned, freeze_random, and the mask in the optimizer state: mask_of and with_mask."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.transforms import MaskState
from tests.transforms import zoo


def frozen(mask):
    return optax.chain(optax.adamw(zoo.LEARNING_RATE), jp.freeze_pruned(mask))


def test_the_update_is_the_incoming_one_where_kept_and_minus_the_weight_where_pruned():
    params = {"w": jnp.array([1.0, -2.5, 0.0, 3.0e38])}
    tx = jp.freeze_pruned({"w": jnp.array([True, False, False, False])})
    updates, _ = tx.update({"w": jnp.array([7.0, 7.0, 7.0, 7.0])}, tx.init(params), params)
    np.testing.assert_array_equal(updates["w"], np.float32([7.0, 2.5, 0.0, -3.0e38]))


@pytest.mark.every(3)
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("update_dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_pruned_weights_land_on_exact_zero_in_one_step_whatever_the_dtypes(
    param_dtype, update_dtype
):
    weights = jax.random.normal(jax.random.key(0), (64,)).astype(param_dtype)
    mask = jnp.arange(64) % 2 == 0
    tx = jp.freeze_pruned([mask])
    grads = [jnp.full(64, 0.01, update_dtype)]
    updates, _ = tx.update(grads, tx.init([weights]), [weights])
    after = optax.apply_updates([weights], updates)[0]
    assert after.dtype == param_dtype
    assert (after[~mask] == 0).all()
    plain = optax.apply_updates([weights], grads)[0]
    np.testing.assert_array_equal(after[mask], plain[mask])


def test_a_mask_that_keeps_everything_changes_no_bit():
    params = zoo.dense_params()
    grads = jax.grad(zoo.loss)(params, zoo.batch())
    plain = optax.adamw(zoo.LEARNING_RATE)
    masked = frozen(jp.trees.full_mask(params))
    expected, _ = plain.update(grads, plain.init(params), params)
    found, _ = masked.update(grads, masked.init(params), params)
    zoo.assert_same_bits(found, expected)


def test_an_average_of_parameters_is_masked_by_apply_mask():
    params, mask = zoo.masked_start()
    average = jax.tree.map(lambda new, old: 0.9 * old + 0.1 * new, params, zoo.dense_params())
    assert zoo.alive(average, mask) > 0
    assert zoo.alive(jp.apply_mask(average, mask), mask) == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: {"hidden": m["hidden"]}, ValueError, r"missing .*'readout/kernel'"),
        (lambda m: {**m, "extra": m["hidden"]["bias"]}, ValueError, "only there: .*'extra'"),
        (
            lambda m: {**m, "readout": {"kernel": m["readout"]["kernel"].T}},
            ValueError,
            r"mask at leaf 'readout/kernel' has shape \(4, 6\), the parameter has \(6, 4\)",
        ),
        (
            lambda m: {**m, "readout": {"kernel": m["readout"]["kernel"].astype(jnp.float32)}},
            TypeError,
            "mask at leaf 'readout/kernel' has dtype float32; a mask is bool",
        ),
    ],
    ids=["missing", "extra", "shape", "dtype"],
)
def test_a_mask_that_does_not_fit_is_an_error_at_init_that_names_the_leaf(change, error, message):
    params, mask = zoo.masked_start()
    with pytest.raises(error, match=message):
        jp.freeze_pruned(change(mask)).init(params)
    state = jp.freeze_pruned(mask).init(params)
    with pytest.raises(error, match=message):
        jp.with_mask(state, change(mask))


@pytest.mark.parametrize("masking", sorted(zoo.TRANSFORMS))
def test_an_update_without_params_says_how_to_pass_them(masking):
    params = zoo.dense_params()
    tx = optax.chain(optax.sgd(0.1), zoo.TRANSFORMS[masking]())
    with pytest.raises(ValueError, match=r"call `tx\.update\(grads, state, params\)`"):
        tx.update(params, tx.init(params))


def test_the_mask_is_an_input_of_the_compiled_step_and_not_a_constant_in_it():
    params = {"kernel": jnp.ones((32, 16))}
    mask = {"kernel": jax.random.bernoulli(jax.random.key(0), 0.5, (32, 16))}
    tx = frozen(mask)
    state = tx.init(params)
    update = jax.jit(tx.update)
    jaxpr = jax.make_jaxpr(tx.update)(params, state, params)
    assert max([np.size(c) for c in jaxpr.consts], default=0) <= 1
    bools = [v for v in jaxpr.jaxpr.invars if v.aval.dtype == bool]
    assert [v.aval.shape for v in bools] == [(32, 16)]
    lowered = update.lower(params, state, params).as_text()
    assert "32x16xi1" in lowered
    assert not [s for s in lowered.splitlines() if "constant" in s and "32x16xi1" in s]


def test_another_mask_is_swapped_in_without_recompiling_and_is_obeyed():
    params, mask = zoo.masked_start(0.25)
    _, later = zoo.masked_start(0.75)
    tx = frozen(mask)
    step = zoo.step_of(tx)
    params, state = step(zoo.copied(params), tx.init(params))
    state = jp.with_mask(state, later)
    params, state = step(params, state)
    assert zoo.dropped(jp.mask_of(state)) == 54
    assert zoo.alive(params, later) == 0
    assert len(step.traces) == 1


def test_with_mask_works_inside_jit_and_touches_nothing_else():
    params, mask = zoo.masked_start(0.25)
    _, later = zoo.masked_start(0.75)
    state = frozen(mask).init(params)
    swapped = jax.jit(jp.with_mask)(state, later)
    zoo.assert_same_bits(jp.mask_of(swapped), later)
    zoo.assert_same_bits(jp.with_mask(swapped, mask), state)


def test_a_donated_step_never_deletes_the_mask_in_the_callers_hands():
    params, mask = zoo.masked_start()
    _, later = zoo.masked_start(0.75)
    tx = frozen(mask)
    step = zoo.step_of(tx)
    params, state = step(zoo.copied(params), tx.init(params))
    assert zoo.dropped(mask) == 36  # it would raise, were it deleted
    state = jp.with_mask(state, later)
    params, state = step(params, state)
    assert zoo.dropped(later) == 54
    assert zoo.dropped(jp.mask_of(tx.init(params))) == 36  # and another run can start from it


def test_a_numpy_mask_and_abstract_initialisation_are_fine():
    params, mask = zoo.masked_start()
    tx = frozen(jax.tree.map(np.asarray, mask))
    state = tx.init(params)
    zoo.assert_same_bits(jp.mask_of(state), mask)
    abstract = jax.eval_shape(tx.init, params)
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    assert jp.mask_of(abstract)["readout"]["kernel"].dtype == bool
    zoo.assert_same_bits(jp.mask_of(jax.jit(tx.init)(params)), mask)


def test_mask_of_no_masking_transformation_or_of_several_is_an_error():
    params, mask = zoo.masked_start()
    with pytest.raises(ValueError, match="Found 0 masking transformations"):
        jp.mask_of(optax.adam(0.1).init(params))
    both = optax.chain(jp.freeze_pruned(mask), zoo.magnitude_pruning()).init(params)
    with pytest.raises(ValueError, match="Found 2 masking transformations"):
        jp.mask_of(both)
    with pytest.raises(ValueError, match="Found 2 masking transformations"):
        jp.with_mask(both, mask)
    zoo.assert_same_bits(jp.mask_of(both[0]), mask)


def test_the_state_counts_updates():
    params, mask = zoo.masked_start()
    tx = jp.freeze_pruned(mask)
    state = tx.init(params)
    assert isinstance(state, MaskState)
    for _ in range(3):
        _, state = tx.update(params, state, params)
    assert int(state.step) == 3
    assert int(state.refused) == 0


@pytest.mark.parametrize(("sparsity", "kept"), [(0.0, 48 + 24), (0.3, 34 + 17), (0.9, 5 + 2)])
def test_a_random_mask_prunes_exactly_the_same_share_of_every_layer(sparsity, kept):
    params = zoo.dense_params()
    mask = jp.mask_of(jp.freeze_random(jax.random.key(7), sparsity).init(params))
    expected = {"hidden/bias": 6}
    for name, n in [("hidden/kernel", 48), ("readout/kernel", 24)]:
        expected[name] = n - round(sparsity * n)
    found = {name: int(keep.sum()) for name, keep in jp.trees.named_leaves(mask)}
    assert found == expected
    assert found["hidden/kernel"] + found["readout/kernel"] == kept


def test_the_same_key_draws_the_same_random_mask_and_another_key_another():
    params = zoo.dense_params()
    drawn = [jp.mask_of(jp.freeze_random(jax.random.key(k), 0.5).init(params)) for k in (0, 0, 1)]
    zoo.assert_same_bits(drawn[0], drawn[1])
    zoo.assert_same_bits(
        drawn[0], jp.mask_of(jax.jit(jp.freeze_random(jax.random.key(0), 0.5).init)(params))
    )
    for name, keep in jp.trees.named_leaves(drawn[2]):
        if "kernel" in name:
            assert (keep != dict(jp.trees.named_leaves(drawn[0]))[name]).any()


def test_a_random_mask_does_not_look_at_the_weights_and_takes_another_selection():
    params = zoo.dense_params()
    other = jax.tree.map(lambda p: p[::-1] * 3, params)
    tx = jp.freeze_random(jax.random.key(0), 0.5, jp.select.n_of_m(1, 2))
    mask = jp.mask_of(tx.init(params))
    zoo.assert_same_bits(mask, jp.mask_of(tx.init(other)))
    pairs = mask["hidden"]["kernel"].reshape(4, 2, 6)
    assert (pairs.sum(axis=1) == 1).all()


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_a_random_mask_of_a_sparsity_outside_its_range_is_an_error_at_once(sparsity):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        jp.freeze_random(jax.random.key(0), sparsity)


def test_what_a_pruner_returned_is_taken_as_its_mask():
    params = zoo.dense_params()
    pruned = jp.one_shot(jp.saliency.magnitude(), jp.select.lowest())(params, sparsity=0.5)
    whole = jp.freeze_pruned(jp.trees.full_mask(params)).init(params)
    grown = jp.regrow(optax.sgd(0.1), every=np.int64(2), stop=np.int64(9), mask=pruned)
    for state in (
        jp.freeze_pruned(pruned).init(params), jp.with_mask(whole, pruned), grown.init(params)
    ):  # fmt: skip
        jax.tree.map(np.testing.assert_array_equal, jp.mask_of(state), pruned.mask)
