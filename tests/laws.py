"""The tables of the law tests: a new saliency, selection or tree is one more row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.core import freeze

import jaxprune as jp
from tests import doubles
from tests.dense import Dense
from tests.problems import Problem

curvature, saliency, select = jp.curvature, jp.saliency, jp.select


class SaliencyRow(NamedTuple):
    """A public saliency.

    Attributes:
      make: problem -> Saliency.
      formula: the docstring's formula over the dense truth, [p] in float64; None if it is random.
      data: does it read a batch?
    """

    make: Callable[[Problem], jp.Saliency]
    formula: Callable[[Dense], np.ndarray] | None
    data: bool = True


def _of(make_curvature: Any, make_saliency: Any, **options: Any) -> Callable[[Problem], Any]:
    return lambda p: make_saliency(make_curvature(p.apply, p.loss, **options))


def _sd(reading: str) -> Callable[[Any], Any]:
    return lambda source: saliency.optimal_brain_damage_sd(source, reading=reading)


def _lamp(truth: Dense) -> np.ndarray:
    scores = np.zeros_like(truth.weights)
    for name in set(truth.names):
        (where,) = np.nonzero(truth.names == name)
        order = where[np.argsort(np.abs(truth.weights[where]), kind="stable")]
        for rank, u in enumerate(order):
            scores[u] = truth.weights[u] ** 2 / np.sum(truth.weights[order[rank:]] ** 2)
    return scores


def _damage(truth: Dense, diagonals: np.ndarray) -> np.ndarray:
    return diagonals.mean(0) * truth.weights**2 / 2


def _damage_spread(truth: Dense) -> np.ndarray:
    damage = truth.diagonals * truth.weights**2 / 2
    return damage.mean(0) + damage.std(0)


def _snip(truth: Dense) -> np.ndarray:
    sizes = np.abs(truth.weights * truth.gradients.mean(0))
    return sizes / sizes.sum()


_key = jax.random.key(0)

SALIENCIES: dict[str, SaliencyRow] = {
    "magnitude": SaliencyRow(
        lambda p: saliency.magnitude(), lambda t: np.abs(t.weights), data=False
    ),
    "lamp": SaliencyRow(lambda p: saliency.lamp(), _lamp, data=False),
    "random": SaliencyRow(lambda p: saliency.random(_key), None, data=False),
    "taylor": SaliencyRow(
        lambda p: saliency.taylor(p.apply, p.loss),
        lambda t: (t.weights * t.gradients.mean(0)) ** 2,
    ),
    "snip": SaliencyRow(lambda p: saliency.snip(p.apply, p.loss), _snip),
    "fisher": SaliencyRow(
        _of(curvature.fisher_diagonal, saliency.fisher), lambda t: _damage(t, t.gradients**2)
    ),
    "obd, exact": SaliencyRow(
        _of(curvature.exact_diagonal, saliency.optimal_brain_damage),
        lambda t: _damage(t, t.diagonals),
    ),
    "obd, gauss-newton": SaliencyRow(
        _of(curvature.gauss_newton_diagonal, saliency.optimal_brain_damage),
        lambda t: _damage(t, t.gauss_newton),
    ),
    "obd, true fisher": SaliencyRow(
        lambda p: saliency.optimal_brain_damage(
            curvature.true_fisher_diagonal(p.apply, curvature.categorical)
        ),
        lambda t: _damage(t, t.gauss_newton),  # its loss is softmax cross-entropy
    ),
    "obd, hutchinson": SaliencyRow(
        _of(curvature.hutchinson_diagonal, saliency.optimal_brain_damage, key=_key, probes=3), None
    ),
    "obd-sd, damage spread": SaliencyRow(
        _of(curvature.exact_diagonal, _sd("damage_spread")), _damage_spread
    ),
    "obd-sd, gradient variance": SaliencyRow(
        _of(curvature.gradient_moments, _sd("gradient_variance")),
        lambda t: t.weights**2 * t.gradients.var(0) / 2,
    ),
    "wanda": SaliencyRow(  # its double is in saliency/test_wanda.py
        lambda p: saliency.wanda(p.apply), None
    ),
    "obd-sd, input spread": SaliencyRow(  # its double is in curvature/test_layers.py
        _of(curvature.layer_moments, _sd("input_spread")), None
    ),
}


class SelectionRow(NamedTuple):
    """A public selection.

    Attributes:
      make: `(**options) -> Selection`.
      double: `(names, scores, sparsity) -> masks` in numpy.
      count: `(shapes, sparsity) -> entries pruned`, without looking at scores.
      sparsity: the only one it takes, or None.
    """

    make: Callable[..., jp.Selection]
    double: Callable[[list[str], list[np.ndarray], float], list[np.ndarray]]
    count: Callable[[list[tuple[int, ...]], float], int]
    sparsity: float | None = None


def _sizes(shapes: Any) -> list[int]:
    return [int(np.prod(shape)) for shape in shapes]


def _each(shapes: Any, sparsity: float) -> int:
    return sum(round(sparsity * n) for n in _sizes(shapes))


def _each_unit(axis: int) -> Callable[[Any, float], int]:
    return lambda shapes, s: sum(
        shape[axis] * round(s * (n // shape[axis]))
        for shape, n in zip(shapes, _sizes(shapes), strict=True)
    )


def _each_erk(shapes: Any, sparsity: float) -> int:
    spread = doubles.erk_sparsities(list(shapes), sparsity)
    return sum(round(s * n) for s, n in zip(spread, _sizes(shapes), strict=True))


def _fixed(sparsity: float) -> Callable[[Any, float], int]:
    return lambda shapes, _: round(sparsity * sum(_sizes(shapes)))


_MAP = {"dense/kernel": 0.25, "deep/0": lambda s: s / 2}


def _map_count(shapes: Any, s: float) -> int:
    # Tree order: conv/kernel, deep/0, dense/kernel.
    return sum(round(p * n) for p, n in zip((s, s / 2, 0.25), _sizes(shapes), strict=True))


def _n_of_m(n: int, m: int, axis: int) -> SelectionRow:
    return SelectionRow(
        lambda **options: select.n_of_m(n, m, axis=axis, **options),
        lambda names, scores, s: doubles.n_of_m(scores, n, m, axis),
        _fixed(1 - n / m),
        sparsity=1 - n / m,
    )


def _blocks(rows: int, columns: int, scope: str, choose: Any) -> SelectionRow:
    area = rows * columns
    pooled = lambda shapes: [(*s[:-2], s[-2] // rows, s[-1] // columns) for s in shapes]
    count = {"global": lambda b, s: round(s * sum(_sizes(b))), "layer": _each, "erk": _each_erk}
    return SelectionRow(
        lambda **options: select.blocks((rows, columns), scope, **options),
        lambda names, scores, s: doubles.blocks(scores, rows, columns, lambda x: choose(x, s)),
        lambda shapes, s: area * count[scope](pooled(shapes), s),
    )


SELECTIONS: dict[str, SelectionRow] = {
    "global": SelectionRow(
        lambda **o: select.lowest(**o),
        lambda names, scores, s: doubles.one_ranking(scores, s),
        lambda shapes, s: round(s * sum(_sizes(shapes))),
    ),
    "layer": SelectionRow(
        lambda **o: select.lowest("layer", **o),
        lambda names, scores, s: doubles.by_leaf(scores, [s] * len(scores)),
        _each,
    ),
    "output": SelectionRow(
        lambda **o: select.lowest("output", **o),
        lambda names, scores, s: doubles.by_output(scores, s),
        _each_unit(-1),
    ),
    "output, first axis": SelectionRow(
        lambda **o: select.lowest("output", output_axis=0, **o),
        lambda names, scores, s: doubles.by_output(scores, s, 0),
        _each_unit(0),
    ),
    "erk": SelectionRow(
        lambda **o: select.lowest("erk", **o),
        lambda names, scores, s: doubles.erk(scores, s),
        _each_erk,
    ),
    "mapping": SelectionRow(
        lambda **o: select.lowest(_MAP, **o),
        lambda names, scores, s: doubles.mapped(names, scores, s, _MAP),
        _map_count,
    ),
    "2:4 along inputs": _n_of_m(2, 4, -2),
    "1:4 along outputs": _n_of_m(1, 4, -1),
    "1:3 along the first axis": _n_of_m(1, 3, 0),
    "blocks 2x2": _blocks(2, 2, "global", doubles.one_ranking),
    "blocks 4x1, layer": _blocks(4, 1, "layer", lambda x, s: doubles.by_leaf(x, [s] * len(x))),
    "blocks 1x4, erk": _blocks(1, 4, "erk", doubles.erk),
}

SHAPES = {"conv/kernel": (3, 3, 4, 8), "deep/0": (12, 12), "dense/kernel": (12, 8)}
"""The prunable leaves of `weights`, in tree order; every pattern above divides them."""


def weights(scores: list[Any] | None = None) -> Any:
    """A tree for the selections: those leaves (or these scores), a bias and a counter."""
    conv, deep, dense_ = scores or [jnp.ones(shape) for shape in SHAPES.values()]
    return {
        "conv": {"kernel": conv},
        "deep": [deep],
        "dense": {"bias": jnp.ones(8), "kernel": dense_},
        "step": jnp.zeros((2, 2), jnp.int32),
    }


def prunable_leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in (tree["conv"]["kernel"], tree["deep"][0],
                                    tree["dense"]["kernel"])]  # fmt: skip


@chex.dataclass
class Layer:
    """A dataclass as a pytree."""

    kernel: Any
    bias: Any


class _Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Conv(2, (3, 3))(x))
        return nn.Dense(2)(x.reshape(x.shape[0], -1))


def _nnx_state() -> Any:
    parts = (nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0)))
    return nnx.state(nnx.Sequential(*parts, nnx.Dropout(0.5, rngs=nnx.Rngs(1))))


class TreeRow(NamedTuple):
    """A kind of parameter tree, and the names of the leaves that are prunable by default."""

    make: Callable[[], Any]
    prunable: set[str]


def _kernel(*shape: int, dtype: Any = jnp.float32) -> Any:
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), dtype)


TREES: dict[str, TreeRow] = {
    "nested dict": TreeRow(
        lambda: {"a": {"kernel": _kernel(3, 2), "bias": _kernel(2)}, "b": [_kernel(2, 4)]},
        {"a/kernel", "b/0"},
    ),
    "frozen dict": TreeRow(lambda: freeze({"kernel": _kernel(3, 2)}), {"kernel"}),
    "list": TreeRow(lambda: [_kernel(3, 2), _kernel(2), _kernel(2, 4)], {"0", "2"}),
    "tuple": TreeRow(lambda: (_kernel(3, 2), (_kernel(2, 4), _kernel(4))), {"0", "1/0"}),
    "dataclass": TreeRow(
        lambda: Layer(kernel=_kernel(3, 2), bias=_kernel(2, 2)), {"kernel"}
    ),
    "linen variables": TreeRow(
        lambda: _Linen().init(jax.random.key(0), jnp.ones((1, 4, 4, 1))),
        {"params/Conv_0/kernel", "params/Dense_0/kernel"},
    ),
    "nnx state": TreeRow(_nnx_state, {"layers/0/kernel"}),
    "bare array": TreeRow(lambda: _kernel(3, 4), {""}),
    "mixed dtypes": TreeRow(
        lambda: [_kernel(3, 2, dtype=jnp.bfloat16), _kernel(2, 2), _kernel(2, 3).astype("float16")],
        {"0", "1", "2"},
    ),
    "scalar, empty, integer and key leaves": TreeRow(
        lambda: {
            "count": jnp.ones((2, 2), jnp.int32),
            "empty": jnp.zeros((0, 2)),
            "flag": jnp.array([[True]]),
            "key": jax.random.key(0),
            "keys": jax.random.split(jax.random.key(1), (2, 2)),
            "scalar": jnp.float32(2.0),
            "weight": _kernel(3, 2),
        },
        {"empty", "weight"},
    ),
}  # fmt: skip
