"""regrow around any optimizer, inside and outside of wrappers, in any tree."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.transforms import RegrowState, regrowing
from tests.transforms import zoo
from tests.transforms.regrown import by_pairs, kept, rigl, run

# Laws of what is done with a ranking take that of all pairs, which compiles in no time.


@pytest.fixture
def ranked_in_pairs(monkeypatch):
    monkeypatch.setattr(regrowing, "keep_largest", by_pairs)


quick = pytest.mark.usefixtures("ranked_in_pairs")


def loss(weights):
    return jnp.mean((jnp.tanh(weights["kernel"]) @ jnp.arange(4.0) - 1 + weights["bias"]) ** 2)


def small():
    return {"kernel": jax.random.normal(jax.random.key(5), (6, 4)), "bias": jnp.zeros(6)}


def trained(tx, steps, flip=None):
    """Parameters and state before and after every step; compiled once.

    Before step `flip` the kernel's mask is turned over, so that what can grow has old moments.
    """

    traced = []

    def step(now, state):
        traced.append(now)
        grads = jax.grad(loss)(now)
        updates, state = tx.update(grads, state, now, value=loss(now), obj_fn=loss)
        return optax.apply_updates(now, updates), state

    step = jax.jit(step)
    now, state = small(), tx.init(small())
    for i in range(steps):
        if i == flip:
            other = jp.mask_of(state)
            state = jp.with_mask(state, other | {"kernel": ~other["kernel"]})
            now = jp.apply_mask(now, jp.mask_of(state))
        before = now, state
        now, state = step(now, state)
        yield before, (now, state)
    assert len(traced) == 1


# One of each kind of state: moments, none shaped like a weight, one that is not 0, copies.
IN_EVERY_RUN = ("adamw", "adafactor", "adagrad", "muon", "schedule_free", "sgd_nesterov")


@pytest.mark.every(3)
@quick
@pytest.mark.parametrize(
    "name",
    [
        name if name in IN_EVERY_RUN else pytest.param(name, marks=pytest.mark.slow)
        for name in sorted(zoo.OPTIMIZERS)
    ],
)
def test_every_optimizer_trains_what_is_kept_and_starts_grown_weights_anew(name):
    optimizer = zoo.OPTIMIZERS[name]()
    tx = rigl(optimizer, every=3, stop=6)
    for step, ((old, state), (new, after)) in enumerate(trained(tx, 5, flip=3)):
        was, mask = jp.mask_of(state)["kernel"], jp.mask_of(after)["kernel"]
        assert kept(jp.mask_of(after)) == {"kernel": 12, "bias": 6}
        assert not new["kernel"][~mask].any()
        if step == 3:
            grown = np.asarray(mask & ~was)
            assert grown.any()
            assert not new["kernel"][grown].any()
            np.testing.assert_array_equal(new["kernel"][mask & was], old["kernel"][mask & was])
            zero = jax.tree.map(jnp.zeros_like, new)
            for a, b, c in zip(
                *map(jax.tree.leaves, (state.inner, after.inner, optimizer.init(zero))), strict=True
            ):
                same = np.ones(np.shape(a), bool)
                if np.shape(a) == grown.shape and jnp.issubdtype(a.dtype, jnp.inexact):
                    np.testing.assert_array_equal(b[grown], c[grown])
                    same = ~grown
                np.testing.assert_array_equal(np.asarray(b)[same], np.asarray(a)[same])
        else:
            moved = (new["kernel"] != old["kernel"])[mask].any()
            assert moved or name == "mechanic"  # its first steps are below a weight's last bit
    assert (new["kernel"] != old["kernel"])[grown & np.asarray(mask)].any()  # and they train


ADAM = optax.adam(0.125)
INSIDE = {
    "chain_with_clipping": optax.chain(optax.clip_by_global_norm(0.5), ADAM),
    "multi_steps": optax.MultiSteps(ADAM, 2),
    "multi_transform": optax.multi_transform(
        {"a": ADAM, "b": optax.sgd(0.1)}, {"kernel": "a", "bias": "b"}
    ),
    "masked": optax.masked(ADAM, {"kernel": True, "bias": False}),
    "inject_hyperparams": optax.inject_hyperparams(optax.adam)(optax.linear_schedule(0.1, 0, 9)),
    "flatten": optax.flatten(ADAM),
    "apply_if_finite": optax.apply_if_finite(ADAM, 5),
}


@pytest.mark.every(3)
@quick
@pytest.mark.parametrize("name", sorted(INSIDE))
def test_wrappers_inside_have_the_moments_of_grown_weights_reset(name):
    for step, ((_, state), (_, after)) in enumerate(
        trained(rigl(INSIDE[name], every=5), 6, flip=5)
    ):
        if step == 5:
            grown = np.asarray(jp.mask_of(after)["kernel"] & ~jp.mask_of(state)["kernel"])
            flat = np.concatenate([np.zeros(6, bool), grown.ravel()])  # the bias comes first
            copies = 0
            for a, b in zip(*map(jax.tree.leaves, (state.inner, after.inner)), strict=True):
                where = {grown.shape: grown, flat.shape: flat}.get(np.shape(a))
                if where is not None:
                    copies += 1
                    assert a[where].any()
                    assert not b[where].any()
                    np.testing.assert_array_equal(b[~where], a[~where])
            assert grown.any()
            assert copies >= 2


OUTSIDE = {
    "multi_steps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "multi_transform": lambda tx: optax.multi_transform(
        {"a": tx, "b": optax.sgd(0.1)}, {"kernel": "a", "bias": "b"}
    ),
    "masked": lambda tx: optax.masked(tx, {"kernel": True, "bias": False}),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 5),
}


@pytest.mark.every(3)
@quick
@pytest.mark.parametrize("name", sorted(OUTSIDE))
def test_wrappers_outside_find_the_mask_and_its_count(name):
    tx = OUTSIDE[name](rigl(ADAM, grow="random"))
    first = jp.mask_of(tx.init(small()))
    for step, (_, (now, state)) in enumerate(trained(tx, 6)):
        mask = jp.mask_of(state)["kernel"]
        assert int(mask.sum()) == 12
        assert step == 0 or not now["kernel"][~mask].any()  # a first micro step changes nothing
    assert (mask != first["kernel"]).any()


def test_optax_finds_the_parameters_in_the_state():
    tx = rigl(ADAM, grow="random")
    doubled = optax.tree_map_params(tx, lambda leaf: leaf, tx.init(small()))
    assert isinstance(doubled, RegrowState)


TREES = {
    "bare_array": lambda p: p["kernel"],
    "list": lambda p: [p["kernel"], p["bias"]],
    "bfloat16": lambda p: {"kernel": p["kernel"].astype(jnp.bfloat16)},
    "holes": lambda p: {"kernel": p["kernel"], "absent": None, "nothing": {}},
    "empty_leaf": lambda p: {"kernel": p["kernel"], "none_left": jnp.zeros((0, 4))},
}


@pytest.mark.every(3)
@quick
@pytest.mark.parametrize("name", sorted(TREES))
def test_every_tree_keeps_its_structure_and_dtypes_and_half_of_its_kernel(name):
    start = TREES[name](small())
    tx = rigl(ADAM, scope="layer")
    for now, state in run(tx, start, 3):
        assert jax.tree.structure(now) == jax.tree.structure(start)
        assert [x.dtype for x in jax.tree.leaves(now)] == [x.dtype for x in jax.tree.leaves(start)]
        assert zoo.dropped(jp.mask_of(state)) == 12
        assert zoo.alive(now, jp.mask_of(state)) == 0


@pytest.mark.parametrize("hole", [False, True])
def test_the_one_vector_of_all_leaves_is_reset_as_the_leaves_are(hole):
    params = small() | ({"bias": optax.MaskedNode()} if hole else {})
    where = jax.tree.map(lambda w: jnp.arange(w.size).reshape(w.shape) % 3 == 0, params)
    tx = optax.trace(0.9)
    _, state = tx.update(params, tx.init(params), params)
    joined = optax.flatten(tx)
    _, vector = joined.update(params, joined.init(params), params)
    apart = jp.transforms.reset_moments(tx, state, params, where).trace
    found = jp.transforms.reset_moments(joined, vector, params, where).trace
    np.testing.assert_array_equal(found, jnp.concatenate([*map(jnp.ravel, jax.tree.leaves(apart))]))
    assert (found == 0).sum() >= 8


def test_what_to_reset_is_a_tree_of_flags():
    tx, params = optax.trace(0.9), small()
    with pytest.raises(TypeError, match="entries to reset at leaf 'bias' has dtype float32"):
        jp.transforms.reset_moments(tx, tx.init(params), params, params)
    with pytest.raises(ValueError, match="entries to reset does not have the tree structure"):
        jp.transforms.reset_moments(tx, tx.init(params), params, [jnp.ones(6, bool)])
