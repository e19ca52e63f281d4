"""Networks that nobody thought of: random stacks of layers against autodiff."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.flatten_util import ravel_pytree

import jaxprune as jp
from tests.near import assert_near
from tests.problems import softmax_loss

N = 3
ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "none": lambda x: x, "abs": jnp.abs,
               "silu": jax.nn.silu}  # fmt: skip
MIXING = ("dense", "conv", "strided", "grouped", "recur", "residual", "dense block")
WITHOUT = ("max", "max overlapping", "avg", "layer norm", "scale", "flip", "tied")
layers = st.lists(
    st.tuples(st.sampled_from((*MIXING, *WITHOUT)), st.sampled_from(list(ACTIVATIONS))),
    min_size=1,
    max_size=3,
)


def convolved(x: Any, w: Any, strides: int = 1, groups: int = 1) -> Any:
    return lax.conv_general_dilated(
        x, w, (strides,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"),
        feature_group_count=groups,
    )  # fmt: skip


def pooled(x: Any, size: int, stride: int, start: float, operation: Any) -> Any:
    return lax.reduce_window(x, start, operation, (1, size, 1), (1, stride, 1), "SAME")


def run(kind: str, w: Any, x: Any) -> Any:
    """[n, length, 4] -> the same rank and channels; `w` is [3, 4, 4]."""
    if kind == "dense":
        return x @ w[0] + w[1, 0]
    if kind == "conv":
        return convolved(x, w)
    if kind == "strided":
        return convolved(x, w, strides=2)
    if kind == "grouped":
        return convolved(x, w[:, :2], groups=2)
    if kind == "recur":
        step = lambda h, v: ((y := jnp.maximum(h @ w[0] / 2 + v @ w[1], -1)), y)
        start = jnp.zeros((x.shape[0], 4))
        return jnp.swapaxes(lax.scan(step, start, jnp.swapaxes(x, 0, 1))[1], 0, 1)
    if kind == "residual":
        return x + jax.nn.relu(x @ w[0]) @ w[1]
    if kind == "dense block":
        return jnp.concatenate([x, jax.nn.relu(x @ w[0])], axis=-1)[..., 2:6] * w[2, 0]
    if kind == "max":
        return pooled(x, 2, 2, -jnp.inf, lax.max)
    if kind == "max overlapping":
        return pooled(x, 3, 1, -jnp.inf, lax.max)
    if kind == "avg":
        return pooled(x, 2, 2, 0.0, lax.add) / 2
    if kind == "layer norm":
        x = x - jnp.mean(x, -1, keepdims=True)
        return x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 0.1) * w[0, 0] + w[0, 1]
    if kind == "scale":
        return x * w[0, 0] + w[0, 1]
    if kind == "flip":
        return x[:, ::-1] @ w[0].T
    if kind == "tied":
        return jnp.tanh(x @ w[0]) @ w[0].T
    raise ValueError(kind)


def network(plan: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))
    params = {f"{i} {kind}": draw(3, 4, 4) / 2 for i, (kind, _) in enumerate(plan)}
    params["head"] = draw(4, 3) / 2

    def apply(params: Any, x: Any) -> Any:
        for i, (kind, activation) in enumerate(plan):
            x = ACTIVATIONS[activation](run(kind, params[f"{i} {kind}"], x))
        return jnp.mean(x, axis=1) @ params["head"]

    return params, apply, (draw(N, 5, 4), jnp.asarray(rng.integers(0, 3, N)))


STRAIGHT = {"dense", "conv", "strided", "grouped", "flip", "scale", "max", "max overlapping", "avg"}


@settings(max_examples=6)
@given(plan=layers, seed=st.integers(0, 99))
def test_random_networks_are_measured_as_autodiff_does(plan, seed):
    with jax.enable_x64(True):
        params, apply, batch = network(plan, seed)
        vector, unravel = ravel_pytree(params)
        logits = lambda v: apply(unravel(v), batch[0])
        loss = lambda y, t: softmax_loss(y[None], t[None])[0]
        mean = lambda v: jnp.mean(softmax_loss(logits(v), batch[1]))

        def everything(v: Any) -> Any:
            y, jacobian = logits(v), jax.jacrev(logits)(v)
            g = jnp.einsum("nkp,nk->np", jacobian, jax.vmap(jax.grad(loss))(y, batch[1]))
            bend = jax.vmap(jax.hessian(loss))(y, batch[1])
            h = jnp.einsum("nkp,nkl,nlp->np", jacobian, bend, jacobian)
            of = jp.curvature
            fisher = of.fisher_diagonal(apply, softmax_loss)(unravel(v), batch)
            found = of.gauss_newton_diagonal(apply, softmax_loss, root=of.softmax_root)
            found = found(unravel(v), batch)
            return g, h, jax.jacfwd(jax.grad(mean))(v), fisher, found

        options = {"xla_backend_optimization_level": 0}
        g, h, hessian, fisher, found = jax.jit(everything, compiler_options=options)(vector)
        flat = lambda tree: ravel_pytree(tree)[0]
        assert_near(flat(fisher.mean), (g**2).mean(0), jnp.float64, 1000)
        assert_near(flat(fisher.second_moment), (g**4).mean(0), jnp.float64, 1000)
        assert_near(flat(found.mean), h.mean(0), jnp.float64, 1000)
        assert_near(flat(found.second_moment), (h**2).mean(0), jnp.float64, 1000)
        if found.is_hessian:
            scale = np.abs(hessian).max()
            assert_near(h.mean(0) / scale, np.diag(hessian) / scale, jnp.float64, 1e4)
        bent = {"tanh", "silu"} & {activation for _, activation in plan}
        if STRAIGHT.issuperset(kind for kind, _ in plan) and not bent:
            assert found.is_hessian
