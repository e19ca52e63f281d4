"""Diagonals and moments on a zoo of models, against Jacobians of the whole batch by jax.jacrev."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxprune as jp
from tests.curvature.model_zoo import ZOO
from tests.dense import flat, is_float
from tests.near import assert_near
from tests.problems import softmax_loss

# Nearly all the time is XLA's; what it would gain is not worth it here.
quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Truth(NamedTuple):
    """[n, p] in float64: gradients, and the diagonals of `J' H J`."""

    gradients: np.ndarray
    gauss_newton: np.ndarray


def of_vector(net: Any) -> tuple[Any, Any]:
    """The floating leaves as one vector, and logits as a function of it."""
    leaves, structure = jax.tree.flatten(net.params)
    real = [is_float(leaf) for leaf in leaves]
    vector, unravel = ravel_pytree([leaf for leaf, f in zip(leaves, real, strict=True) if f])

    def logits(vector: Any) -> Any:
        some = iter(unravel(vector))
        full = [next(some) if f else x for x, f in zip(leaves, real, strict=True)]
        return net.apply(jax.tree.unflatten(structure, full), net.batch[0])

    return vector, logits


@functools.cache
def network(name: str) -> Any:
    with jax.enable_x64(True):
        return ZOO[name].make()


@functools.cache
def truth(name: str) -> Truth:
    net = network(name)
    with jax.enable_x64(True):
        vector, logits = of_vector(net)
        loss = lambda y, t: softmax_loss(y[None], t[None])[0]

        @quickly
        def everything(v: Any) -> Truth:
            y, jacobian = logits(v), jax.jacrev(logits)(v)
            slopes = jax.vmap(jax.grad(loss))(y, net.batch[1])
            bend = jax.vmap(jax.hessian(loss))(y, net.batch[1])
            curved = jnp.einsum("nkp,nkl,nlp->np", jacobian, bend, jacobian)
            return Truth(jnp.einsum("nkp,nk->np", jacobian, slopes), curved)

        return Truth(*map(np.asarray, everything(vector)))


@functools.cache
def measured(name: str) -> tuple[Any, Any, Any]:
    """Fisher, moments, Gauss-Newton; in one program."""
    net, of = network(name), jp.curvature

    @quickly
    def everything(params: Any, batch: Any) -> Any:
        fisher = of.fisher_diagonal(net.apply, softmax_loss)(params, batch)
        moments = of.gradient_moments(net.apply, softmax_loss)(params, batch)
        gauss_newton = of.gauss_newton_diagonal(net.apply, softmax_loss, root=of.softmax_root)
        return fisher, moments, gauss_newton(params, batch)

    with jax.enable_x64(True):
        return everything(net.params, net.batch)


# A third of the zoo every time, the rest in the slow set.
SOME = [pytest.param(n, marks=pytest.mark.slow if i % 3 else ()) for i, n in enumerate(ZOO)]


@pytest.fixture(params=SOME, scope="module")
def name(request: Any) -> str:
    """All tests of one model in turn, so that they share what is compiled."""
    return request.param


def near(name: str, found: Any, expected: np.ndarray) -> None:
    net = network(name)
    assert jax.tree.structure(found) == jax.tree.structure(net.params)
    assert_near(flat(net.params, found), expected, jnp.float64, 1000)


@pytest.mark.every(5)
def test_fisher_and_its_second_moment_are_those_of_per_example_gradients(name):
    fisher, g = measured(name)[0], truth(name).gradients
    assert np.any(g)
    near(name, fisher.mean, (g**2).mean(0))
    near(name, fisher.second_moment, (g**4).mean(0))
    assert not fisher.is_hessian


@pytest.mark.every(3)
def test_gradient_moments_are_those_of_per_example_gradients(name):
    moments, g = measured(name)[1], truth(name).gradients
    assert_near(flat(network(name).params, moments.mean), g.mean(0), jnp.float64, 1000)
    near(name, moments.second_moment, (g**2).mean(0))


def test_gauss_newton_and_its_second_moment_are_those_of_whole_jacobians(name):
    found, h = measured(name)[2], truth(name).gauss_newton
    assert np.any(h)
    near(name, found.mean, h.mean(0))
    near(name, found.second_moment, (h**2).mean(0))


def test_fallback_paths_are_the_leaves_that_no_rule_covers(name):
    net, slow = network(name), ZOO[name].slow
    if slow is None:
        slow = [path for path, leaf in jp.trees.named_leaves(net.params) if is_float(leaf)]
    for found in (measured(name)[0], measured(name)[2]):
        assert set(found.fallback_paths) == set(slow)


@pytest.mark.every(5)
def test_is_hessian_is_said_where_it_is_so_and_not_elsewhere(name):
    expected, found = ZOO[name], measured(name)[2]
    assert found.is_hessian == expected.hessian
    if not (expected.hessian or expected.differs):
        return
    net, h = network(name), truth(name).gauss_newton.mean(0)
    with jax.enable_x64(True):
        vector, logits = of_vector(net)
        mean = lambda v: jnp.mean(softmax_loss(logits(v), net.batch[1]))
        hessian = np.diag(quickly(jax.jacfwd(jax.grad(mean)))(vector))
    if expected.hessian:
        assert_near(h, hessian, jnp.float64, 1000)
    else:
        assert np.abs(h - hessian).max() > 1e-6 * np.abs(hessian).max()
