"""gauss_newton_diagonal is the diagonal of J' H J, and of the Hessian where that is the same."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.dense import dense, flat
from tests.near import assert_near
from tests.problems import PROBLEMS

WITH_ROOT = [name for name, make in PROBLEMS.items() if make().root is not None]


def measured(problem, **options):
    diagonal = jp.curvature.gauss_newton_diagonal(problem.apply, problem.loss, **options)
    return diagonal(problem.params, problem.batch)


@pytest.mark.every(3)
@pytest.mark.parametrize("name", PROBLEMS)
def test_gauss_newton_is_jacobian_output_hessian_jacobian(name, x64):
    problem = PROBLEMS[name](jnp.float64)
    diagonal = measured(problem)
    truth = dense(name).gauss_newton
    # The eigendecomposition of the output Hessian costs some hundred roundings.
    assert_near(flat(problem.params, diagonal.mean), truth.mean(0), jnp.float64, 1000)
    second = flat(problem.params, diagonal.second_moment)
    assert_near(second, (truth**2).mean(0), jnp.float64, 1000)
    float_names = set(dense(name).names)
    assert diagonal.is_hessian == all(problem.gauss_newton(leaf) for leaf in float_names)


@pytest.mark.every(3)
@pytest.mark.parametrize("name", WITH_ROOT)
def test_the_closed_form_root_gives_the_same_diagonal(name, x64):
    problem = PROBLEMS[name](jnp.float64)
    diagonal = measured(problem, root=problem.root)
    truth = dense(name).gauss_newton.mean(0)
    assert_near(flat(problem.params, diagonal.mean), truth, jnp.float64)


@pytest.mark.parametrize("name", PROBLEMS)
def test_where_the_model_is_linear_in_each_leaf_it_is_the_hessian_and_elsewhere_it_is_not(name):
    truth, problem = dense(name), PROBLEMS[name]()
    linear = np.array([problem.gauss_newton(leaf) for leaf in truth.names])
    hessian, gauss_newton = truth.diagonals.mean(0), truth.gauss_newton.mean(0)
    if linear.any():
        assert_near(gauss_newton[linear], hessian[linear], jnp.float64)
    if not linear.all():  # the claim has teeth: the two differ where it is not made
        assert np.abs(gauss_newton - hessian)[~linear].max() > 1e-3


@pytest.mark.parametrize("microbatch", [1, 2, 3, 100])
def test_the_microbatch_changes_nothing_but_memory(microbatch, x64):
    problem = PROBLEMS["relu_mlp"](jnp.float64)
    found = measured(problem, root=problem.root, microbatch=microbatch)
    truth = dense("relu_mlp").gauss_newton
    for one, other in ((found.mean, truth.mean(0)), (found.second_moment, (truth**2).mean(0))):
        np.testing.assert_allclose(flat(problem.params, one), other, rtol=1e-12, atol=1e-15)


def test_outputs_in_bfloat16_are_taken_in_float32():
    problem = PROBLEMS["tanh_mlp"]()
    narrow = problem._replace(apply=lambda p, x: problem.apply(p, x).astype(jnp.bfloat16))
    truth = dense("tanh_mlp").gauss_newton.mean(0)
    for options in ({}, {"root": problem.root}):
        found = flat(problem.params, measured(narrow, **options).mean)
        # Logits, and deltas on their way back, are rounded to bfloat16 once each.
        assert_near(found, truth, jnp.bfloat16, 8)


def test_a_single_class_has_no_curvature():
    apply = lambda w, x: (x @ w)[:, None]
    zero = lambda y, t: 0 * y[:, 0]
    diagonal = jp.curvature.gauss_newton_diagonal(apply, zero, root=jp.curvature.softmax_root)
    assert not np.any(diagonal(jnp.ones(2), (jnp.ones((3, 2)), jnp.zeros(3))).mean)
