"""What the networks of the zoo are made with: the registries, random variables, inputs.

How the sizes in `groups` were found. Every index of every axis of every leaf bears a label, and
labels unite where they live or die together. Pinned, so never removed, are

* inputs, outputs, axes of size 1, spatial and stacked-layer axes, rows of gathered tables,
* axes under a max, softmax, sort, mean or variance (a LayerNorm's, or a softmax gate's),
* whatever meets a constant array, or a value made from an iota,
* leaves that nobody reads.

An axis that is reshaped to several stays a rectangle: its units are along the first of these that
is not pinned (heads, groups of channels), and the others are whole in each unit.

A sum over slices that are zero where their unit's parameters are is no reason to pin.
Units with the same set of (leaf, axis) pairs are one group, and `groups` has its size.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Net(NamedTuple):
    """A network in inference mode: `apply(variables, *inputs)` is deterministic.

    Attributes:
      apply: `apply(variables, *inputs) -> a tree of arrays`.
      variables: whatever tree `apply` takes first.
      inputs: a small batch.
      groups: the sorted sizes of the groups of removable units, found by hand.
    """

    apply: Callable[..., Any]
    variables: Any
    inputs: tuple[Any, ...]
    groups: tuple[int, ...] | None


Parts = tuple[Callable[..., Any], Any, tuple[Any, ...]]

NETS: dict[str, Callable[[], Net]] = {}
FULL: dict[str, Callable[[], Net]] = {}
_places: dict[Any, Any] = {}  # pytest imports a file under two names; that is no second net


def net(name: str, *groups: int) -> Callable[[Callable[[], Parts]], Callable[[], Parts]]:
    """Registers the builder of a small network; nothing is built before it is asked for."""
    return _adding(NETS, name, groups)


def full(name: str, *groups: int) -> Callable[[Callable[[], Parts]], Callable[[], Parts]]:
    """Registers a network of published size, whose variables are shapes."""
    return _adding(FULL, name, groups)


def _adding(registry: dict[str, Callable[[], Net]], name: str, groups: tuple[int, ...]) -> Any:
    def add(build: Callable[[], Parts]) -> Callable[[], Parts]:
        place = (build.__code__.co_filename, build.__code__.co_firstlineno)
        assert _places.setdefault((id(registry), name), place) == place, f"two nets: {name}"
        registry[name] = lambda: Net(*build(), tuple(sorted(groups)))
        return build

    return add


def linen(module: nn.Module, *inputs: Any) -> Parts:
    """A Flax Linen module with random variables."""
    variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return in_its_dtype(module.apply), fill(variables), inputs


def stateful(make: Callable[[nnx.Rngs], nnx.Module], *inputs: Any) -> Parts:
    """A Flax NNX module, whose variables are its state."""
    model = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    model.eval()
    graph, state = nnx.split(model)
    apply = lambda state, *inputs: nnx.merge(graph, state)(*inputs)
    return in_its_dtype(apply), fill(state), inputs


def bare(shapes: Any, apply: Callable[..., Any], *inputs: Any) -> Parts:
    """A function of a tree of arrays, given as a tree of shapes."""
    leaf = lambda node: isinstance(node, tuple) and all(isinstance(n, int) for n in node)
    variables = jax.tree.map(lambda s: shape(*s), shapes, is_leaf=leaf)
    return in_its_dtype(apply), fill(variables), inputs


def abstract(module: nn.Module, *inputs: Any) -> Parts:
    """A Linen module of which nothing is allocated; `inputs` are shapes too."""
    return module.apply, jax.eval_shape(module.init, jax.random.key(0), *inputs), inputs


def in_its_dtype(apply: Callable[..., Any]) -> Callable[..., Any]:
    """Gives the inputs the type of the variables, so that casting these is enough."""
    is_float = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)

    def run(variables: Any, *inputs: Any) -> Any:
        dtype = next(leaf.dtype for leaf in jax.tree.leaves(variables) if is_float(leaf))
        return apply(variables, *(x.astype(dtype) if is_float(x) else x for x in inputs))

    return run


def fill(tree: Any) -> Any:
    """Draws every floating leaf by its name: the same numbers for the same path, always."""

    def draw(path: Any, leaf: Any) -> Any:
        words = re.findall(r"\w+", jax.tree_util.keystr(path))
        if len(words) > 1 and words[-1] == "value":  # the box of an NNX parameter
            words.pop()
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.ones(leaf.shape, leaf.dtype)
        rng = np.random.default_rng(zlib.crc32("/".join(words).encode()))
        return jnp.asarray(_values(rng, words, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, tree)


def _values(rng: np.random.Generator, words: list[str], size: tuple[int, ...]) -> np.ndarray:
    normal = rng.normal(size=size)
    match words[-1]:
        case "var":
            return rng.uniform(0.5, 2.0, size)
        case "scale" | "layer_scale" | "alpha":
            return rng.uniform(0.6, 1.6, size)
        case "embedding" | "table" | "positions" | "cls" | "learned":
            return normal
        case "mean" | "bias":
            return 0.4 * normal
    if len(size) < 2:
        return 0.4 * normal
    split = len(size) > 2 and {"query", "key", "value", "qkv"} & set(words)  # [.., D, H, Dh]
    fan_in = float(size[-3] if split else np.prod(size[:-1]))
    if any(word.startswith("ConvTranspose") for word in words):
        fan_in /= 4  # with strides of 2
    return 1.4 * normal / np.sqrt(fan_in)


def floats(*size: int, seed: int = 0) -> Any:
    """A batch of normal numbers."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=size), jnp.float32)


def tokens(high: int, *size: int, seed: int = 0) -> Any:
    """A batch of integers below `high`."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, high, size), jnp.int32)


def shape(*size: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(size, dtype)


# What many networks share.

relu = jax.nn.relu


def flat(x: Any) -> Any:
    return x.reshape(x.shape[0], -1)


def pooled(x: Any) -> Any:
    """The mean over all positions."""
    return x.mean(tuple(range(1, x.ndim - 1)))


def norm() -> nn.Module:
    return nn.BatchNorm(use_running_average=True)


def conv(width: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Module:
    """A convolution without biases, as they stand before a BatchNorm."""
    return nn.Conv(width, (size, size), stride, feature_group_count=groups, use_bias=False)


def zeros(x: Any, width: int) -> Any:
    """A state to start from, one for each example of `x`."""
    return jnp.zeros((x.shape[0], width), x.dtype)
