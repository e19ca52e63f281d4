"""Random pytrees, and how a law is run over them.

A law is a function of `draw`: it draws its case, and asserts that what jaxprune gives is right or
is an error that names the leaf. In the fast suite the leaves have few shapes, because XLA compiles
for each; the containers around them are drawn anew.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from flax.core import FrozenDict
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st


class Draw(NamedTuple):
    """Hypothesis' choices; `wide` draws any shapes, else a few.

    Calling it with a strategy draws from that.
    """

    of: Callable[[Any], Any]
    wide: bool

    def __call__(self, strategy: Any) -> Any:
        return self.of(strategy)

    def one(self, options: Sequence[Any]) -> Any:
        return self.of(st.sampled_from(list(options)))

    def number(self, low: int, high: int) -> int:
        return self.of(st.integers(low, high))

    def yes(self) -> bool:
        return self.of(st.booleans())

    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.number(0, 2**32))


Law = Callable[[Draw], None]


class Row(NamedTuple):
    """A law of the fuzz tables.

    Attributes:
      law: draws a case and checks it.
      fast: cases in the fast suite; 0 leaves it to the slow one.
      slow: cases in the slow one, a quarter of them of any shapes: each of those compiles anew.
    """

    law: Law
    fast: int = 8
    slow: int = 400


def holds(row: Row, *, wide: bool = False) -> None:
    """Run a law over its cases; always the same ones, and the first that fails is made small."""

    @settings(
        max_examples=row.slow if wide else row.fast,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,) if "FUZZ_RAW" in os.environ else (Phase.generate, Phase.shrink),
    )
    @given(st.data())
    def cases(data: Any) -> None:
        row.law(Draw(data.draw, wide and data.draw(st.sampled_from((False, False, False, True)))))

    cases()
    if wide:
        jax.clear_caches()  # thousands of programs


def each(rows: dict[str, Row], *, wide: bool = False) -> Any:
    """A test over every law of a table once, named after the functions that it is about."""
    laws: dict[Row, list[str]] = {}
    for name, row in rows.items():
        if wide or row.fast:
            laws.setdefault(row, []).append(name)
    names = [" ".join(of) for of in laws.values()]
    return pytest.mark.parametrize("row", laws, ids=names)


class Pair(NamedTuple):
    kernel: Any
    other: Any


@struct.dataclass
class Node:
    value: Any
    query: Any


KEYS = ("bias", "embedding", "kernel", "mean", "query", "scale", "value", "w")
CONTAINERS = ("dict", "frozen dict", "list", "tuple", "pair", "node", "box")
NOTHING = (None, {}, [], ())


def nested(draw: Draw, leaves: Sequence[Any], depth: int = 3) -> tuple[Any, list[str]]:
    """A random tree with these leaves, in this flattening order, and their names."""
    if len(leaves) == 1 and (depth == 0 or draw.yes()):
        return leaves[0], [""]
    if not leaves and (depth == 0 or draw.yes()):
        return draw.one(NOTHING), []
    kind = draw.one(CONTAINERS if depth else ("dict", "list", "tuple"))
    if kind == "box" and len(leaves) != 1:
        kind = "list"
    parts = {"pair": 2, "node": 2, "box": 1}.get(kind) or draw.number(1, min(3, len(leaves) + 1))
    if depth == 0:
        parts = len(leaves)
    cuts = [0, *sorted(draw.number(0, len(leaves)) for _ in range(parts - 1)), len(leaves)]
    if depth == 0:
        cuts = list(range(len(leaves) + 1))
    if kind == "box":
        return nn.Partitioned(leaves[0], names=()), [""]
    inner = [nested(draw, leaves[a:b], max(depth - 1, 0)) for a, b in pairwise(cuts)]
    values = [tree for tree, _ in inner]
    if kind in ("dict", "frozen dict"):
        where = draw(st.lists(st.sampled_from(KEYS), min_size=parts, max_size=parts, unique=True))
        keys = sorted(where)
        made = dict(zip(keys, values, strict=True))
        tree = made if kind == "dict" else FrozenDict(made)
    elif kind == "pair":
        keys, tree = ["kernel", "other"], Pair(*values)
    elif kind == "node":
        keys, tree = ["value", "query"], Node(*values)
    else:
        keys = [str(i) for i in range(parts)]
        tree = values if kind == "list" else tuple(values)
    if kind == "node" and (inner[0][1], inner[1][1]) == ([""], []):
        return tree, [""]  # a value without siblings
    names = [f"{key}/{name}" if name else key for key, (_, found) in zip(keys, inner, strict=True)
             for name in found]  # fmt: skip
    return tree, names


def same_tree(like: Any, leaves: Sequence[Any]) -> Any:
    return jax.tree.unflatten(jax.tree.structure(like), list(leaves))


FEW = (
    (((3, 4), "float32"), ((), "float32"), ((4,), "float32"), ((0, 3), "float32")),
    (((2, 2, 4), "bfloat16"), ((1, 1), "float16"), ((4, 4), "float32")),
)
"""Lists of leaves (shape, dtype) of the fast suite."""

FLOATS = ("float32", "bfloat16", "float16")
OTHERS = ("int32", "bool", "uint8", "complex64", "key")


def float_specs(draw: Draw) -> list[tuple[tuple[int, ...], str]]:
    """Shapes and dtypes of floating leaves."""
    if not draw.wide:
        return list(draw.one(FEW))
    size = st.sampled_from((0, 1, 1, 2, 3, 4, 4, 6, 8))
    shapes = st.lists(size, max_size=3).map(tuple)
    return draw(st.lists(st.tuples(shapes, st.sampled_from(FLOATS)), min_size=1, max_size=5))


def floats(draw: Draw, shape: tuple[int, ...], dtype: Any, kind: str | None = None) -> np.ndarray:
    """Finite numbers of one kind: normal, tied, any bits, subnormal, huge and tiny, all equal."""
    rng, dtype = draw.rng(), jnp.dtype(dtype)
    kind = kind or draw.one(KINDS)
    finfo = jnp.finfo(dtype)
    if kind == "ties":
        x = rng.choice([-2, -1, -0.0, 0.0, 1, 1.5], shape)
    elif kind == "equal":
        x = np.full(shape, rng.integers(-1, 2))
    elif kind == "whole":
        x = rng.integers(-100, 100, shape)
    elif kind == "subnormal":
        x = rng.choice([-1, 0, 1, 2], shape) * float(finfo.smallest_subnormal)
    elif kind == "range":
        low, high = float(jnp.log2(finfo.tiny)), math.log2(float(finfo.max)) - 1
        x = rng.choice([-1, 1], shape) * 2.0 ** rng.uniform(low, high, shape)
    elif kind == "bits":
        raw = rng.integers(0, 256, (*shape, dtype.itemsize), dtype=np.uint8)
        x = raw.view(dtype).reshape(shape)
        with np.errstate(invalid="ignore"):  # signalling NaN
            return np.where(np.isfinite(x), x, np.ones((), dtype))
    else:
        x = rng.normal(size=shape)
    return np.asarray(x).astype(dtype)


KINDS = ("normal", "ties", "equal", "subnormal", "range", "bits")


def another_leaf(draw: Draw) -> Any:
    """A leaf that cannot be pruned, of a random type; 2 x 2, as a weight could be."""
    dtype = draw.one(OTHERS)
    if dtype == "key":
        return jax.random.split(jax.random.key(draw.number(0, 9)), (2, 2))
    return jnp.asarray(draw.rng().integers(0, 2, (2, 2)), dtype)


def float_tree(draw: Draw, kind: str | None = None) -> tuple[Any, list[str]]:
    """A tree of floating leaves, and their names."""
    leaves = [jnp.asarray(floats(draw, *spec, kind)) for spec in float_specs(draw)]
    return nested(draw, leaves)


def mixed_tree(draw: Draw) -> tuple[Any, list[str]]:
    """A tree of floating leaves and others, and their names."""
    leaves = [jnp.asarray(floats(draw, *spec)) for spec in float_specs(draw)]
    for _ in range(draw.number(0, 2)):
        leaves.insert(draw.number(0, len(leaves)), another_leaf(draw))
    return nested(draw, leaves)


def random_mask(draw: Draw, tree: Any) -> Any:
    rng = draw.rng()
    share = draw.one([0.0, 0.3, 0.7, 1.0])
    return jax.tree.map(lambda x: jnp.asarray(rng.random(np.shape(x)) < share), tree)


def is_floating(name: str, leaf: Any) -> bool:
    """A predicate that takes every floating leaf, whatever its rank and name."""
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def spoiled(draw: Draw, leaf: Any) -> Any:
    """A leaf with one NaN or infinity."""
    x = np.array(leaf)
    x.reshape(-1)[draw.number(0, x.size - 1)] = draw.one([np.nan, np.inf, -np.inf])
    return jnp.asarray(x)


def raw(leaf: Any) -> tuple[str, tuple[int, ...], bytes]:
    """Dtype, shape and bits."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    x = np.asarray(leaf)
    return str(x.dtype), x.shape, x.tobytes()
