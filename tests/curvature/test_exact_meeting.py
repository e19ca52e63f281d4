"""exact_diagonal where a leaf is read once and meets itself, or enters in an unusual way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.near import assert_near

N, D = 5, 3
exp, tanh, softplus = jnp.exp, jnp.tanh, jax.nn.softplus


@jax.custom_jvp
def spike(v):
    return (v > 0).astype(v.dtype)


@spike.defjvp
def _(values, tangents):
    surrogate = jax.nn.sigmoid(values[0])
    return spike(values[0]), tangents[0] * surrogate * (1 - surrogate)


def shared(first, second):
    """A model that makes something of its only leaf, and reads that in two places."""
    return lambda p, x: second(first(p["a"]), x)


VECTOR, MATRIX = ("a",), ("w",)
CASES = {  # leaves, model, names of those in `fallback_paths`
    "a soft clip": (VECTOR, shared(exp, lambda s, x: s * tanh(x / s)), VECTOR),
    "a factor twice": (VECTOR, shared(exp, lambda s, x: (x * s) * s), VECTOR),
    "times its own sum": (VECTOR, shared(jax.nn.sigmoid, lambda e, x: x @ (e * e.sum())), VECTOR),
    "over its own sum": (VECTOR, shared(exp, lambda e, x: x @ (e / e.sum())), VECTOR),
    "plus itself reversed": (VECTOR, shared(lambda a: a, lambda a, x: tanh(x + a + a[::-1])), ()),
    "normalised columns": (
        MATRIX, lambda p, x: (lambda w: x @ (w / w.sum(0)))(softplus(p["w"])), MATRIX
    ),
    "its own Gram matrix": (MATRIX, lambda p, x: tanh(x @ (p["w"] @ p["w"].T)), MATRIX),
    "an output with itself": (
        MATRIX, lambda p, x: jnp.einsum("ni,ni->n", x @ p["w"], x @ p["w"]), MATRIX
    ),
    "times its own length": (MATRIX, lambda p, x: x @ p["w"] * jnp.vdot(p["w"], p["w"]), MATRIX),
    "a temperature": (("T", "w"), lambda p, x: x @ p["w"] / p["T"], ()),
    "a temperature below tanh": (("T", "w"), lambda p, x: tanh(x @ p["w"] / p["T"]), ()),
    "a gain below tanh": (("T", "w"), lambda p, x: tanh(x @ p["w"] * p["T"]), ()),
    "a positive temperature": (("T", "w"), lambda p, x: x @ p["w"] / softplus(p["T"]), ()),
    "a mask that is a leaf": (
        ("m", "v", "w"), lambda p, x: tanh(x @ jnp.where(p["m"], p["w"], 0)) @ p["v"], MATRIX
    ),
    "an exponent that is a leaf": (("n", "w"), lambda p, x: tanh(x @ p["w"]) ** p["n"], ()),
    "a remainder": (MATRIX, lambda p, x: jnp.sin(jnp.mod(x @ p["w"], 2 * jnp.pi)), ()),
    "a modulus": (MATRIX, lambda p, x: jnp.abs((x + 1j * x[:, ::-1]) @ p["w"]), MATRIX),
    "a surrogate derivative": (MATRIX, lambda p, x: spike(x @ p["w"]), ()),
    "a surrogate derivative inside": (("v", "w"), lambda p, x: spike(x @ p["w"]) @ p["v"], ()),
    "relu": (("v", "w"), lambda p, x: jax.nn.relu(x @ p["w"]) @ p["v"], ()),
}  # fmt: skip


def loss(outputs, targets):
    return jnp.sum((outputs - 0.3).reshape(len(outputs), -1) ** 2, axis=1)


def parts(names):
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) * 0.7)
    found = {
        "a": draw(D), "w": draw(D, 2), "v": draw(2, 2), "T": draw() + 1.5, "m": draw(D, 2) > 0,
        "n": jnp.int32(3),
    }  # fmt: skip
    return {name: found[name] for name in names}, draw(N, D)


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_diagonal_of_the_hessian_all_the_same(name, x64):
    names, apply, slow = CASES[name]
    params, x = parts(names)
    batch = (x, jnp.zeros(N))
    found = jp.curvature.exact_diagonal(apply, loss)(params, batch)
    gauss_newton = jp.curvature.gauss_newton_diagonal(apply, loss)(params, batch)
    assert found.is_hessian
    assert found.fallback_paths == slow
    for leaf, w in params.items():
        if not jnp.issubdtype(w.dtype, jnp.floating):
            continue
        of_leaf = lambda v, leaf=leaf: loss(
            apply({**params, leaf: v.reshape(params[leaf].shape)}, x), None
        ).mean()
        truth = np.diag(jax.hessian(of_leaf)(w.ravel())).reshape(w.shape)
        assert_near(found.mean[leaf], truth, jnp.float64, 1e4)
        if gauss_newton.is_hessian:
            assert_near(gauss_newton.mean[leaf], truth, jnp.float64, 1e4)
