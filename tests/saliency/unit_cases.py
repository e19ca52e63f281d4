"""Coupled networks with data, and what their weights say about their units."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxprune as jp
from tests.near import assert_near
from tests.structure.net_zoo import NETS

N = 5


class Case(NamedTuple):
    """A coupled network with data.

    Attributes:
      readers: leaf -> axis, for every weight that reads units; None where that is not written out.
    """

    apply: Any
    params: Any
    batch: Any
    coupling: Any
    readers: dict[str, int] | None


def loss(outputs, targets):
    """Nothing special in any output tree."""
    leaves = jax.tree.leaves(outputs)
    each = lambda y, t: sum(jnp.sum(jnp.sin(leaf + 0.3 * t) * (1.2 + leaf)) for leaf in y)
    return jax.vmap(each)(leaves, targets)


def chain(w, x):
    hidden = jnp.tanh(x @ w["one"]["kernel"] + w["one"]["bias"])
    return jax.nn.relu(hidden @ w["two"]["kernel"]) @ w["out"]["kernel"]


def residual(w, x):
    """A stream of 4 that three weights read."""
    stream = x @ w["stem"]["kernel"]
    stream = stream + jnp.tanh(stream @ w["a"]["kernel"]) @ w["b"]["kernel"]
    stream = stream + jax.nn.relu(stream @ w["c"]["kernel"]) @ w["d"]["kernel"]
    return jnp.tanh(stream) @ w["out"]["kernel"]


def conv(w, x):
    """Two convolutions with a scale each, the second one of 3 channels read at 4 x 4 places."""
    numbers = ("NHWC", "HWIO", "NHWC")
    convolve = lambda x, k: lax.conv_general_dilated(
        x, k, (1, 1), "SAME", dimension_numbers=numbers
    )
    for name in ("one", "two"):
        x = jax.nn.relu(convolve(x, w[name]["kernel"]) * w[name]["scale"] + w[name]["bias"])
    return x.mean((1, 2)) @ w["out"]["kernel"]


def heads(w, x):
    """Two heads: kernels [width, heads, size] and [heads, size, width]."""
    q, k, v = (jnp.einsum("ntd,dhk->nthk", x, w[name]["kernel"]) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("nthk,nshk->nhts", q, k))
    return jnp.einsum("nhts,nshk,hkd->ntd", weights, v, w["out"]["kernel"])


BARE = {
    "chain": (chain, {"one": (3, 5), "two": (5, 4), "out": (4, 2)}, (3,)),
    "residual": (residual, {"stem": (3, 4), "a": (4, 5), "b": (5, 4), "c": (4, 3), "d": (3, 4),
                            "out": (4, 2)}, (3,)),
    "conv": (conv, {"one": (3, 3, 2, 4), "two": (3, 3, 4, 3), "out": (3, 2)}, (4, 4, 2)),
    "heads": (heads, {"q": (3, 2, 2), "k": (3, 2, 2), "v": (3, 2, 2), "out": (2, 2, 3)}, (4, 3)),
}  # fmt: skip
VECTORS = {"chain": {"one": ("bias",)}, "conv": dict.fromkeys(("one", "two"), ("bias", "scale"))}
ZOO = ("resnext", "gqa_transformer", "siamese_cosine", "bidirectional_gru_sum")


def bare(name):
    """Float32, or float64 in a test that asks for it."""
    return _bare(name, jnp.result_type(float))


@functools.cache
def _bare(name, dtype):
    apply, shapes, example = BARE[name]
    rng = np.random.default_rng(3)
    params = {
        layer: {"kernel": jnp.asarray(rng.normal(size=shape) * 0.6)}
        | {v: jnp.asarray(rng.normal(size=shape[-1])) for v in VECTORS.get(name, {}).get(layer, ())}
        for layer, shape in shapes.items()
    }
    batch = (jnp.asarray(rng.normal(size=(N, *example))), jnp.asarray(rng.normal(size=N)))
    readers = {f"{layer}/kernel": len(shape) - 2 for layer, shape in shapes.items()}
    return Case(apply, params, batch, jp.couple(apply, params, batch[0]), readers)


@functools.cache
def case(name):
    """In float64; one of each, so that what it compiles is compiled once."""
    if name in BARE:
        return bare(name)
    net = NETS[name]()
    wide = lambda x: x.astype(jnp.float64) if jp.trees.is_float(x) else x
    params, inputs = jax.tree.map(wide, net.variables), net.inputs
    coupling = jp.couple(net.apply, params, *inputs)
    targets = jnp.linspace(-1.0, 1.0, inputs[0].shape[0])
    several = len(inputs) > 1
    apply = (lambda v, x: net.apply(v, *x)) if several else net.apply
    return Case(apply, params, (inputs if several else inputs[0], targets), coupling, None)


def mean_loss(found, params, batch):
    return jnp.mean(loss(found.apply(params, batch[0]), batch[1]))


@functools.cache
def weight_gradient(name):
    return jax.jit(jax.grad(functools.partial(mean_loss, case(name))))


def read_off_weights(name, batch):
    """sum w dL/dw over the weights that read each unit: what a gate in front of them would get."""
    found = case(name)
    slopes = jax.tree.map(jnp.multiply, found.params, weight_gradient(name)(found.params, batch))
    leaves = dict(jp.trees.named_leaves(slopes))
    total = {}
    for group_name, group in found.coupling.groups.items():
        total[group_name] = sum(
            np.moveaxis(np.asarray(leaves[m.leaf]), m.axis, 0)[m.positions]
            .reshape(group.units, -1).sum(1)
            for m in group.members if found.readers.get(m.leaf) == m.axis
        )  # fmt: skip
    return total


def singles(batch):
    return [jax.tree.map(lambda x, i=i: x[i : i + 1], batch) for i in range(len(batch[1]))]


def vector(scores):
    return np.concatenate([np.asarray(scores[name]) for name in sorted(scores)])


def near(actual, desired, roundings=1e4):
    assert sorted(actual) == sorted(desired)
    assert_near(vector(actual), vector(desired), jnp.float64, roundings)
