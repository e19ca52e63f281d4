"""Hutchinson's estimate: unbiased, with the variance its docstring states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.dense import dense, flat
from tests.problems import PROBLEMS


def draws(problem, probes, repeats):
    """[repeats, p]: independent estimates."""
    one = lambda key: (
        jp.curvature.hutchinson_diagonal(problem.apply, problem.loss, key=key, probes=probes)(
            problem.params, problem.batch
        ).mean
    )
    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), repeats))
    return np.stack(
        [flat(problem.params, jax.tree.map(lambda x, r=r: x[r], found)) for r in range(repeats)]
    )


@pytest.mark.parametrize("probes", [1, 9])
def test_the_estimate_is_unbiased_and_its_variance_falls_as_one_over_the_probes(probes):
    problem, repeats = PROBLEMS["tanh_mlp"](), 2000
    hessian = dense("tanh_mlp").hessians.mean(0)
    truth = np.diag(hessian)
    variance = ((hessian**2).sum(1) - truth**2) / probes
    found = draws(problem, probes, repeats)
    # Five standard errors over 31 entries: a false alarm in some 60,000 runs, and the key is fixed.
    error = np.abs(found.mean(0) - truth)
    assert (error <= 5 * np.sqrt(variance / repeats) + 1e-6).all()
    # The standard error of a variance is sqrt((kurtosis - 1) / repeats) of it; 10 is generous.
    assert (np.abs(found.var(0) / variance - 1) <= 5 * np.sqrt(9 / repeats)).all()


def test_a_diagonal_hessian_is_found_by_one_probe():
    cube = lambda w, batch: jnp.sum(w**3) / 6
    estimate = jp.curvature.hutchinson_diagonal(cube, key=jax.random.key(3), probes=1)
    w = jnp.array([1.0, -2.0, 5.0])
    np.testing.assert_array_equal(estimate(w, (jnp.ones(1),)).mean, w)


def test_every_batch_meets_the_same_probes_so_that_sums_add():
    problem = PROBLEMS["tanh_mlp"]()
    saliency = jp.saliency.optimal_brain_damage(
        jp.curvature.hutchinson_diagonal(
            problem.apply, problem.loss, key=jax.random.key(0), probes=1
        )
    )
    cut = lambda a, b: jax.tree.map(lambda x: x[a:b], problem.batch)
    split = jp.saliency.over_batches(saliency)(problem.params, [cut(0, 2), cut(2, 5)])
    whole = saliency(problem.params, problem.batch)
    np.testing.assert_allclose(
        flat(problem.params, split), flat(problem.params, whole), rtol=1e-4, atol=1e-5
    )
