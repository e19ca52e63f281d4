"""Units pruned while a network trains: whole, exactly as many as the schedule says, and shrunk."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp


def apply(params, x):
    hidden = jax.nn.relu(x @ params["a"] + params["b"])
    return jnp.tanh(hidden @ params["c"]) @ params["d"]


@pytest.fixture
def problem():
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = {"a": (5, 16), "b": (16,), "c": (16, 12), "d": (12, 3)}
    pairs = zip(shapes.items(), keys, strict=False)
    params = {name: jax.random.normal(key, shape) for (name, shape), key in pairs}
    x = jax.random.normal(keys[4], (20, 5))
    return params, x, jp.couple(apply, params, x)


@pytest.mark.slow
@pytest.mark.every(3)
@pytest.mark.parametrize("scores", ["magnitude", "fisher"])
def test_units_go_while_it_trains(problem, scores):
    params, x, coupling = problem
    loss = lambda y, t: jnp.sum((y - t) ** 2, -1)
    saliency = {
        "magnitude": jp.saliency.magnitude(),
        "fisher": jp.saliency.unit_fisher(coupling, loss),
    }[scores]
    gradual = jp.prune_gradually(
        saliency, jp.select.lowest_units(coupling), jp.schedule.cubic(0.5, 20), every=5
    )
    tx = optax.chain(optax.adam(1e-2), gradual)
    batch = (x, jnp.ones((20, 3)))

    @jax.jit
    def step(params, state):
        gradient = jax.grad(lambda p: loss(apply(p, x), batch[1]).mean())(params)
        updates, state = tx.update(gradient, state, params, batch=batch)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    counts = []
    for _ in range(30):
        params, state = step(params, state)
        kept = coupling.kept(jp.mask_of(state))
        counts.append(sum(int(np.sum(k)) for k in kept.values()))
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == coupling.units - round(0.5 * coupling.units)
    mask = jp.mask_of(state)
    small, small_state = jp.shrink(params, mask, coupling, state)
    assert small["c"].size < params["c"].size
    np.testing.assert_allclose(apply(small, x), apply(params, x), rtol=1e-4, atol=1e-5)
    assert jax.tree.map(jnp.shape, small_state[0][0].mu) == jax.tree.map(jnp.shape, small)


def test_what_cannot_be_done_is_said(problem):
    params, _, coupling = problem
    units = jp.select.lowest_units(coupling)
    schedule = jp.schedule.constant(0.5)
    with pytest.raises(ValueError, match="prune units with `prune_gradually`"):
        jp.straight_through(jp.saliency.magnitude(), units, schedule)
    with pytest.raises(ValueError, match="differs from the one that was coupled"):
        jp.prune_gradually(jp.saliency.magnitude(), units, schedule).init({"a": params["a"]})
    budget = jp.select.lowest_units(coupling, budget=jp.select.Budget("parameters", 0.5))
    with pytest.raises(ValueError, match=r"leave `budget=` out, or prune with `jp.one_shot`"):
        jp.prune_gradually(jp.saliency.magnitude(), budget, schedule)
