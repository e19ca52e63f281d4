"""exact_diagonal is the diagonal of the Hessian, for every kind of model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.dense import dense, flat
from tests.near import assert_near
from tests.problems import PROBLEMS, squared_loss, tanh_mlp


@pytest.mark.every(5)
@pytest.mark.parametrize("name", PROBLEMS)
def test_exact_diagonal_is_the_diagonal_of_the_hessian(name, x64):
    problem = PROBLEMS[name](jnp.float64)
    diagonal = jp.curvature.exact_diagonal(problem.apply, problem.loss)(
        problem.params, problem.batch
    )
    per_example = dense(name).diagonals
    assert_near(flat(problem.params, diagonal.mean), per_example.mean(0), jnp.float64)
    second = flat(problem.params, diagonal.second_moment)
    assert_near(second, (per_example**2).mean(0), jnp.float64)
    assert diagonal.is_hessian
    # A weight that a smooth network reads again after it has bent what it made.
    slow = {"scan_rnn": ("0", "1"), "tied_net": ("shared",)}
    assert diagonal.fallback_paths == slow.get(name, ())


@pytest.mark.parametrize("name", ["tanh_mlp", "batch_norm_net"])
def test_exact_diagonal_holds_in_float32(name):
    problem = PROBLEMS[name]()
    diagonal = jp.curvature.exact_diagonal(problem.apply, problem.loss)(
        problem.params, problem.batch
    )
    assert_near(flat(problem.params, diagonal.mean), dense(name).diagonals.mean(0), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(diagonal.mean)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("chunk", [1, 3, 10_000])
def test_the_chunk_changes_nothing_but_memory(chunk, x64):
    problem = tanh_mlp(jnp.float64)
    diagonal = jp.curvature.exact_diagonal(problem.apply, problem.loss, chunk=chunk)(
        problem.params, problem.batch
    )
    truth = dense("tanh_mlp").diagonals.mean(0)
    assert_near(flat(problem.params, diagonal.mean), truth, jnp.float64)


@jax.custom_vjp
def _only_reverse(x):
    return jnp.tanh(x)


_only_reverse.defvjp(lambda x: (jnp.tanh(x), jnp.tanh(x)), lambda y, ct: (ct * (1 - y * y),))


def test_a_model_without_a_forward_derivative_has_an_exact_diagonal_too(x64):
    problem = tanh_mlp(jnp.float64)

    def apply(params, x):
        hidden = _only_reverse(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        return hidden @ params["head"]["kernel"] + params["head"]["bias"]

    diagonal = jp.curvature.exact_diagonal(apply, problem.loss)(problem.params, problem.batch)
    truth = dense("tanh_mlp").diagonals
    assert_near(flat(problem.params, diagonal.mean), truth.mean(0), jnp.float64)
    second = flat(problem.params, diagonal.second_moment)
    assert_near(second, (truth**2).mean(0), jnp.float64)
    assert diagonal.is_hessian
    assert diagonal.fallback_paths == ()


@pytest.mark.parametrize("error", [TypeError, NotImplementedError])
def test_other_errors_of_the_model_are_not_taken_for_a_custom_vjp(error):
    def apply(params, x):
        raise error("the model's own mistake")

    with pytest.raises(error, match="the model's own mistake"):
        jp.curvature.exact_diagonal(apply, squared_loss)(jnp.ones(2), (jnp.ones(1), jnp.ones(1)))


def test_a_quadratic_has_its_own_coefficients(x64):
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(7, 3)), rng.normal(size=(7,))
    apply = lambda w, x: x @ w
    loss = lambda y, t: 0.5 * (y - t) ** 2
    diagonal = jp.curvature.exact_diagonal(apply, loss)(jnp.zeros(3), (jnp.array(x), jnp.array(t)))
    assert_near(diagonal.mean, (x**2).mean(0), jnp.float64, 10)
    assert_near(diagonal.second_moment, (x**4).mean(0), jnp.float64, 10)
