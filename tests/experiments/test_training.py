"""Training of many runs at once: the ways agree, and budgets are what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from experiments import training
from experiments.data import Split
from experiments.models import MLP
from experiments.training import Budget


@pytest.fixture(scope="module")
def runs():
    """Two small networks, masked, and their data."""
    model = MLP((6,), 3)
    rng = np.random.default_rng(0)
    split = Split(
        jnp.asarray(rng.normal(size=(40, 5)), jnp.float32), jnp.asarray(rng.integers(0, 3, 40))
    )
    keys = jnp.stack([jax.random.key(0), jax.random.key(1)])
    params = training.init_runs(lambda key: model.init(key, split.inputs[:1])["params"], keys)
    apply = lambda p, x: model.apply({"params": p}, x)
    prune = jp.one_shot(jp.saliency.magnitude(), jp.select.lowest())
    masks = training.stack([prune(p, sparsity=0.5).mask for p in training.unstack(params)])
    return apply, jax.vmap(jp.apply_mask)(params, masks), masks, keys, split


def test_step_by_step_is_the_same_as_one_program(runs, monkeypatch):
    budget = Budget(7, 8, 1e-2, 2)
    together = training.train_runs(*runs, budget)
    monkeypatch.setattr(training, "_one_by_one", lambda _: True)
    apart = training.train_runs(*runs, budget)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), together, apart)
    np.testing.assert_allclose(
        training.outputs(runs[0], together, runs[4]),
        training.outputs(runs[0], apart, runs[4], batch=7),
        atol=1e-4,
    )


def test_masks_stay_and_the_rest_trains(runs):
    _, params, masks, *_ = runs
    trained = training.train_runs(*runs, Budget(5, 8, 1e-2))
    for before, after, mask in zip(*map(jax.tree.leaves, (params, trained, masks)), strict=True):
        assert not np.asarray(after)[~np.asarray(mask)].any()
        assert (np.asarray(before) != np.asarray(after))[np.asarray(mask)].any()


def test_the_rate_is_optax_s_cosine_with_a_linear_start():
    steps = jnp.arange(41)
    plain = optax.cosine_decay_schedule(0.3, 40)
    np.testing.assert_allclose(Budget(40, 1, 0.3).rate(steps), plain(steps), atol=1e-7)
    warm = optax.warmup_cosine_decay_schedule(0.0, 0.3, 10, 40)
    np.testing.assert_allclose(Budget(40, 1, 0.3, 10).rate(steps), warm(steps), atol=1e-7)


def test_another_budget_compiles_nothing(runs):
    training.train_runs(*runs, Budget(3, 8, 1e-2))
    before = training._train_runs._cache_size()
    training.train_runs(*runs, Budget(4, 8, 1e-3, 1))
    assert training._train_runs._cache_size() == before
