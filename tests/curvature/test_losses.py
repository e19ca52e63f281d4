"""Losses and outputs that are not one example's: told, not measured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import curvature as of
from jaxprune import saliency

RNG = np.random.default_rng(0)
W, X, T = (jnp.asarray(RNG.normal(size=s), jnp.float32) for s in ((3, 2), (6, 3), (6, 2)))
linear = lambda w, x: x @ w
squares = lambda y, t: jnp.sum((y - t) ** 2, axis=1)
MAKERS = {
    name: getattr(of, name)
    for name in (
        "exact_diagonal", "gauss_newton_diagonal", "fisher_diagonal", "gradient_moments",
        "layer_moments", "factored_fisher", "sketched_gauss_newton",
    )
}  # fmt: skip


def contrastive(y, t):
    return -jnp.diag(jax.nn.log_softmax(y @ t.T, axis=1))


def relative(y, t):
    return squares(y, t) / jax.lax.stop_gradient(squares(y, t).mean())


@pytest.mark.parametrize("loss", [contrastive, relative])
@pytest.mark.parametrize("name", MAKERS)
def test_a_loss_in_which_examples_meet_is_refused(name, loss):
    with pytest.raises(ValueError, match="depends on the others of its batch"):
        MAKERS[name](linear, loss)(W, (X, T))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_loss_that_cannot_be_read_is_not_refused_for_that(scale, dtype):
    """What sorts is not followed; losses of large and small outputs are rounded."""
    loss = lambda y, t: jnp.sum(jnp.sort(jnp.abs(y - t), axis=1) * jnp.arange(2), axis=1)
    batch = (scale * X.astype(dtype), T.astype(dtype))
    assert np.isfinite(of.fisher_diagonal(linear, loss)(W.astype(dtype), batch).mean).all()


def test_what_else_a_loss_returns_is_named():
    with_metrics = lambda y, t: (squares(y, t), {"error": 0.0})
    for measure in (
        of.fisher_diagonal(linear, with_metrics),
        saliency.taylor(linear, with_metrics),
        saliency.taylor(lambda w, b: (squares(linear(w, b[0]), b[1]).mean(), 1)),
    ):
        with pytest.raises(ValueError, match=r"must return the loss alone, got a tuple"):
            measure(W, (X, T))


OUTPUTS = {
    "new statistics": (lambda w, x: (x @ w, {"mean": x.mean(0)}), "leaf '1/mean'"),
    "a prediction": (lambda w, x: (x @ w, jnp.argmax(x @ w, axis=1)), "leaf '1'"),
    "a number": (lambda w, x: jnp.sum(x @ w), "the only leaf"),
}


@pytest.mark.parametrize("case", OUTPUTS)
@pytest.mark.parametrize("name", MAKERS)
def test_outputs_without_a_row_an_example_are_named(name, case):
    apply, leaf = OUTPUTS[case]
    loss = lambda y, t: squares(y[0] if isinstance(y, tuple) else y * jnp.ones((6, 2)), t)
    with pytest.raises(ValueError, match=leaf):
        MAKERS[name](apply, loss)(W, (X, T))


def test_batches_add_up_where_the_last_is_one_example_of_a_model_with_dropout():
    def apply(w, x):
        kept = jax.random.bernoulli(jax.random.key(0), 0.5, (len(x), 2))
        return jnp.tanh(x @ w) * kept

    for measure in (
        saliency.optimal_brain_damage(of.exact_diagonal(apply, squares)),
        saliency.optimal_brain_damage_sd(of.gauss_newton_diagonal(apply, squares)),
    ):
        scores = saliency.over_batches(measure)(W, [(X[:5], T[:5]), (X[5:], T[5:])])
        assert np.isfinite(scores).all()
