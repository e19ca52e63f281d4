"""Sums over examples in bounded memory: how a batch is cut, and whether it may be."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import objective, trees
from jaxprune.jaxpr.equations import contains
from jaxprune.jaxpr.examples import independent_examples
from jaxprune.jaxpr.taps import tap
from jaxprune.objective import check_count
from jaxprune.types import Apply, Batch, Curvature, Loss, Params, PyTree

_CACHE_BYTES = 32 << 20  # of deltas at once on a CPU: what its last cache holds
_DEVICE_BYTES = 1 << 30
_UNROLLED = 16


def check_microbatch(microbatch: Any) -> None:
    """Raise unless it is None or an integer >= 1."""
    if microbatch is not None:
        check_count("microbatch", microbatch)


def widened(params: Params) -> tuple[list[jax.Array], Callable[[list[Any]], Params], list[bool]]:
    """The real floating leaves in score precision: second derivatives in bfloat16 are noise."""
    leaves, merge, flags = objective.by_leaves(params)
    return [leaf.astype(trees.score_dtype(leaf)) for leaf in leaves], merge, flags


def with_mean_only(curvature: Curvature, lean: Curvature) -> Curvature:
    """A curvature that offers a cheaper one without second moments, as `curvature.mean_only`.

    OBD asks for it, so that it does not pay for what it does not read.
    """
    curvature.mean_only = lean  # type: ignore[attr-defined]
    return curvature


def widened_inputs(params: Params, inputs: PyTree) -> PyTree:
    """Floating inputs in score precision too, if parameters had to be widened."""
    narrow = any(
        trees.is_float(x) and trees.dtype_of(x).itemsize < 4 for x in jax.tree.leaves(params)
    )
    if not narrow:
        return inputs
    wide = lambda x: jnp.asarray(x).astype(trees.score_dtype(x)) if trees.is_float(x) else x
    return jax.tree.map(wide, inputs)


class Plan(NamedTuple):
    """How a batch is measured.

    Attributes:
      independent: each example's outputs depend on that example alone, so the batch may be cut.
      microbatch: examples at once.
    """

    independent: bool
    microbatch: int


Columns = Callable[[PyTree, PyTree], int]
"""`(outputs, targets) -> k`, from shapes: how many cotangents an example is given."""


def mean_over_examples(
    apply: Apply,
    sums: Callable[[Params, Batch, bool], PyTree],
    columns: Columns,
    microbatch: int | None,
    loss: Loss | None = None,
) -> Callable[[Params, Batch], PyTree]:
    """The mean over examples of what `sums` adds up, a microbatch at a time.

    Outside jit the microbatches are a loop on the host over one compiled program; inside, they are
    unrolled, or a `lax.scan` where there are many and no convolutions (in a loop those are tens
    of times as slow on a CPU).

    Args:
      apply: the model.
      sums: `(params, batch, independent) -> sums over the batch's examples`.
      columns: cotangents an example, for the size of an automatic microbatch.
      microbatch: examples at once, or None: as many as keep the deltas in the last cache.
      loss: `(outputs, targets) -> [N]`, if it is taken an example at a time, to be checked.
    """
    check_microbatch(microbatch)
    plans: dict[Any, Plan] = {}
    apart = examples_apart(apply, loss)
    run = jax.jit(sums, static_argnums=2)
    add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b), donate_argnums=0)
    divide = jax.jit(_divided, static_argnums=1)

    @partial(jax.jit, static_argnums=(2, 3))
    def whole(params: Params, batch: Batch, independent: bool, n: int) -> PyTree:
        return _divided(sums(params, batch, independent), n)

    def mean(params: Params, batch: Batch) -> PyTree:
        inputs, targets = objective.split_batch(batch)
        batch = (widened_inputs(params, inputs), targets)
        n = objective.batch_size(batch)
        independent = apart(params, batch)  # asked every time: under jit it cannot look at losses
        if (key := _shapes(params, batch)) not in plans:
            plans[key] = _plan(apply, independent, params, batch, columns, microbatch)
        plan = plans[key]
        size = plan.microbatch if plan.independent else n
        if size >= n:
            return whole(params, batch, plan.independent, n)
        batch = jax.tree.map(jnp.asarray, batch)
        cut = lambda i: jax.tree.map(lambda x: x[i : i + size], batch)
        parts = (cut(i) for i in range(0, n, size))
        first = next(parts)
        if not trees.is_traced(params, batch):
            total = run(params, first, plan.independent)
            for part in parts:
                total = add(total, run(params, part, plan.independent))
            return divide(total, n)
        one = lambda part: sums(params, part, plan.independent)
        few = n <= _UNROLLED * size
        if few or contains(lambda p, b: sums(p, b, True), "conv_general_dilated", params, first):
            total = one(first)
            for part in parts:
                total = jax.tree.map(jnp.add, total, one(part))
        else:
            total = _scanned(one, batch, size, n)
        return _divided(total, n)

    return mean


def examples_apart(apply: Apply, loss: Loss | None) -> Callable[[Params, Batch], bool]:
    """`(params, batch) -> do the model's examples not depend on each other?`, found out once.

    Outside jit a loss, if given, is looked at as well.

    Raises:
      ValueError: examples meet in the loss, see `objective.check_alone`.
    """
    known: dict[Any, bool] = {}
    looked_at: set[Any] = set()

    def apart(params: Params, batch: Batch) -> bool:
        key = _shapes(params, batch)
        if key not in known:
            wide, (inputs, _) = _abstractly(params, batch)
            known[key] = independent_examples(apply, wide, inputs)
        if loss is None or key in looked_at or trees.is_traced(params, batch):
            return known[key]
        looked_at.add(key)
        wide, (inputs, targets) = _abstractly(params, batch)
        outputs = jax.eval_shape(apply, wide, inputs)
        objective.check_outputs(outputs)
        whole = all(getattr(x, "is_fully_addressable", True) for x in jax.tree.leaves(batch))
        if whole and not independent_examples(lambda _, y: loss(*y), (), (outputs, targets)):
            outputs = jax.jit(lambda p, x: apply(_whole(p), x))(params, batch[0])
            objective.check_alone(loss, outputs, batch[1])
        return known[key]

    return apart


def _divided(sums: PyTree, n: int) -> PyTree:
    """Sums over n examples as means.

    Where XLA knows n it multiplies by 1 / n: rounded twice, and so cheap that it is done again for
    every reader of a mean, with the sums kept beside it.
    """
    held = jax.lax.optimization_barrier(jnp.asarray(n, trees.count_dtype(n)))
    return jax.tree.map(lambda x: x / held.astype(x.dtype), sums)


def _shapes(params: Params, batch: Batch) -> Any:
    leaves, structure = jax.tree.flatten((params, batch))
    return structure, *((np.shape(x), trees.dtype_of(x)) for x in leaves)


def _whole(params: Params) -> Params:
    """The parameters in score precision."""
    leaves, merge, _ = widened(params)
    return merge(leaves)


def _abstractly(params: Params, batch: Batch) -> tuple[Params, Batch]:
    """The shapes of the parameters in score precision, and of a batch."""
    return jax.eval_shape(_whole, params), jax.tree.map(_abstract, batch)


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    x = jnp.asarray(x) if not hasattr(x, "dtype") else x
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _plan(
    apply: Apply,
    independent: bool,
    params: Params,
    batch: Batch,
    columns: Columns,
    microbatch: int | None,
) -> Plan:
    params, batch = _abstractly(params, batch)
    inputs, targets = batch
    n = objective.batch_size(batch)
    if microbatch is not None or not independent:
        return Plan(independent, min(microbatch or n, n))
    one = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), (inputs, targets)
    )
    outputs = jax.eval_shape(apply, params, one[0])
    k = columns(outputs, one[1])
    zeros = jax.eval_shape(lambda p, x: tap(apply, p, x).zeros, params, one[0])
    deltas = sum(math.prod(z.shape) * z.dtype.itemsize for z in jax.tree.leaves(zeros)) * k
    budget = _CACHE_BYTES if jax.default_backend() == "cpu" else _DEVICE_BYTES
    most = max(1, budget // max(deltas, 1))
    return Plan(True, min(n, 1 << (most.bit_length() - 1)))


def _scanned(sums: Callable[[Batch], PyTree], batch: Batch, size: int, n: int) -> PyTree:
    whole = n // size
    head = jax.tree.map(lambda x: x[: whole * size].reshape(whole, size, *x.shape[1:]), batch)
    first = sums(jax.tree.map(lambda x: x[0], head))
    step = lambda total, part: (jax.tree.map(jnp.add, total, sums(part)), None)
    total, _ = jax.lax.scan(step, first, jax.tree.map(lambda x: x[1:], head))
    if n % size:
        rest = sums(jax.tree.map(lambda x: x[whole * size :], batch))
        total = jax.tree.map(jnp.add, total, rest)
    return total
