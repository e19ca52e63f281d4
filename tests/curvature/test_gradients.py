"""Fisher and gradient moments against a loop of jax.grad, one example at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.dense import dense, flat
from tests.near import assert_near
from tests.problems import PROBLEMS


@pytest.mark.every(5)
@pytest.mark.parametrize("name", PROBLEMS)
def test_moments_are_those_of_per_example_gradients(name, x64):
    problem = PROBLEMS[name](jnp.float64)
    g = dense(name).gradients
    fisher = jp.curvature.fisher_diagonal(problem.apply, problem.loss, microbatch=2)(
        problem.params, problem.batch
    )
    assert_near(flat(problem.params, fisher.mean), (g**2).mean(0), jnp.float64)
    assert_near(flat(problem.params, fisher.second_moment), (g**4).mean(0), jnp.float64)
    moments = jp.curvature.gradient_moments(problem.apply, problem.loss, microbatch=2)(
        problem.params, problem.batch
    )
    assert_near(flat(problem.params, moments.mean), g.mean(0), jnp.float64)
    assert_near(flat(problem.params, moments.second_moment), (g**2).mean(0), jnp.float64)
    assert not fisher.is_hessian


def test_the_dense_truth_is_a_loop_of_jax_grad(x64):
    problem = PROBLEMS["conv_net"](jnp.float64)
    inputs, targets = problem.batch
    one = lambda p, x, t: problem.loss(problem.apply(p, x), t)[0]
    loop = [
        flat(problem.params, jax.grad(one)(problem.params, inputs[n : n + 1], targets[n : n + 1]))
        for n in range(len(inputs))
    ]
    assert_near(dense("conv_net").gradients, np.stack(loop), jnp.float64)
