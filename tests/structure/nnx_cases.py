"""NNX modules with every kind of layer, and some that cannot be shrunk in place as they are."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from jaxprune.coupling import couple
from tests.structure.nets_kit import fill


class Kernels(nnx.Module):
    """Grouped, depthwise and transposed convolutions, normed by groups and by instances."""

    def __init__(self, rngs):
        self.one = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.grouped = nnx.Conv(8, 12, (3, 3), feature_group_count=4, rngs=rngs)
        self.norm = nnx.GroupNorm(12, num_groups=4, rngs=rngs)
        self.up = nnx.ConvTranspose(12, 7, (3, 3), (2, 2), rngs=rngs)
        self.each = nnx.Conv(7, 14, (3, 3), feature_group_count=7, rngs=rngs)
        self.mix = nnx.Conv(14, 7, (1, 1), rngs=rngs)
        self.down = nnx.ConvTranspose(7, 6, (3, 3), transpose_kernel=True, rngs=rngs)
        self.instances = nnx.InstanceNorm(6, rngs=rngs)
        self.out = nnx.Conv(6, 2, (1, 1), rngs=rngs)

    def __call__(self, x):
        x = jax.nn.relu(self.grouped(jnp.tanh(self.one(x))))
        x = self.mix(jnp.tanh(self.each(jnp.tanh(self.up(self.norm(x))))))
        return self.out(self.instances(jax.nn.relu(self.down(x))))


class Cells(nnx.Module):
    """Every recurrent cell, with states that start as wide as the cell says."""

    def __init__(self, rngs):
        cell = functools.partial(nnx.RNN, rngs=True)
        options = {"rngs": rngs, "keep_rngs": False}
        forward, backward = nnx.LSTMCell(5, 6, **options), nnx.SimpleCell(5, 7, **options)
        self.both = nnx.Bidirectional(cell(forward), cell(backward), rngs=rngs)
        self.fused = cell(nnx.OptimizedLSTMCell(13, 8, **options))
        self.gru = cell(nnx.GRUCell(8, 9, **options))
        self.out = nnx.Linear(9, 4, rngs=rngs)

    def __call__(self, x):
        return self.out(self.gru(self.fused(self.both(x))))


class Others(nnx.Module):
    """Layers of several axes, low-rank adapters, random numbers."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(9, 6, rngs=rngs)
        self.einsum = nnx.Einsum("nta,hab->nthb", (3, 6, 4), (3, 4), rngs=rngs)
        self.general = nnx.LinearGeneral((3, 4), (5, 2), axis=(-2, -1), rngs=rngs)
        self.adapted = nnx.LoRALinear(10, 8, lora_rank=3, rngs=rngs)
        self.norm = nnx.RMSNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Sequential(
            nnx.Linear(8, 9, rngs=rngs), nnx.relu, nnx.Linear(9, 3, rngs=rngs)
        )

    def __call__(self, x):
        x = self.general(jnp.tanh(self.einsum(self.embed(x))))
        x = self.adapted(x.reshape(*x.shape[:2], -1))
        return self.head(self.drop(self.norm(x)))


class Queries(nnx.Module):
    """Two key heads for four query heads, into and out of narrow streams."""

    def __init__(self, rngs):
        self.embed = nnx.Linear(3, 6, rngs=rngs)
        self.attend = nnx.MultiHeadAttention(
            4, 6, 16, 5, num_kv_heads=2, decode=False, keep_rngs=False, rngs=rngs
        )
        self.out = nnx.Linear(5, 4, rngs=rngs)

    def __call__(self, x):
        return self.out(self.attend(jnp.tanh(self.embed(x))))


class Dense(nnx.Module):
    """A layer of one's own that keeps its width."""

    def __init__(self, width, units, rngs):
        self.kernel = nnx.Param(jnp.ones((width, units)))
        self.sizes, self.biased = (width, units), True

    def __call__(self, x):
        return x @ self.kernel * (self.sizes[1] / self.sizes[1])


class OwnLayer(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([Dense(3, 8, rngs), Dense(8, 2, rngs)])

    def __call__(self, x):
        return self.blocks[1](jnp.tanh(self.blocks[0](x)))


class OwnHeads(nnx.Module):
    """Attention by hand: it counts its heads and divides by the root of their width."""

    def __init__(self, rngs, *, scale=True):
        self.heads, self.scale = 4, scale
        self.qkv = nnx.Linear(6, 3 * 4 * 5, rngs=rngs)
        self.out = nnx.Linear(4 * 5, 3, rngs=rngs)

    def __call__(self, x):
        qkv = self.qkv(x).reshape(*x.shape[:-1], 3, self.heads, -1)
        q, k, v = (qkv[..., i, :, :] for i in range(3))
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / (q.shape[-1] ** 0.5 if self.scale else 1)
        x = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), v)
        return self.out(x.reshape(*x.shape[:-2], -1))


class Starts(nnx.Module):
    """A recurrent state that starts as wide as it always was."""

    def __init__(self, rngs):
        self.cell = nnx.RNN(nnx.SimpleCell(3, 6, rngs=rngs), rngs=False)
        self.out = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(self.cell(x, initial_carry=jnp.zeros((2, 6))))


class Scaled(nnx.Module):
    """Divides by the number of its features, which is no length of any variable of its own."""

    def __init__(self, rngs):
        self.one, self.two = nnx.Linear(3, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        x = jnp.tanh(self.one(x))
        return self.two(x / x.shape[-1])


class Chooses(nnx.Module):
    """Returns integers that read its number of features."""

    def __init__(self, rngs):
        self.one, self.two = nnx.Linear(3, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        x = jnp.tanh(self.one(x))
        return jnp.argmax(self.two(x) * (x.shape[-1] - 7.5), axis=-1)


class Stale(nnx.Module):
    def __init__(self, rngs):
        self.one, self.two = nnx.Linear(3, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)
        self.one.out_features = 7

    def __call__(self, x):
        return self.two(jnp.tanh(self.one(x)))


class Returns(nnx.Module):
    """Its gains are a variable in a list, and an array without one in a dictionary."""

    def __init__(self, rngs):
        self.one, self.two = nnx.Linear(3, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)
        self.gains = nnx.List([nnx.Param(jnp.ones(8)), nnx.data({"b": jnp.full(8, 2.0)})])

    def encode(self, x, *, scale):
        return self.two(jnp.tanh(self.one(x)) * self.gains[0] * self.gains[1]["b"]) * scale


def built(make, *inputs):
    """A module with random variables, and what is coupled in it."""
    model = nnx.eval_shape(lambda: make(nnx.Rngs(0)))  # its initialisers take long to compile
    model.eval()
    graphdef, random, rest = nnx.split(model, nnx.RngKey, ...)
    keys = jax.tree.map(lambda leaf: jax.random.split(jax.random.key(1), leaf.shape), random)
    model = nnx.merge(graphdef, keys, fill(rest))
    graphdef = nnx.graphdef(model)
    apply = lambda state, *inputs: nnx.merge(graphdef, state)(*inputs)
    return model, couple(apply, nnx.state(model), *inputs)
