"""What is particular to single saliencies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.dense import flat
from tests.near import assert_trees_equal
from tests.problems import N, cluttered, tanh_mlp


def order(params, scores):
    return np.argsort(flat(params, scores), kind="stable")


def test_snip_and_taylor_rank_alike_and_snip_sums_to_one():
    problem = tanh_mlp()
    snip = jp.saliency.snip(problem.apply, problem.loss)(problem.params, problem.batch)
    taylor = jp.saliency.taylor(problem.apply, problem.loss)(problem.params, problem.batch)
    np.testing.assert_array_equal(order(problem.params, snip), order(problem.params, taylor))
    np.testing.assert_allclose(flat(problem.params, snip).sum(), 1, rtol=1e-6)


def test_snip_of_a_loss_that_no_weight_changes_is_zero_and_not_nan():
    scores = jp.saliency.snip(lambda w, x: 0 * (x @ w), lambda y, t: y)
    assert not np.any(scores(jnp.ones(2), (jnp.ones((3, 2)), jnp.ones(3))))


def test_obd_sd_with_no_weight_on_the_spread_is_obd():
    problem = tanh_mlp()
    curvature = jp.curvature.exact_diagonal(problem.apply, problem.loss)
    sd = jp.saliency.optimal_brain_damage_sd(curvature, c=0)(problem.params, problem.batch)
    obd = jp.saliency.optimal_brain_damage(curvature)(problem.params, problem.batch)
    assert_trees_equal(sd, obd)


def test_the_spread_enters_linearly_in_c():
    problem = tanh_mlp()
    curvature = jp.curvature.exact_diagonal(problem.apply, problem.loss)
    at = lambda c: flat(problem.params, jp.saliency.optimal_brain_damage_sd(curvature, c=c)(
        problem.params, problem.batch))  # fmt: skip
    np.testing.assert_allclose(at(2.0) - at(0.0), 2 * (at(1.0) - at(0.0)), rtol=1e-4, atol=1e-6)


def test_fisher_is_obd_with_the_fisher_diagonal():
    problem = tanh_mlp()
    diagonal = jp.curvature.fisher_diagonal(problem.apply, problem.loss)
    assert_trees_equal(
        jp.saliency.fisher(diagonal)(problem.params, problem.batch),
        jp.saliency.optimal_brain_damage(diagonal)(problem.params, problem.batch),
    )


def test_magnitude_takes_complex_weights_and_derivatives_say_they_do_not():
    params = [jnp.array([[3 + 4j, 1j]])]
    np.testing.assert_allclose(jp.saliency.magnitude()(params)[0], [[5, 1]])
    plain = jp.saliency.taylor(lambda p, batch: jnp.abs(p[0]).sum())
    with pytest.raises(TypeError, match="leaf '0' is complex64: derivatives are taken for real"):
        plain(params, (jnp.ones(1),))


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e18])
def test_lamp_neither_underflows_nor_overflows(scale):
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)) * scale, jnp.float32)
    found = jp.saliency.lamp()([weights])[0]
    expected = jp.saliency.lamp()([weights / scale])[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.max() == 1


def test_lamp_of_zeros_is_zero_and_ranks_within_a_leaf_as_magnitude():
    params = {"zeros": jnp.zeros((2, 2)), "w": jnp.array([[1.0, -3.0], [2.0, 2.0]])}
    scores = jp.saliency.lamp()(params)
    assert not scores["zeros"].any()
    np.testing.assert_array_equal(np.argsort(scores["w"].ravel(), kind="stable"), [0, 2, 3, 1])


def test_random_scores_are_uniform_and_their_key_decides_them():
    params = [jnp.ones((100, 100)), jnp.ones((100, 100))]
    one = jp.saliency.random(jax.random.key(1))(params)
    assert_trees_equal(one, jp.saliency.random(jax.random.key(1))(params))
    other = jp.saliency.random(jax.random.key(2))(params)
    for a, b in ((one[0], other[0]), (one[0], one[1])):
        correlation = np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]
        assert abs(correlation) < 5 / 100  # five standard deviations of 10,000 draws
    ranks = np.sort(np.ravel(one[0]))
    steps = (np.arange(10_000) + 0.5) / 10_000
    assert np.abs(ranks - steps).max() < 1.95 / 100  # Kolmogorov-Smirnov at one in a thousand


def test_a_plain_loss_is_the_apply_and_loss_it_means():
    problem = tanh_mlp()
    plain = lambda p, batch: jnp.mean(problem.loss(problem.apply(p, batch[0]), batch[1]))
    for make in (jp.saliency.taylor, jp.saliency.snip):
        assert_trees_equal(
            make(plain)(problem.params, problem.batch),
            make(problem.apply, problem.loss)(problem.params, problem.batch),
        )


def test_a_generator_of_batches_is_read_once():
    problem = cluttered()
    read = []

    def batches():
        for n in range(N):
            read.append(n)
            yield jax.tree.map(lambda x, n=n: x[n : n + 1], problem.batch)

    saliency = jp.saliency.over_batches(jp.saliency.taylor(problem.apply, problem.loss))
    stream = batches()
    saliency(problem.params, stream)
    assert read == list(range(N))
    with pytest.raises(ValueError, match=r"No batches to measure.*already read"):
        saliency(problem.params, stream)


def test_the_weights_alone_accumulate_to_themselves():
    params = [jnp.arange(6.0).reshape(2, 3)]
    several = jp.saliency.over_batches(jp.saliency.magnitude())
    assert_trees_equal(several(params, [None, None]), jp.saliency.magnitude()(params))
