"""The masking transformations inside Optax's wrappers, and after them in the chain."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.transforms import zoo

STEPS = 12


def kernels(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "kernel" in jax.tree_util.keystr(path), params
    )


def labels(params):
    return jax.tree.map(lambda is_kernel: "kernel" if is_kernel else "rest", kernels(params))


WRAPPERS = {
    "chain_with_clipping": lambda tx: optax.chain(optax.clip_by_global_norm(0.5), tx),
    "named_chain": lambda tx: optax.named_chain(("inner", tx), ("nothing", optax.identity())),
    "multi_steps": lambda tx: optax.MultiSteps(tx, 3).gradient_transformation(),
    "multi_transform": lambda tx: optax.multi_transform(
        {"kernel": tx, "rest": optax.sgd(zoo.LEARNING_RATE)}, labels
    ),
    "masked": lambda tx: optax.masked(tx, kernels),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 5),
    "inject_hyperparams": lambda tx: optax.inject_hyperparams(
        lambda scale: optax.chain(tx, optax.scale(scale))
    )(1.0),
    "conditionally_transform": lambda tx: optax.conditionally_transform(
        tx, lambda step: step < 10_000, forward_extra_args=True
    ),
}
BEFORE_ONLY = {"flatten": optax.flatten}
ALONE = {"mechanize": optax.contrib.mechanize}

PLACES = [
    *[("inside", wrapper, masking) for wrapper in WRAPPERS for masking in zoo.TRANSFORMS],
    *[
        ("after", wrapper, masking)
        for wrapper in [*WRAPPERS, *BEFORE_ONLY]
        for masking in ["freeze_pruned", "prune_gradually"]
    ],
]


def composed(place, wrapper, masking):
    optimizer = optax.adamw(zoo.LEARNING_RATE, weight_decay=zoo.DECAY)
    if place == "inside":
        return (WRAPPERS | ALONE)[wrapper](optax.chain(optimizer, masking))
    return optax.chain((WRAPPERS | BEFORE_ONLY | ALONE)[wrapper](optimizer), masking)


@pytest.mark.every(5)
@pytest.mark.parametrize(("place", "wrapper", "masking"), PLACES)
def test_the_mask_is_found_has_its_sparsity_and_is_obeyed(place, wrapper, masking):
    tx = composed(place, wrapper, zoo.TRANSFORMS[masking]())
    params = zoo.dense_params()
    state = tx.init(params)
    step = zoo.step_of(tx)
    for _ in range(STEPS):
        params, state = step(params, state)
    mask = jp.mask_of(state)
    assert zoo.dropped(mask) == 36
    masks = dict(jp.trees.named_leaves(mask))  # inside a wrapper it has holes for other leaves
    for name, leaf in jp.trees.named_leaves(params):
        if "kernel" in name:
            np.testing.assert_array_equal(leaf != 0, masks[name])
    assert len(step.traces) == 1


@pytest.mark.parametrize("place", ["inside", "after"])
def test_micro_steps_change_nothing_and_do_not_move_the_schedule(place):
    tx = composed(place, "multi_steps", zoo.magnitude_pruning(steps=4))
    params = zoo.dense_params()
    state = tx.init(params)
    step = zoo.step_of(tx)
    counts = []
    for _ in range(9):
        params, state = step(params, state)
        counts.append(zoo.dropped(jp.mask_of(state)))
    # linear(0.5, 4) over 72 entries: 0, 9, 18, .. at its steps 0, 1, 2.
    by_update = [0, 0, 0, 0, 0, 9, 9, 9, 18]
    by_call = [0, 9, 18, 27, 36, 36, 36, 36, 36]
    assert counts == (by_update if place == "inside" else by_call)


@pytest.mark.parametrize("place", ["inside", "after"])
def test_a_step_with_nan_gradients_that_optax_skips_leaves_pruned_weights_at_zero(place):
    start, mask = zoo.masked_start()
    tx = composed(place, "apply_if_finite", jp.freeze_pruned(mask))
    state, params = tx.init(start), start
    for grads in [jnp.ones_like, lambda p: jnp.full_like(p, jnp.nan), jnp.ones_like]:
        updates, state = jax.jit(tx.update)(jax.tree.map(grads, params), state, params)
        params = optax.apply_updates(params, updates)
        assert zoo.alive(params, mask) == 0
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("masking", sorted(zoo.TRANSFORMS))
def test_extra_arguments_pass_through_to_their_readers(masking):
    plateau = optax.contrib.reduce_on_plateau(patience=1, cooldown=0, factor=0.5)
    tx = optax.chain(zoo.TRANSFORMS[masking](), plateau)
    params = zoo.dense_params()
    state = tx.init(params)
    for _ in range(4):
        _, state = tx.update(params, state, params, value=jnp.float32(1.0))
    assert state[-1].scale < 1  # the loss did not fall, and the last one in the chain was told


def test_lookahead_keeps_zeros_inside_and_after():
    start, mask = zoo.masked_start()
    pair = optax.LookaheadParams.init_synced(start)
    both = optax.LookaheadParams(mask, mask)
    adamw = optax.adamw(zoo.LEARNING_RATE)
    inside = optax.lookahead(optax.chain(adamw, jp.freeze_pruned(mask)), 2, 0.5)
    after = optax.chain(optax.lookahead(adamw, 2, 0.5), jp.freeze_pruned(both))
    for tx in (inside, after):
        params, state = pair, tx.init(pair)
        update = jax.jit(tx.update)
        for _ in range(5):
            updates, state = update(jax.grad(zoo.loss)(params.fast, zoo.batch()), state, params)
            params = optax.apply_updates(params, updates)
            assert zoo.alive(params, both) == 0
        assert (params.slow["readout"]["kernel"] != start["readout"]["kernel"]).any()


def test_schedule_free_keeps_its_evaluation_parameters_pruned_too():
    start, mask = zoo.masked_start()
    inner = optax.chain(optax.sgd(0.1), jp.freeze_pruned(mask))
    tx = optax.contrib.schedule_free(inner, learning_rate=0.1)
    params, state = start, tx.init(start)
    step = zoo.step_of(tx)
    params, state = zoo.copied((params, state))
    for _ in range(10):
        params, state = step(params, state)
    assert zoo.alive(params, mask) == 0
    assert zoo.alive(optax.contrib.schedule_free_eval_params(state, params), mask) == 0


@pytest.mark.parametrize(("masking", "wrapper"), [
    ("prune_gradually", "schedule_free"), ("prune_gradually", "after schedule_free"),
    ("prune_gradually", "lookahead"), ("freeze_pruned", "after schedule_free"),
    ("freeze_pruned", "lookahead"),
])  # fmt: skip
def test_parameters_that_a_wrapper_keeps_besides_are_masked_before_they_are_evaluated(
    masking, wrapper
):
    masking = zoo.TRANSFORMS[masking]()
    free = optax.contrib
    inside = optax.chain(optax.sgd(0.1), masking)
    tx = {
        "schedule_free": lambda: free.schedule_free(inside, learning_rate=0.1),
        "after schedule_free": lambda: optax.chain(free.schedule_free_sgd(0.1), masking),
        "lookahead": lambda: optax.lookahead(inside, 3, 0.5),
    }[wrapper]()
    params, pair = zoo.dense_params(), wrapper == "lookahead"
    params = optax.LookaheadParams.init_synced(params) if pair else params
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(STEPS):
        held = params.fast if pair else params
        updates, state = update(jax.grad(zoo.loss)(held, zoo.batch()), state, params)
        params = optax.apply_updates(params, updates)
    inner = state[0] if wrapper.startswith("after") else state
    found = params.slow if pair else free.schedule_free_eval_params(inner, params)
    mask = jp.mask_of(state)
    assert zoo.dropped(mask) == 36
    assert zoo.alive(found, mask) > 0
    evaluated = jp.apply_mask(found, mask)
    assert zoo.alive(evaluated, mask) == 0
    assert float(zoo.loss(evaluated, zoo.batch())) < float(
        zoo.loss(zoo.dense_params(), zoo.batch())
    )


@pytest.mark.parametrize("masking", ["freeze_pruned", "prune_gradually"])
def test_masks_stand_after_mechanize(masking):
    alive = []
    for place in ("after", "inside"):
        tx = composed(place, "mechanize", zoo.TRANSFORMS[masking]())
        params = zoo.dense_params()
        state, update = tx.init(params), jax.jit(tx.update)
        for _ in range(STEPS):
            updates, state = update(jax.grad(zoo.loss)(params, zoo.batch()), state, params)
            params = optax.apply_updates(params, updates)
        alive.append(int(zoo.alive(params, jp.mask_of(state))))
    assert alive[0] == 0 < alive[1]


@pytest.mark.parametrize("masking", sorted(zoo.TRANSFORMS))
def test_tree_map_params_finds_the_mask_among_what_is_shaped_like_parameters(masking):
    tx = optax.chain(optax.adam(1e-3), zoo.TRANSFORMS[masking]())
    params = zoo.dense_params()
    marked = optax.tree_map_params(tx, lambda leaf: "like a parameter", tx.init(params))
    assert set(jax.tree.leaves(jp.mask_of(marked))) == {"like a parameter"}
    assert set(jax.tree.leaves(marked[0][0].mu)) == {"like a parameter"}
    assert not isinstance(marked[-1].step, str)


def test_two_parts_of_multi_transform_have_masks_of_their_own():
    params = zoo.dense_params()
    hidden_or_readout = {
        "hidden": {"kernel": "hidden", "bias": "hidden"},
        "readout": {"kernel": "readout"},
    }
    tx = optax.multi_transform(
        {
            "hidden": optax.chain(optax.adam(0.1), zoo.magnitude_pruning(0.25, 1)),
            "readout": optax.chain(optax.adam(0.1), zoo.magnitude_pruning(0.75, 1)),
        },
        hidden_or_readout,
    )
    state = tx.init(params)
    step = zoo.step_of(tx)
    for _ in range(4):
        params, state = step(params, state)
    zeros = {name: int((leaf == 0).sum()) for name, leaf in jp.trees.named_leaves(params)}
    assert zeros == {"hidden/bias": 0, "hidden/kernel": 12, "readout/kernel": 18}
    with pytest.raises(ValueError, match="Found 2 masking transformations"):
        jp.mask_of(state)
    assert zoo.dropped(jp.mask_of(state.inner_states["readout"])) == 18


def test_a_full_mask_is_cut_to_the_part_a_wrapper_leaves():
    start, mask = zoo.masked_start()
    tx = optax.masked(jp.freeze_pruned(mask), kernels)
    state = tx.init(start)
    assert jp.trees.paths(jp.mask_of(state)) == ["hidden/kernel", "readout/kernel"]
    everything = jp.trees.full_mask(start)
    assert zoo.dropped(jp.mask_of(jp.with_mask(state, everything))) == 0
    with pytest.raises(ValueError, match="does not have the tree structure of the parameters"):
        optax.masked(jp.freeze_pruned(mask["hidden"]), kernels).init(start)
