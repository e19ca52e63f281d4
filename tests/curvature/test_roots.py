"""Every root R R' is the Hessian of its loss in the outputs, saturated or not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.curvature import sigmoid_root, softmax_root, squared_error_root
from jaxprune.curvature.roots import output_factor
from tests.problems import sigmoid_loss, softmax_loss, squared_loss, wavy_loss

EPS = float(np.finfo(np.float32).eps)
SCALES = [1.0, 10.0, 50.0, 100.0, 500.0]
ROOTS = {
    "softmax": (softmax_root, softmax_loss, lambda rng, n, k: rng.integers(0, k, n)),
    "sigmoid": (sigmoid_root, sigmoid_loss, lambda rng, n, k: rng.integers(0, 2, (n, k)) * 1.0),
    "squared_error": (squared_error_root, squared_loss, lambda rng, n, k: rng.normal(size=(n, k))),
}


@functools.cache
def _hessians(loss):
    return jax.jit(jax.vmap(jax.hessian(lambda y, t: loss(y[None], t[None])[0])))


def hessians(loss, outputs, targets):
    """[n, k, k] in float64, at exactly these (float32) outputs."""
    with jax.enable_x64(True):
        return np.asarray(_hessians(loss)(np.asarray(outputs, np.float64), jnp.asarray(targets)))


def draw(name, scale, classes, n=40):
    root, loss, make_targets = ROOTS[name]
    rng = np.random.default_rng([int(scale), classes])
    outputs = (rng.normal(size=(n, classes)) * scale).astype(np.float32)
    return root, loss, outputs, make_targets(rng, n, classes)


@pytest.mark.every(3)
@pytest.mark.parametrize("name", ROOTS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("classes", [2, 3, 11])
def test_a_root_times_its_transpose_is_the_hessian(name, scale, classes):
    root, loss, outputs, targets = draw(name, scale, classes)
    columns = np.asarray(root(jnp.asarray(outputs), targets))
    assert columns.dtype == np.float32
    assert np.isfinite(columns).all()
    product = np.einsum("nkc,nlc->nkl", *[columns.astype(np.float64)] * 2)
    # Entries are at most 2; each is a few dozen roundings from exact, however saturated.
    np.testing.assert_allclose(product, hessians(loss, outputs, targets), rtol=0, atol=64 * EPS)


@pytest.mark.parametrize("scale", SCALES)
def test_the_softmax_root_keeps_relative_accuracy_when_one_class_is_nearly_sure(scale):
    # The gap of the logits, not their size: 1 - p is e^-20 and below, where 1 - cumsum is noise.
    logits = np.array([[0.0, 20.0, scale]], np.float32)
    columns = np.asarray(softmax_root(jnp.asarray(logits), None), np.float64)
    diagonal = (columns**2).sum(-1)[0]
    p = np.exp(logits[0].astype(np.float64) - logits.max())
    p /= p.sum()
    rest = np.array([p[[1, 2]].sum(), p[[0, 2]].sum(), p[[0, 1]].sum()])
    tiny = float(np.finfo(np.float32).tiny)
    expected = np.where(p * rest < 10 * tiny, 0, p * rest)
    np.testing.assert_allclose(diagonal, expected, rtol=1e3 * EPS, atol=20 * tiny)


@pytest.mark.every(3)
@pytest.mark.parametrize("scale", [1.0, 50.0, 500.0])
@pytest.mark.parametrize("name", ROOTS)
def test_the_factor_by_autodiff_is_the_hessian_too(name, scale):
    _, loss, outputs, targets = draw(name, scale, 4)
    columns, signs = output_factor(loss, None, jnp.asarray(outputs), jnp.asarray(targets))
    columns, signs = np.asarray(columns, np.float64), np.asarray(signs)
    assert np.isfinite(columns).all()
    product = np.einsum("nkc,nc,nlc->nkl", columns, signs, columns)
    np.testing.assert_allclose(product, hessians(loss, outputs, targets), rtol=0, atol=128 * EPS)


def test_a_loss_that_is_not_convex_keeps_its_negative_curvature():
    rng = np.random.default_rng(0)
    outputs = {"mean": jnp.asarray(rng.normal(size=(20, 2)), jnp.float32)}
    outputs["spread"] = jnp.asarray(rng.normal(size=20), jnp.float32)
    targets = jnp.asarray(rng.normal(size=(20, 2)), jnp.float32)
    columns, signs = output_factor(wavy_loss, None, outputs, targets)
    assert (np.asarray(signs) < 0).any()
    flat = np.concatenate([outputs["mean"], outputs["spread"][:, None]], axis=1)
    as_dict = lambda y, t: wavy_loss({"mean": y[:, :2], "spread": y[:, 2]}, t)
    product = np.einsum("nkc,nc,nlc->nkl", *(np.asarray(x) for x in (columns, signs, columns)))
    expected = hessians(as_dict, flat, np.asarray(targets, np.float64))
    np.testing.assert_allclose(product, expected, rtol=0, atol=128 * EPS * np.abs(expected).max())


def test_outputs_without_a_class_axis_have_one_column():
    y = jnp.array([0.3, -2.0])
    np.testing.assert_allclose(
        sigmoid_root(y, None)[:, 0, 0] ** 2, jax.nn.sigmoid(y) * jax.nn.sigmoid(-y), rtol=4 * EPS
    )
    np.testing.assert_allclose(squared_error_root(y, None), np.full((2, 1, 1), np.sqrt(2)), EPS)


def test_softmax_over_more_than_one_axis_is_refused():
    with pytest.raises(ValueError, match=r"logits of shape \[N, K\], got \(2, 3, 4\)"):
        softmax_root(jnp.zeros((2, 3, 4)), None)
