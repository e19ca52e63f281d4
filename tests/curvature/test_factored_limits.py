"""What the factored Fisher keeps in memory, and what it refuses."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.curvature.factored import factored_fisher
from tests.curvature.test_factored import fisher_of
from tests.problems import softmax_loss, squared_loss


def wide_mlp(sizes, n, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / shape[0] ** 0.5, dtype)
    params = [draw(i, o) for i, o in itertools.pairwise(sizes)]

    def apply(params, x):
        for w in params[:-1]:
            x = jnp.tanh(x @ w)
        return x @ params[-1]

    batch = (draw(n, sizes[0]), jnp.asarray(rng.integers(0, sizes[-1], n), jnp.int32))
    return params, apply, batch


def memory(function, *args):
    analysis = jax.jit(function).lower(*args).compile().memory_analysis()
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def test_the_gradients_of_dense_layers_are_never_all_there():
    n = 64
    params, apply, batch = wide_mlp((200, 200, 90, 20), n)
    d = sum(w.size for w in params)
    assert d > 59_000
    fisher = factored_fisher(apply, softmax_loss)
    assert memory(lambda p, b: (fisher(p, b), fisher(p, b).gram()), params, batch) < n * d * 4 / 8
    held = fisher(params, batch)
    # Vectors are d; n d would be 64 of them.
    for run in (
        lambda f, v: f.inverse_vp(v, 0.1),
        lambda f, v: f.inverse_vp(v, 0.1, "leaf"),
        lambda f, v: f.fisher_vp(v, 0.1),
        lambda f, v: f.diagonal(),
    ):
        assert memory(run, held, params) < n * d * 4 / 8


def test_no_more_than_a_few_blocks_are_there_at_once(monkeypatch):
    monkeypatch.setattr("jaxprune.curvature.fisher_blocks.budget", lambda dtype: 1 << 14)
    n = 64
    params, apply, batch = wide_mlp((200, 211, 90, 21), n)
    held = factored_fisher(apply, softmax_loss)(params, batch)
    d = sum(w.size for w in params)
    for size in (37, 300):
        run = partial(lambda f, v, size: f.inverse_vp(v, 0.1, size), size=size)
        assert memory(run, held, params) < n * d * 4 / 8


def test_what_is_refused():
    problem, fisher = fisher_of("tanh_mlp", jnp.float32)
    v = problem.params
    for bad in (0, 0.0, -1.0, float("nan"), float("inf"), jnp.float32(-2)):
        with pytest.raises(ValueError, match="`damping` is a number > 0"):
            fisher.inverse_vp(v, bad)
    with pytest.raises(ValueError, match="`damping` is a number >= 0"):
        fisher.fisher_vp(v, -1e-9)
    with pytest.raises(ValueError, match="`damping` is one number"):
        fisher.inverse_vp(v, jnp.ones(2))
    for bad in (0, -3, True, "layer", 2.0, (2,)):
        for run in (fisher.fisher_vp, fisher.inverse_vp):
            with pytest.raises(ValueError, match="`blocks` is None"):
                run(v, 1.0, bad)
    with pytest.raises(ValueError, match="vector does not have the tree structure"):
        fisher.times([v])
    with pytest.raises(ValueError, match="vector at leaf 'head/bias' has shape"):
        fisher.inverse_vp({**v, "head": {**v["head"], "bias": jnp.ones(9)}}, 1.0)
    with pytest.raises(ValueError, match=r"one weight per example, shape \(5,\)"):
        fisher.transposed(jnp.ones(4))
    with pytest.raises(ValueError, match="no leaf 4"):
        fisher.columns(4, [0])
    with pytest.raises(ValueError, match="has 3 entries"):
        fisher.columns(0, [3])
    with pytest.raises(ValueError, match="`microbatch` is how many"):
        factored_fisher(problem.apply, problem.loss, microbatch=0)
    with pytest.raises(ValueError, match="one loss per example"):
        factored_fisher(problem.apply, lambda y, t: jnp.mean(y))(v, problem.batch)
    with pytest.raises(ValueError, match="No leaf of the parameters"):
        factored_fisher(lambda p, x: x, squared_loss)(jnp.int32(1), (jnp.ones((2, 1)),) * 2)
