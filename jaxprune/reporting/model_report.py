"""What a mask leaves of a model: counts, bytes, FLOPs, milliseconds; `report` is the front."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.jaxpr.flops import flops_by_operation, flops_skipping_zeros
from jaxprune.reporting.records import Cost, Report, Row, Totals
from jaxprune.reporting.storage import LeafBytes, dense_bytes, leaf_bytes
from jaxprune.reporting.timing import Latency, latencies
from jaxprune.types import Apply, Mask, Params, Predicate, PyTree

_NEARLY_EMPTY = 0.99


def report(
    params: Params,
    mask: Mask,
    *,
    apply: Apply | None = None,
    inputs: PyTree = None,
    prunable: Predicate = trees.default_prunable,
) -> Report:
    """Count what `mask` leaves of `params`, leaf by leaf and in all.

    Sparsity is given over both denominators: prunable entries (what pruners are asked for) and
    all entries (what papers that count every parameter mean). A unit mask may drop biases and
    statistics too: they are counted where they are, as leaves that are not prunable.

    Args:
      params: any pytree of arrays; abstract arrays are enough without latencies.
      mask: the same structure and shapes, bool, True = kept.
      apply: the model, `apply(params, inputs)`; with it the cost of one call is reported.
      inputs: what to call it on.
      prunable: the predicate that the mask was made with.

    Returns:
      A `Report`. `print(report)` shows a table; `to_json` and `to_csv` write it.

    Raises:
      ValueError: mask and parameters differ (the leaf is named), only one of `apply` and `inputs`
        is given, or nothing is prunable. TypeError: the mask is not bool, or is traced.

    Example:
      >>> params = {"kernel": jnp.ones((2, 4)), "bias": jnp.ones(4)}
      >>> mask = {"kernel": jnp.arange(8).reshape(2, 4) < 2, "bias": jnp.ones(4, bool)}
      >>> totals = report(params, mask).totals
      >>> totals.prunable_kept, totals.sparsity_of_prunable, totals.sparsity_of_all
      (2, 0.75, 0.5)
    """
    trees.check_like(params, mask, "mask", boolean=True)
    _check_concrete(mask)
    if (apply is None) != (inputs is None):
        missing = "apply" if apply is None else "inputs"
        raise ValueError(
            f"The cost of a call needs both `apply` and `inputs`; `{missing}` is missing. Pass "
            "both, or neither."
        )
    flags = trees.prunable_flags(params, prunable)
    masks = jax.tree.leaves(mask)
    rows = tuple(
        _row(name, leaf, trees.keep(kept), flag, prunable)
        for flag, (name, leaf), kept in zip(flags, trees.named_leaves(params), masks, strict=True)
    )
    cost, uncounted = (None, []) if apply is None else _cost(apply, params, mask, inputs)
    return Report(rows, _totals(rows), cost, tuple(_empty(rows) + uncounted))


def _check_concrete(mask: Mask) -> None:
    for name, leaf in trees.named_leaves(mask):
        if isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct):
            raise TypeError(
                f"The mask at {trees.label(name)} is a {type(leaf).__name__}, which has no values "
                "to count. Call `report` outside jit, on a real mask."
            )


def _row(name: str, leaf: Any, kept: int, flag: bool, prunable: Predicate) -> Row:
    shape, dtype = tuple(np.shape(leaf)), trees.dtype_of(leaf)
    dense = dense_bytes(shape, dtype.itemsize)
    sizes = leaf_bytes(shape, kept, dtype.itemsize) if flag else LeafBytes(dense, dense, dense)
    reason = "" if flag else _reason(name, leaf, prunable)
    return Row(name, shape, str(dtype), trees.count(leaf), kept, flag, reason, sizes)


def _reason(name: str, leaf: Any, prunable: Predicate) -> str:
    """Why the predicate left this leaf out; a user's own predicate gives no reasons."""
    dtype, last = trees.dtype_of(leaf), name.rsplit("/", 1)[-1]
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return "PRNG key"
    if not trees.is_inexact(leaf):
        return "integer" if jnp.issubdtype(dtype, jnp.integer) else f"dtype {dtype}"
    if prunable is not trees.default_prunable:
        return "excluded by predicate"
    return f"rank {np.ndim(leaf)}" if np.ndim(leaf) < 2 else f"named {last}"


def _totals(rows: tuple[Row, ...]) -> Totals:
    ours = [row for row in rows if row.prunable]
    return Totals(
        total=sum(row.total for row in rows),
        kept=sum(row.kept for row in rows),
        prunable_total=sum(row.total for row in ours),
        prunable_kept=sum(row.kept for row in ours),
        bytes=LeafBytes(*map(sum, zip(*(row.bytes for row in rows), strict=True))),
    )


def _cost(apply: Apply, params: Params, mask: Mask, inputs: PyTree) -> tuple[Cost, list[str]]:
    count = flops_by_operation(apply, params, inputs)
    uncounted = [
        f"FLOPs inside '{name}' are counted once: the jaxpr does not tell how often it runs."
        for name in count.counted_once
    ]
    times: list[Latency | None] = [None, None]
    if not any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves((params, inputs))):
        masked = trees.apply_mask(params, mask)
        times = [*latencies([(apply, (params, inputs)), (apply, (masked, inputs))])]
    return Cost(count.total, flops_skipping_zeros(count, mask), *times), uncounted


def _empty(rows: tuple[Row, ...]) -> list[str]:
    """Leaves that a signal can hardly pass, or not at all."""
    warnings = []
    for row in rows:
        if row.total and not row.kept:
            warnings.append(f"{trees.label(row.name)} is empty: all {row.total} entries pruned.")
        elif row.prunable and row.sparsity > _NEARLY_EMPTY:
            warnings.append(
                f"{trees.label(row.name)} is above 99 % sparsity: {row.kept} of {row.total} kept."
            )
    return warnings
