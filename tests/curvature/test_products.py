"""hvp is the Hessian times a vector."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.dense import dense, flat, is_float
from tests.near import assert_near
from tests.problems import PROBLEMS


def random_like(params, seed):
    rng = np.random.default_rng(seed)
    draw = lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype) if is_float(x) else x
    return jax.tree.map(draw, params)


@pytest.mark.parametrize("name", PROBLEMS)
def test_hvp_is_the_hessian_times_the_vector(name, x64):
    problem = PROBLEMS[name](jnp.float64)
    vector = random_like(problem.params, 0)
    turned = jp.curvature.hvp(problem.apply, problem.loss)(problem.params, problem.batch, vector)
    truth = dense(name).hessians.mean(0) @ flat(problem.params, vector)
    assert_near(flat(problem.params, turned), truth, jnp.float64)
    assert jax.tree.structure(turned) == jax.tree.structure(problem.params)


def test_a_plain_loss_is_the_mean_over_examples(x64):
    problem = PROBLEMS["tanh_mlp"](jnp.float64)
    vector = random_like(problem.params, 1)
    plain = lambda p, batch: jnp.mean(problem.loss(problem.apply(p, batch[0]), batch[1]))
    turned = jp.curvature.hvp(plain)(problem.params, problem.batch, vector)
    truth = dense("tanh_mlp").hessians.mean(0) @ flat(problem.params, vector)
    assert_near(flat(problem.params, turned), truth, jnp.float64)


def test_a_vector_of_another_tree_is_refused_by_name():
    product = jp.curvature.hvp(lambda w, batch: jnp.sum(w["a"] ** 2))
    with pytest.raises(ValueError, match="vector at leaf 'a' has shape"):
        product({"a": jnp.ones(2)}, (jnp.ones(1),), {"a": jnp.ones(3)})
