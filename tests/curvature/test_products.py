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


def gauss_newton_matrix(name):
    truth = dense(name)
    j, h = truth.jacobians, truth.output_hessians
    return np.einsum("nkp,nkl,nlq->pq", j, h, j) / len(j)


@pytest.mark.every(5)
@pytest.mark.parametrize("microbatch", [None, 2])
@pytest.mark.parametrize("name", PROBLEMS)
def test_gauss_newton_vp_is_jacobian_output_hessian_jacobian(name, microbatch, x64):
    problem = PROBLEMS[name](jnp.float64)
    vector = random_like(problem.params, 2)
    product = jp.curvature.products.gauss_newton_vp(
        problem.apply, problem.loss, microbatch=microbatch
    )
    turned = product(problem.params, problem.batch, vector)
    truth = gauss_newton_matrix(name) @ flat(problem.params, vector)
    assert_near(flat(problem.params, turned), truth, jnp.float64)
    assert jax.tree.structure(turned) == jax.tree.structure(problem.params)
    for x, leaf in zip(jax.tree.leaves(turned), jax.tree.leaves(problem.params), strict=True):
        assert x.shape == leaf.shape
        assert is_float(leaf) or not np.any(x)


@pytest.mark.parametrize("name", ["relu_mlp", "conv_net", "wavy_net"])
def test_in_a_piecewise_linear_net_it_has_the_blocks_of_the_hessian(name, x64):
    problem = PROBLEMS[name](jnp.float64)
    both = [make(problem.apply, problem.loss) for make in (
        jp.curvature.products.gauss_newton_vp, jp.curvature.hvp)]  # fmt: skip
    leaves, structure = jax.tree.flatten(random_like(problem.params, 3))
    between = 0.0
    for i in range(len(leaves)):
        alone = [x if i == k else jnp.zeros_like(x) for k, x in enumerate(leaves)]
        vector = jax.tree.unflatten(structure, alone)
        ours, hessian = (
            jax.tree.leaves(product(problem.params, problem.batch, vector)) for product in both
        )
        assert_near(ours[i], hessian[i], jnp.float64)
        pairs = zip(ours, hessian, strict=True)
        between = max(between, *(float(jnp.max(jnp.abs(a - b))) for a, b in pairs))
    assert between > 1e-3  # and only those: layers multiply each other's weights


def test_where_the_loss_is_stationary_it_is_the_whole_hessian(x64):
    problem = PROBLEMS["relu_mlp"](jnp.float64)
    batch = (problem.batch[0], problem.apply(problem.params, problem.batch[0]))
    vector = random_like(problem.params, 4)
    ours = jp.curvature.products.gauss_newton_vp(problem.apply, problem.loss)
    hessian = jp.curvature.hvp(problem.apply, problem.loss)(problem.params, batch, vector)
    found = flat(problem.params, ours(problem.params, batch, vector))
    assert_near(found, flat(problem.params, hessian), jnp.float64)


@pytest.mark.parametrize("microbatch", [None, 2])
def test_examples_may_depend_on_each_other(microbatch, x64):
    rng = np.random.default_rng(5)
    w, x, t, v = (jnp.asarray(rng.normal(size=s)) for s in ((3, 2), (5, 3), (5, 2), (3, 2)))
    apply = lambda w, x: jnp.tanh(x @ w - (x @ w).mean(0))
    loss = lambda y, t: jnp.sum(jnp.cosh(y - t), axis=-1)
    jacobian = np.asarray(jax.jacrev(apply)(w, x)).reshape(10, 6)
    bend = np.asarray(jax.hessian(lambda y: jnp.mean(loss(y, t)))(apply(w, x))).reshape(10, 10)
    product = jp.curvature.products.gauss_newton_vp(apply, loss, microbatch=microbatch)
    truth = jacobian.T @ bend @ jacobian @ np.ravel(v)
    assert_near(np.ravel(product(w, (x, t), v)), truth, jnp.float64)
    turned = jp.curvature.hvp(apply, loss, microbatch=microbatch)(w, (x, t), v)
    whole = jax.hessian(lambda w: jnp.mean(loss(apply(w, x), t)))(w).reshape(6, 6)
    assert_near(np.ravel(turned), whole @ np.ravel(v), jnp.float64)


@pytest.mark.every(3)
@pytest.mark.parametrize("microbatch", [1, 3, 5, 100])
@pytest.mark.parametrize("name", ["tanh_mlp", "cluttered"])
def test_microbatches_add_up_to_the_hessian(name, microbatch, x64):
    problem = PROBLEMS[name](jnp.float64)
    vector = random_like(problem.params, 6)
    product = jp.curvature.hvp(problem.apply, problem.loss, microbatch=microbatch)
    truth = dense(name).hessians.mean(0) @ flat(problem.params, vector)
    for run in (product, jax.jit(product)):
        found = run(problem.params, problem.batch, vector)
        assert_near(flat(problem.params, found), truth, jnp.float64)


def test_products_keep_the_dtypes_of_the_leaves():
    w = jnp.ones((3, 2), jnp.bfloat16)
    batch = (jnp.ones((4, 3)), jnp.zeros((4, 2)))
    loss = lambda y, t: jnp.sum((y - t) ** 2, axis=1)
    for make in (jp.curvature.hvp, jp.curvature.products.gauss_newton_vp):
        for microbatch in (None, 3):
            found = make(lambda w, x: x @ w, loss, microbatch=microbatch)(w, batch, w)
            assert found.dtype == jnp.bfloat16
            assert np.all(np.asarray(found, np.float32) == 6.0)


@pytest.mark.parametrize("make", [jp.curvature.hvp, jp.curvature.gauss_newton_vp])
def test_products_of_bfloat16_leaves_are_those_of_float32_rounded_once(make):
    rng = np.random.default_rng(0)
    w, x, y = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in ((3, 2), (8, 3), (8, 2)))
    loss = lambda y, t: jnp.sum((y - t) ** 2, axis=1)
    wide = [leaf.astype(jnp.float32) for leaf in (w, x, y)]
    apply = lambda w, x: jnp.tanh(x @ w)
    truth = make(apply, loss)(wide[0], (wide[1], wide[2]), jnp.ones((3, 2)))
    for microbatch in (None, 8, 3):
        found = make(apply, loss, microbatch=microbatch)(w, (x, y), jnp.ones_like(w))
        assert found.dtype == jnp.bfloat16
        assert_near(found, truth, jnp.bfloat16, 1)


def test_what_the_products_refuse():
    loss = lambda y, t: jnp.mean((y - t) ** 2)
    product = jp.curvature.products.gauss_newton_vp(lambda w, x: x @ w, loss)
    with pytest.raises(ValueError, match="one loss per example"):
        product(jnp.ones(2), (jnp.ones((3, 2)), jnp.ones(3)), jnp.ones(2))
    with pytest.raises(ValueError, match="vector at the only leaf has shape"):
        product(jnp.ones(2), (jnp.ones((3, 2)), jnp.ones(3)), jnp.ones(3))
    with pytest.raises(ValueError, match="needs per-example losses"):
        jp.curvature.hvp(lambda w, batch: 0.0, microbatch=2)
    for make in (jp.curvature.hvp, jp.curvature.products.gauss_newton_vp):
        with pytest.raises(ValueError, match="`microbatch` is how many"):
            make(lambda w, x: x, loss, microbatch=0)
