"""Small models and the dense truth of what surgeons compute on their factors."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

import jaxprune as jp
from jaxprune.surgeon.local_model import LocalModel, Site, quadratic_at
from tests.problems import batch_norm_net, softmax_loss


class Case(NamedTuple):
    """A model, a loss, data, and further leaves that an update may move."""

    params: Any
    apply: Any
    loss: Any
    batch: Any
    adjust: Any = lambda name, leaf: False


def squared_error(outputs, targets):
    return 0.5 * (outputs - targets) ** 2


def _dense(params, x):
    hidden = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"])
    return hidden @ params["second"]["kernel"]


def is_bias(name, leaf):
    return name.endswith("bias")


@cache
def dense(n=5, seed=0, dtype=jnp.float64, sizes=(4, 4, 2)):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    i, h, o = sizes
    params = {"first": {"kernel": draw(i, h), "bias": draw(h)}, "second": {"kernel": draw(h, o)}}
    batch = (draw(n, i), jnp.asarray(rng.integers(0, o, n)))
    return Case(params, _dense, softmax_loss, batch, is_bias)


@cache
def conv(n=6):
    rng = np.random.default_rng(1)
    params = {"conv": jnp.asarray(rng.normal(size=(2, 2, 1, 2))),
              "head": jnp.asarray(rng.normal(size=(8, 2)))}  # fmt: skip

    def apply(params, x):
        maps = lax.conv_general_dilated(
            x, params["conv"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.tanh(maps).reshape(x.shape[0], -1) @ params["head"]

    batch = (jnp.asarray(rng.normal(size=(n, 4, 4, 1))), jnp.asarray(rng.integers(0, 2, n)))
    return Case(params, apply, softmax_loss, batch)


@cache
def embedding(n=6):
    rng = np.random.default_rng(2)
    params = {"embedding": jnp.asarray(rng.normal(size=(5, 3))),
              "head": jnp.asarray(rng.normal(size=(3, 4)))}  # fmt: skip
    apply = lambda p, tokens: p["embedding"][tokens].mean(axis=1) @ p["head"]
    batch = (jnp.asarray(rng.integers(0, 5, (n, 3))), jnp.asarray(rng.integers(0, 4, n)))
    return Case(params, apply, softmax_loss, batch, lambda name, leaf: name == "embedding")


@cache
def batch_norm():
    net = batch_norm_net(jnp.float64)
    moves = lambda name, leaf: name.endswith(("scale", "bias"))
    return Case(net.params, net.apply, net.loss, net.batch, moves)


@cache
def as_list():
    net = dense()
    first, second = net.params["first"]["kernel"], net.params["second"]["kernel"]
    return Case([first, second], lambda p, x: jnp.tanh(x @ p[0]) @ p[1], net.loss, net.batch)


@cache
def line(n=40, d=60):
    """A linear model in float32 whose inputs share a direction and whose residuals are large."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(n, d)) + 1, rng.normal(size=(d, 1))
    x, w, noise = (jnp.asarray(a, jnp.float32) for a in (x, w, 3 * rng.normal(size=n)))
    apply = lambda w, x: x @ w[:, 0]
    return Case(w, apply, squared_error, (x, apply(w, x) + noise))


class _Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.a = nnx.Linear(4, 3, rngs=rngs, param_dtype=jnp.float64)
        self.b = nnx.Linear(3, 2, rngs=rngs, param_dtype=jnp.float64)

    def __call__(self, x):
        return self.b(jnp.tanh(self.a(x)))


@cache
def as_nnx():
    graph, state = nnx.split(_Net())
    apply = lambda state, x: nnx.merge(graph, state)(x)
    return Case(state, apply, softmax_loss, dense().batch, lambda name, leaf: "bias" in name)


CASES = {"dense": dense, "conv": conv, "embedding": embedding, "batch_norm": batch_norm,
         "list": as_list, "nnx": as_nnx}  # fmt: skip


