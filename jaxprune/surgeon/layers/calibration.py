"""What layers are given: for every weight matrix of a model, the second moment of its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import objective, trees
from jaxprune.curvature.examples import check_microbatch
from jaxprune.curvature.factors import budget
from jaxprune.curvature.layout import Layout, layout_of, split_letters
from jaxprune.jaxpr import sites as algebra
from jaxprune.jaxpr.examples import independent_examples
from jaxprune.jaxpr.taps import Site, Tapped, tap
from jaxprune.types import Apply, Batch, Params, Predicate, PyTree

_CACHE_BYTES = 32 << 20  # of inputs captured at once on a CPU: what its last cache holds
_DEVICE_BYTES = 1 << 30
_REMEDY = (
    "Layer-wise pruning takes the weights of dense layers and convolutions only: exclude it in "
    "`prunable`, such as `jp.select.lowest('layer', prunable=lambda name, leaf: ...)`."
)


class Part(NamedTuple):
    """A weight matrix inside a parameter: all of it, or a slice that layers read by itself.

    Attributes:
      places: where its entries are in the flattened parameter, [b groups, i inputs, o outputs].
      sites: the layers that read it; their positions count together.
    """

    places: np.ndarray
    sites: tuple[Site, ...]

    def kind(self) -> str:
        """What its second moment is computed from; the same for layers alike."""
        alike = [
            (s.origin.loops, s.primitive, s.params, s.side, s.operand, s.captured, s.output.shape)
            for s in self.sites
        ]
        return repr((self.places.shape, alike))


class Weight(NamedTuple):
    """A parameter that enters dense layers and convolutions, and nothing else.

    Attributes:
      leaf: its index among the flattened parameters.
      name: its name.
      shape: its shape.
      parts: no two share an entry; what none has is not read by the model.
    """

    leaf: int
    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    def gather(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """An array like the parameter from [b, i, o] of every part; 0 where nothing reads it."""
        found = np.zeros(math.prod(self.shape), arrays[0].dtype)
        for part, array in zip(self.parts, arrays, strict=True):
            found[part.places] = array
        return found.reshape(self.shape)

    def split(self, array: np.ndarray) -> list[np.ndarray]:
        """[b, i, o] of every part from an array like the parameter."""
        return [array.reshape(-1)[part.places] for part in self.parts]

    def read(self) -> np.ndarray:
        """Which entries of the parameter its layers read."""
        return self.gather([np.ones(part.places.shape, bool) for part in self.parts])


Hessians = list[jax.Array]
"""[b, i, i] for every part of a weight."""


class Model(NamedTuple):
    """A traced model and the weights that are asked for.

    Attributes:
      weights: in the order in which the model first reads them.
      hessians: `(params, inputs, which) -> Hessians of those weights`.
    """

    weights: tuple[Weight, ...]
    hessians: Callable[[Params, PyTree, Sequence[int]], list[Hessians]]


def input_hessians(
    apply: Apply,
    params: Params,
    batch: Batch,
    *,
    prunable: Predicate = trees.default_prunable,
    microbatch: int | None = None,
) -> dict[str, Hessians]:
    """`H[b] = (1/N) sum_n sum_p x_npb x_npb'`, the second moment of what each weight multiplies.

    Half the Hessian of the squared error of a layer's outputs in the weights of one of them:
    `(1/N) |X (w - w0)|^2 = (w - w0)' H (w - w0)`, the same for every output. n are examples, p the
    positions of one example (tokens, pixels, time steps; the uses of a shared weight), b groups (of
    a convolution, heads with a weight each, layers stacked for a `scan`), i inputs: a convolution's
    are its window times its channels.

    Args:
      apply: `(params, inputs) -> outputs`, where each example's outputs depend on its inputs only.
      params: its parameters.
      batch: `(inputs, targets)`; the targets are not read and may be None.
      prunable: `(name, leaf) -> bool`, the weights that are asked for.
      microbatch: examples at once; by default as many as keep the inputs of all layers in a CPU's
        last cache. A convolution's patches are built for a few examples at a time.

    Returns:
      By name of the leaf, in the order in which the model reads them, [b, i, i] in float32
      (float64 for float64 leaves): a list, of one unless layers read different slices of the leaf.

    Raises:
      ValueError: an empty batch, examples that depend on each other, NaN inputs, or a leaf that
        enters no dense layer or convolution, or something besides; it is named.

    References:
      Frantar and Alistarh 2022, Optimal Brain Compression, section 3 (there H is `2 X X'`).

    Example:
      >>> apply = lambda params, x: jnp.tanh(x @ params["in"]) @ params["out"]
      >>> params = {"in": jnp.ones((2, 3)), "out": jnp.ones((3, 1))}
      >>> found = input_hessians(apply, params, (jnp.array([[1.0, 2.0], [3.0, 0.0]]), None))
      >>> found["in"][0]
      Array([[[5., 1.],
              [1., 2.]]], dtype=float32)
    """
    check_microbatch(microbatch)
    inputs = checked_inputs(batch)
    model = trace_model(apply, params, inputs, prunable, microbatch)
    every = range(len(model.weights))
    found = model.hessians(params, inputs, every)
    return {weight.name: h for weight, h in zip(model.weights, found, strict=True)}


def checked_inputs(batch: Batch) -> PyTree:
    """The inputs of a batch.

    Raises:
      ValueError: there are none.
    """
    if batch is None:
        raise ValueError("Layer-wise pruning needs calibration data: pass `batch=(inputs, None)`.")
    inputs, _ = objective.split_batch(batch)
    objective.batch_size(inputs)
    return jax.tree.map(jnp.asarray, inputs)


def trace_model(
    apply: Apply, params: Params, inputs: PyTree, prunable: Predicate, microbatch: int | None
) -> Model:
    """The prunable weights of a model, and a function that measures their inputs.

    Raises:
      ValueError: examples that depend on each other, a prunable leaf that is no layer's weight, or
        two of one name.
    """
    if not independent_examples(apply, params, inputs):
        raise ValueError(
            "The outputs of an example could not be shown to be independent of the other examples "
            "of its batch. Run the model in inference mode, BatchNorm with "
            "`use_running_average=True`, return one row of outputs for each example, and write a "
            "`while_loop` as a loop of known length (`fori_loop`, `scan`)."
        )
    tapped = tap(apply, params, jax.tree.map(lambda x: x[:1], inputs))
    weights = _weights(tapped, params, trees.prunable_flags(params, prunable))
    trees.check_names([weight.name for weight in weights])
    dtypes = [trees.score_dtype(leaf) for leaf in jax.tree.leaves(params)]
    wanted = {site.key for w in weights for part in w.parts for site in part.sites}

    @jax.jit
    def record(leaves: list[Any], inputs: PyTree) -> dict[Any, jax.Array]:
        def single(example: PyTree) -> dict[Any, jax.Array]:
            one = jax.tree.map(lambda x: x[None], example)
            captured = tapped.run(leaves, one, tapped.zeros)[1]
            return {key: x for key, x in captured.items() if key in wanted}

        return jax.vmap(single)(inputs)

    programs: dict[str, Callable] = {}  # layers alike share one

    def moments(weight: Weight, captured: dict[Any, jax.Array]) -> Hessians:
        found = []
        for part in weight.parts:
            kind = part.kind() + str(dtypes[weight.leaf])
            if kind not in programs:
                programs[kind] = jax.jit(partial(_moment, part, dtypes[weight.leaf]))
            found.append(programs[kind]([captured[site.key] for site in part.sites]))
        return found

    def hessians(params: Params, inputs: PyTree, which: Sequence[int]) -> list[Hessians]:
        leaves, n = jax.tree.leaves(params), objective.batch_size(inputs)
        size = min(microbatch or _microbatch(record, leaves, inputs, n), n)
        totals: dict[int, Hessians] = {}
        for start in range(0, n, size):
            part = jax.tree.map(lambda x, at=start: x[at : at + size], inputs)
            captured = record(leaves, part)
            for k in which:
                new, old = moments(weights[k], captured), totals.get(k)
                totals[k] = new if old is None else [a + b for a, b in zip(old, new, strict=True)]
        found = [[_mean(h, n) for h in totals[k]] for k in which]
        for k, of_leaf in zip(which, found, strict=True):
            _check_finite(of_leaf, weights[k].name)
        return found

    return Model(weights, hessians)


@jax.jit
def _mean(total: jax.Array, n: Any) -> jax.Array:
    """The mean, symmetric to the last bit."""
    return (total + jnp.swapaxes(total, -1, -2)) / (2 * n)


def _check_finite(hessians: Hessians, name: str) -> None:
    if not all(np.isfinite(np.asarray(h)).all() for h in hessians):
        raise ValueError(
            f"The inputs of {trees.label(name)} are NaN or infinite (or their squares are). Check "
            "the calibration batch, and the outputs of the model on it."
        )


def _microbatch(record: Callable, leaves: list[Any], inputs: PyTree, n: int) -> int:
    """As many examples as keep what is captured at once small; of n a divisor if there is one."""
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), inputs)
    captured = jax.tree.leaves(jax.eval_shape(record, leaves, one))
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in captured)
    most = _CACHE_BYTES if jax.default_backend() == "cpu" else _DEVICE_BYTES
    most = min(n, max(1, most // max(1, size)))
    return next((k for k in range(most, most // 2, -1) if n % k == 0), most)


def _moment(part: Part, dtype: Any, captured: list[jax.Array]) -> jax.Array:
    """`sum_n sum_p x x'`, [b, i, i], over all sites of a part."""
    with jax.default_matmul_precision("highest"):
        found = [
            _of_site(part.places.shape, *pair, dtype)
            for pair in zip(part.sites, captured, strict=True)
        ]
    return sum(found[1:], found[0])


def _of_site(shape: tuple[int, ...], site: Site, x: jax.Array, dtype: Any) -> jax.Array:
    names = algebra.letters(site)
    positions, groups, inputs, _ = split_letters(names)
    (b, i, _), n = shape, x.shape[0]

    def square(x: jax.Array) -> jax.Array:
        rows = algebra.inputs_of(site, x.astype(dtype))
        rows = jnp.einsum(f"n{names.inputs}->n{positions}{groups}{inputs}", rows)
        rows = rows.reshape(-1, b, i)
        return jnp.einsum("rbi,rbj->bij", rows, rows)

    # Patches of a few examples at a time; examples of zeros fill up the last few.
    most = max(1, budget(dtype) // max(1, names.positions * b * i))
    if n <= most:
        return square(x)
    count = -(-n // most)
    each = -(-n // count)
    x = jnp.pad(x, [(0, count * each - n)] + [(0, 0)] * (x.ndim - 1))
    step = lambda total, some: (total + square(some), None)
    zero = jnp.zeros((b, i, i), dtype)
    return jax.lax.scan(step, zero, x.reshape(count, each, *x.shape[1:]))[0]


def _weights(tapped: Tapped, params: Params, flags: list[bool]) -> tuple[Weight, ...]:
    """The flagged leaves as weights, in the order in which the model first reads them."""
    order = [site.leaf for site in tapped.sites]
    named = trees.named_leaves(params)
    found = [
        _weight(tapped, i, *named[i])
        for i, flag in enumerate(flags)
        if flag and math.prod(np.shape(named[i][1]))
    ]
    return tuple(sorted(found, key=lambda weight: order.index(weight.leaf)))


def _weight(tapped: Tapped, leaf: int, name: str, array: Any) -> Weight:
    label = trees.label(name)
    sites = [site for site in tapped.sites if site.leaf == leaf]
    if leaf in tapped.direct:
        raise ValueError(f"{label} is read by something other than a layer. {_REMEDY}")
    if not trees.is_float(array):
        raise ValueError(f"{label} is {trees.dtype_of(array)}, not real floating-point. {_REMEDY}")
    if not sites:
        raise ValueError(f"{label} is read by no layer. {_REMEDY}")
    if any(site.primitive == "gather" for site in sites):
        raise ValueError(f"{label} is looked up by rows, as an embedding is. {_REMEDY}")
    shape = np.shape(array)
    parts: dict[Any, Part] = {}
    for site in sites:
        layout = layout_of(site, shape)
        if layout is None:
            raise ValueError(
                f"The layer that reads {label} repeats or mixes its entries. {_REMEDY}"
            )
        places = _places(layout)
        key = (places.shape, places.tobytes())
        part = parts.get(key, Part(places, ()))
        parts[key] = part._replace(sites=(*part.sites, site))
    weight = Weight(leaf, name, shape, tuple(parts.values()))
    if sum(part.places.size for part in weight.parts) != np.count_nonzero(weight.read()):
        raise ValueError(
            f"Layers read {label} in different ways, such as once transposed, so that no output "
            f"has weights of its own. {_REMEDY}"
        )
    return weight


@partial(jax.jit, static_argnums=0)
def _moved(layout: Layout) -> jax.Array:
    return layout.to_layer(jnp.arange(math.prod(layout.shape)).reshape(layout.shape))


def _places(layout: Layout) -> np.ndarray:
    return np.asarray(_moved(layout))
