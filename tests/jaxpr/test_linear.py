"""linear_leaves: where the outputs have no second derivative of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxprune.jaxpr.linear import linear_leaves
from tests.problems import PROBLEMS

relu = jax.nn.relu


def custom_jvp(x):
    @jax.custom_jvp
    def double(x):
        return 2 * x

    double.defjvp(lambda p, t: (double(*p), 2 * t[0]))
    return double(x)


@jax.custom_jvp
def bent(x):
    return jnp.sign(x)


bent.defjvp(lambda p, t: (bent(*p), t[0] * jnp.cos(p[0])))


@jax.custom_jvp
def product(a, b):
    return a * b


product.defjvp(lambda p, t: (product(*p), t[0] * p[1] + p[0] * t[1]))


def custom_vjp(x):
    @jax.custom_vjp
    def double(x):
        return 2 * x

    double.defvjp(lambda x: (2 * x, None), lambda _, c: (2 * c,))
    return double(x)


def conv(w, x):
    x = x.reshape(x.shape[0], -1, 1)
    return lax.conv_general_dilated(x, w[None, :1], (1,), "SAME",
                                    dimension_numbers=("NHC", "HIO", "NHC"))  # fmt: skip


def centred(h):
    return h - h.mean(-1, keepdims=True)


def scan(activation):
    def run(w, x):
        return lax.scan(lambda h, _: (activation(h @ w[0]), None), x @ w[1], None, 2)[0] @ w[2]

    return run


# What each of three square leaves is: "l"inear, or "c"urved.
CASES = {
    "relu network": (lambda w, x: relu(relu(x @ w[0]) @ w[1]) @ w[2], "lll"),
    "tanh in the middle": (lambda w, x: relu(jnp.tanh(x @ w[0]) @ w[1]) @ w[2], "cll"),
    "tanh at the end": (lambda w, x: jnp.tanh(x @ w[0] @ w[1] @ w[2]), "ccc"),
    "leaky relu": (lambda w, x: jax.nn.leaky_relu(x @ w[0]) @ w[1] + w[2], "lll"),
    "gelu": (lambda w, x: jax.nn.gelu(x @ w[0]) @ w[1] + w[2], "cll"),
    "silu": (lambda w, x: jax.nn.silu(x @ w[0]) @ w[1] + w[2], "cll"),
    "hard swish": (lambda w, x: jax.nn.hard_swish(x @ w[0]) @ w[1] + w[2], "cll"),
    "relu6": (lambda w, x: jax.nn.relu6(x @ w[0]) @ w[1] + w[2], "lll"),
    "softmax": (lambda w, x: jax.nn.softmax(x @ w[0]) @ w[1] + w[2], "cll"),
    "softmax of something else": (lambda w, x: jax.nn.softmax(x) @ w[0] @ w[1] @ w[2], "lll"),
    "maximum, absolute value, sort": (
        lambda w, x: jnp.sort(jnp.maximum(x @ w[0], jnp.abs(x @ w[1]))) + jnp.max(w[2]), "lll"
    ),
    "a product of two leaves": (lambda w, x: x @ w[0] * (x @ w[1]) + w[2], "lll"),
    "a product with itself": (lambda w, x: x @ w[0] * (x @ w[0]) @ w[1] + w[2], "cll"),
    "used twice in a row": (lambda w, x: relu(x @ w[0]) @ w[0] @ w[1] + w[2], "cll"),
    "used twice, side by side": (lambda w, x: x @ w[0] - relu(x.T @ w[0]) @ w[1] + w[2], "lll"),
    "divided by a leaf": (lambda w, x: x @ w[0] / w[1] + w[2], "lcl"),
    "divided by a number": (lambda w, x: x @ w[0] @ w[1] / 3 + w[2], "lll"),
    "to a power": (lambda w, x: x @ w[0] ** 2 + w[1] ** 1 + w[2] ** 3, "clc"),
    "layer norm": (
        lambda w, x: (lambda h: centred(h) / h.std(-1, keepdims=True))(x @ w[0]) @ w[1] + w[2],
        "cll",
    ),
    "centred": (lambda w, x: centred(x @ w[0]) @ w[1] + w[2], "lll"),
    "moved about": (
        lambda w, x: jnp.concatenate([w[0].T[::-1], w[1][:2].reshape(3, 2).T], 0)[:3] + w[2], "lll"
    ),
    "stacked": (lambda w, x: jnp.sum(jnp.stack([x @ w[0], x @ w[1], w[2]]), axis=0), "lll"),
    "unstacked": (lambda w, x: jnp.unstack(w[0])[1] + w[1] + w[2], "lll"),
    "convolved": (lambda w, x: conv(w[0], x)[:, :, 0] @ w[1] + w[2], "lll"),
    "looked up": (lambda w, x: w[0][jnp.array([0, 2, 1])] + w[1].at[0].add(w[2][0]), "lll"),
    "looked up by a leaf": (
        lambda w, x: w[0][jnp.argmax(w[1], axis=0)] + w[2] * lax.stop_gradient(w[2]), "lll"
    ),
    "chosen by a leaf": (lambda w, x: jnp.where(w[0] > 0, w[1], w[2]), "lll"),
    "a branch": (
        lambda w, x: lax.cond(x[0, 0] > 0, lambda: x @ w[0], lambda: jnp.tanh(x @ w[1])) + w[2],
        "lcl",
    ),
    "jit, remat": (lambda w, x: jax.jit(jax.checkpoint(lambda w: relu(x @ w[0]) @ w[1]))(w) + w[2],
                   "lll"),
    "custom_jvp": (lambda w, x: custom_jvp(x @ w[0]) @ w[1] + w[2], "lll"),
    "custom_jvp, bent by its rule": (lambda w, x: bent(x @ w[0]) @ w[1] + w[2], "cll"),
    "custom_jvp of two": (lambda w, x: product(x @ w[0], w[1]) + product(w[2], w[2]), "llc"),
    "a remainder": (lambda w, x: (x @ w[0]) % 2 + jnp.sin(w[1] % 2) + w[2], "lcl"),
    "a complex modulus": (lambda w, x: abs(x @ w[0] + 1j) + abs(x @ w[1]) + w[2], "cll"),
    "a complex direction": (lambda w, x: jnp.sign(x @ w[0] + 1j).real + w[1] + w[2], "cll"),
    "custom_vjp": (lambda w, x: custom_vjp(x @ w[0]) @ w[1] + w[2], "cll"),
    "no rule": (lambda w, x: jnp.linalg.inv(w[0]) + w[1] + w[2], "cll"),
    "a while loop": (lambda w, x: lax.while_loop(lambda h: h[0, 0] < 0, lambda h: h + w[0], w[1])
                     + w[2], "ccl"),
    "a relu recurrence": (scan(relu), "cll"),
    "a tanh recurrence": (scan(jnp.tanh), "ccl"),
    "layers in a scan": (
        lambda w, x: lax.scan(lambda h, v: (relu(h @ v), None), x, jnp.stack(w))[0], "ccc"
    ),
    "a sum in a scan": (
        lambda w, x: lax.scan(lambda h, v: (h + v @ w[0], None), w[1], jnp.stack([x, x]))[0] + w[2],
        "lll",
    ),
    "nothing is read": (lambda w, x: x, "lll"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_leaves_are_told_apart(name):
    apply, expected = CASES[name]
    found = linear_leaves(apply, [jnp.eye(3) + 1] * 3, jnp.ones((3, 3)))
    assert "".join("l" if line else "c" for line in found) == expected


@pytest.mark.every(3)
@pytest.mark.parametrize("name", CASES)
def test_a_leaf_called_linear_has_no_second_derivative_at_all(name, x64):
    """Along any direction in that leaf, not only along the axes."""
    apply, expected = CASES[name]
    rng = np.random.default_rng(0)
    params = [jnp.asarray(rng.normal(size=(3, 3))) for _ in range(3)]
    x = jnp.asarray(rng.normal(size=(3, 3)))
    for i, kind in enumerate(expected):
        if kind == "c":
            continue
        direction = jnp.asarray(rng.normal(size=(3, 3)))
        moved = lambda t, i=i, d=direction: apply(
            [w + t * d if j == i else w for j, w in enumerate(params)], x
        )
        slope = lambda t, moved=moved: jax.jvp(moved, (t,), (1.0,))[1]
        bend = jax.jvp(slope, (0.0,), (1.0,))[1]
        assert np.abs(bend).max() < 1e-12


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems_are_linear_where_their_table_says(name):
    problem = PROBLEMS[name]()
    found = linear_leaves(problem.apply, problem.params, problem.batch[0])
    pairs = jax.tree_util.tree_flatten_with_path(problem.params)[0]
    for (path, leaf), line in zip(pairs, found, strict=True):
        text = jax.tree_util.keystr(path, simple=True, separator="/")
        if jnp.issubdtype(leaf.dtype, jnp.floating) and name != "cluttered":
            expected = problem.gauss_newton(text)
            # Cautious about what tables know: only leaves before a tanh are curved.
            assert line or not expected
            assert expected or not line or text.startswith(("head", "2", "bias"))
