"""Networks along a path of removals: masked, shrunk on the way, and one unit after the other."""

from functools import partial

import jax
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.transforms.residual_net import INNER, MODEL, N, Net, losses


def trainer(model, coupling, variables, x, y, every, stop=None, each=1):
    """The optimizer, and a jitted step of `(params, stats, state)`."""
    part = coupling.part(lambda v: v["params"], variables)
    train = partial(model.apply, train=True, mutable=["batch_stats"])
    apply = jp.coupling.gated_apply(coupling, train, has_aux=True)
    gates = jp.coupling.ones(coupling, x.dtype, groups=INNER, examples=N)
    tx = optax.chain(
        optax.adam(1e-2), jp.remove_units(part, every=every, each=each, groups=INNER, stop=stop)
    )

    @jax.jit
    def step(params, stats, state):
        def objective(params, gates):
            logits, aux = apply({"params": params, "batch_stats": stats}, gates, x)
            return losses(logits, y).mean(), aux["batch_stats"]

        found = jax.value_and_grad(objective, (0, 1), has_aux=True)(params, gates)
        (_, stats_), (gradient, slopes) = found
        updates, state_ = tx.update(gradient, state, params, gates=slopes)
        return optax.apply_updates(params, updates), stats_, state_

    return tx, step


def kept_in(state):
    return {name: np.asarray(flags) for name, flags in state[1].kept.items()}


def test_masked_and_shrunk_compute_the_same_along_the_path(light):
    variables, coupling, x, y = light
    tx, step = trainer(MODEL, coupling, variables, x, y, every=2)
    params, stats = variables["params"], variables["batch_stats"]
    state = tx.init(params)
    for removed in range(1, 6):
        for _ in range(2):
            params, stats, state = step(params, stats, state)
        kept = kept_in(state)
        assert sum(int((~flags).sum()) for flags in kept.values()) == removed
        assert float(state[1].masking.reached) == pytest.approx(removed / 11)
        whole = {"params": params, "batch_stats": stats}
        small = jp.structure.shrink_units(whole, kept, coupling)
        shrunk = jp.shrunk_apply(coupling, kept)
        np.testing.assert_allclose(shrunk(small, x), MODEL.apply(whole, x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_one_after_the_other_is_not_what_goes_at_once(light):
    """What is left says other things of itself when a unit is gone; both are offered."""
    variables, coupling, x, y = light
    found = []
    for each in (1, 5):
        tx, step = trainer(MODEL, coupling, variables, x, y, every=each, each=each)
        params, stats = variables["params"], variables["batch_stats"]
        state = tx.init(params)
        for _ in range(5):
            params, stats, state = step(params, stats, state)
        found.append(kept_in(state))
    assert [sum(int((~flags).sum()) for flags in kept.values()) for kept in found] == [5, 5]
    assert any((found[0][name] != found[1][name]).any() for name in INNER)


@pytest.mark.parametrize("at", [4, pytest.param(6, marks=pytest.mark.slow)])
def test_a_path_that_is_shrunk_on_the_way_goes_on_as_the_masked_one(at, problem, x64):
    """Shrunk between two removals, half of the signal summed, or at one."""
    variables, coupling, x, y = problem
    tx, step = trainer(MODEL, coupling, variables, x, y, every=3, stop=4)
    params, stats = variables["params"], variables["batch_stats"]
    state, path = tx.init(params), []
    for _ in range(13):
        path.append((params, stats, state))
        params, stats, state = step(params, stats, state)
    last = kept_in(state)
    expected = jp.structure.shrink_units({"params": params, "batch_stats": stats}, last, coupling)

    params, stats, state = path[at]
    kept = kept_in(state)
    gone = sum(int((~flags).sum()) for flags in kept.values())
    assert 0 < gone < 4
    whole = {"params": params, "batch_stats": stats}
    small, state = jp.shrink(whole, coupling.mask(kept, whole), coupling, state)
    model = Net(tuple(int(kept[name].sum()) for name in INNER))
    again = jp.couple(model.apply, small, x)
    _, step = trainer(model, again, small, x, y, every=3, stop=4 - gone)
    params, stats = small["params"], small["batch_stats"]
    for _ in range(at, 13):
        params, stats, state = step(params, stats, state)
    found = kept_in(state)
    assert sum(int((~flags).sum()) for flags in found.values()) == 4 - gone
    for name, flags in found.items():
        np.testing.assert_array_equal(np.flatnonzero(kept[name])[flags], np.flatnonzero(last[name]))
    ours = jp.structure.shrink_units({"params": params, "batch_stats": stats}, found, again)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), ours, expected
    )