class Setting(NamedTuple):
    """A case with its quadratic, and the same written out.

    Attributes:
      gradients: G, [n, d].
      hessian: `G'G / n + damping I`, [d, d].
      slopes: [d]; zeros without a first-order term.
    """

    model: LocalModel
    site: Site
    quadratic: Any
    gradients: np.ndarray
    hessian: np.ndarray
    slopes: np.ndarray

    @property
    def weights(self):
        return np.asarray(self.quadratic.weights)


@cache
def fisher_of(apply, loss):
    """One for all tests, so that it is compiled once for its shapes."""
    return jp.curvature.factored_fisher(apply, loss)


def model_of(case, damping=0.1, **options):
    options = {"fisher": fisher_of(case.apply, case.loss), "adjust": case.adjust, **options}
    return LocalModel(case.apply, case.loss, damping=damping, **options)


def setting(case, damping=0.1, select=None, mask=None, **options):
    model = model_of(case, damping, **options)
    site = Site(case.params, select or jp.select.lowest(), model.adjust, mask)
    quadratic, _ = quadratic_at(model, site, site.params, case.batch)
    gradients = dense_gradients(case, site)
    n, d = gradients.shape
    hessian = gradients.T @ gradients / n + damping * np.eye(d)
    slopes = gradients.mean(axis=0) if model.first_order else np.zeros(d)
    return Setting(model, site, quadratic, gradients, hessian, slopes)


def dense_gradients(case, site):
    """[n, d] by one gradient an example."""
    inputs, targets = case.batch

    def one(flat, k):
        cut = lambda tree: jax.tree.map(lambda x: x[k][None], tree)
        return case.loss(case.apply(site.weights(flat), cut(inputs)), cut(targets))[0]

    rows = jnp.arange(jax.tree.leaves(inputs)[0].shape[0])
    slopes = jax.jit(jax.vmap(jax.grad(one), (None, 0)))
    return np.asarray(slopes(site.flat(site.params), rows))


def constrained(hessian, w, slopes, mask):
    """`argmin g'(z - w) + 1/2 (z - w)'H(z - w)`, z = 0 off the mask, and its value, by KKT."""
    d, gone = len(w), np.flatnonzero(~mask)
    corner = np.eye(d)[gone]
    system = np.block([[hessian, corner.T], [corner, np.zeros((len(gone),) * 2)]])
    right = np.concatenate([hessian @ w - slopes, np.zeros(len(gone))])
    z = np.linalg.solve(system, right)[:d]
    return np.where(mask, z, 0), rise(hessian, w, slopes, z)


def rise(hessian, w, slopes, z):
    return slopes @ (z - w) + 0.5 * (z - w) @ hessian @ (z - w)


def joint_rise(hessian, w, mask):
    """The rise after the best update of the entries in the mask, no slopes."""
    return constrained(hessian, w, np.zeros(len(w)), mask)[1]


def selection_rise(hessian, w, mask):
    u = np.where(mask, 0, w)
    return 0.5 * u @ hessian @ u


def best_set(hessian, w, free, kept, rise_of):
    """The lowest rise of all masks that keep so many of the free entries."""
    found = np.inf
    for some in combinations(free, kept):
        mask = np.ones(len(w), bool)
        mask[free] = False
        mask[list(some)] = True
        found = min(found, rise_of(hessian, w, mask))
    return found


def hessian_one_by_one(hessian, w, steps, allowed=lambda q, gone: True):
    """Hassibi and Stork with the matrix of what is left inverted anew at every step."""
    left, w, order = list(range(len(w))), np.array(w), []
    for _ in range(steps):
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        costs = [w[q] ** 2 / (2 * inverse[k, k]) if allowed(q, order) else np.inf
                 for k, q in enumerate(left)]  # fmt: skip
        k = int(np.argmin(costs))
        q = left[k]
        w[left] -= w[q] / inverse[k, k] * inverse[:, k]
        w[q] = 0
        order.append(q)
        left.pop(k)
    return order, w


def random_mask(site, share=0.5, seed=3):
    """[d]; leaves that are only adjusted stay."""
    rng = np.random.default_rng(seed)
    return np.where(np.asarray(site.candidates), rng.random(site.size) >= share, True)
