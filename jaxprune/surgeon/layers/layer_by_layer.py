"""A Pruner that goes through a model layer by layer, in the order of the program.

What it does to one weight is a `Method`; here are the order, the calibration, what is pruned
already and what is reported.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.curvature.examples import check_microbatch
from jaxprune.select.ranking import lowest
from jaxprune.surgeon.finishing import selection
from jaxprune.surgeon.layers import least_squares
from jaxprune.surgeon.layers.calibration import Hessians, Model, Weight, checked_inputs, trace_model
from jaxprune.surgeon.layers.limits import Choice, Limits, limits_of
from jaxprune.surgeon.progress import Progress, listener
from jaxprune.types import Apply, Batch, Mask, Params, Pruned, Pruner, Selection


class Case(NamedTuple):
    """One weight to prune.

    Attributes:
      weight: which.
      old: [b, i, o] of every part in score precision; what was pruned before is 0.
      alive: [b, i, o] of every part, False for what was pruned before.
      hessians: [b, i, i] of every part, as measured.
      limits: what the selection takes from it; None if leaves compete.
    """

    weight: Weight
    old: list[np.ndarray]
    alive: list[np.ndarray]
    hessians: Hessians
    limits: Limits | None


class Method(NamedTuple):
    """A way to prune one weight.

    Attributes:
      choose: `(cases, choice) -> masks`, like the parameters, for leaves that compete.
      operate: `(case, choice, mask) -> (mask, new)`: the mask (the given one is what `choose`
        decided, or None) and the new [b, i, o] of every part, 0 where the mask is False.
    """

    choose: Callable[[list[Case], Choice], list[np.ndarray]]
    operate: Callable[[Case, Choice, np.ndarray | None], tuple[np.ndarray, list[np.ndarray]]]


def layer_by_layer(
    apply: Apply,
    method: Method,
    *,
    select: Selection | None,
    microbatch: int | None,
    sequential: bool,
    progress: Progress | None,
) -> Pruner:
    """The Pruner of a method.

    Raises:
      ValueError: a selection of units, a microbatch that is no count.
      TypeError: an `apply` that is no function, or no selection.
    """
    if not callable(apply):
        raise TypeError(
            "Layer-wise pruning takes the function `(params, inputs) -> outputs`, of a LocalModel "
            f"its `apply`; got {type(apply).__name__}."
        )
    select = selection(select, lowest("layer"))
    if select.coupling is not None:
        raise ValueError(
            "This selection prunes whole units, and layer-wise pruning single weights. Pass "
            "`jp.select.lowest(...)` or `n_of_m(...)`, or prune units with `jp.one_shot`."
        )
    check_microbatch(microbatch)
    models: dict[Any, Model] = {}

    def prune(
        params: Params, batch: Batch = None, *, sparsity: Any = None, mask: Mask | None = None
    ) -> Pruned:
        start = time.perf_counter()
        if trees.is_traced(params, batch, sparsity, mask):
            raise ValueError(
                "Layer-wise pruning loops over layers on the host: call it outside jit, vmap and "
                "grad."
            )
        if sparsity is not None:
            trees.check_sparsity(sparsity)
        inputs = checked_inputs(batch)
        if mask is not None:
            params = trees.apply_mask(params, mask)
        key = _shapes(params, inputs)
        if key not in models:
            models[key] = trace_model(apply, params, inputs, select.prunable, microbatch)
        model = models[key]
        _check_finite(params, model.weights)
        run = _Run(method, model, Choice(select, params, mask, sparsity), inputs, sequential)
        errors = run.all_weights(listener(progress))
        kept = run.mask()
        info = {**trees.prunable_counts(kept, run.choice.flags), "output_error": errors}
        info["seconds"] = time.perf_counter() - start
        moved, kept = (jax.tree.map(trees.beside, tree, params) for tree in (run.params, kept))
        return Pruned(moved, kept, info)

    return prune


class _Run:
    """One call: parameters and masks, changed leaf by leaf."""

    def __init__(
        self, method: Method, model: Model, choice: Choice, inputs: Any, sequential: bool
    ) -> None:
        self.method, self.model, self.choice = method, model, choice
        self.inputs, self.sequential = inputs, sequential
        self.params = choice.params
        self.masks = list(choice.old)
        self.limits = limits_of(choice, model.weights)

    def all_weights(self, told: Progress) -> dict[str, dict[str, float]]:
        weights = self.model.weights
        every = range(len(weights))
        known: list[Hessians] | None = None
        if self.limits is None or not self.sequential:
            known = self.model.hessians(self.params, self.inputs, every)
        decided: Sequence[np.ndarray | None] = [None for _ in every]
        if self.limits is None:
            assert known is not None
            cases = [self._case(k, known[k]) for k in every]
            decided = self.method.choose(cases, self.choice)
        errors = {}
        for k in every:
            if known is not None and (k == 0 or not self.sequential):
                hessians = known[k]
            else:
                (hessians,) = self.model.hessians(self.params, self.inputs, [k])
            errors[weights[k].name] = self._one(self._case(k, hessians), decided[k])
            told(weights[k].name, k + 1, len(weights))
        return errors

    def mask(self) -> Mask:
        """The masks as a tree."""
        flags = [True] * len(self.masks)
        return trees.replace_leaves(self.params, flags, [jnp.asarray(m) for m in self.masks])

    def _case(self, k: int, hessians: Hessians) -> Case:
        weight = self.model.weights[k]
        leaf = _wide(jax.tree.leaves(self.params)[weight.leaf])
        alive = weight.split(self.choice.old[weight.leaf])
        own = None if self.limits is None else self.limits[k]
        return Case(weight, weight.split(leaf), alive, hessians, own)

    def _one(self, case: Case, decided: np.ndarray | None) -> dict[str, float]:
        """Prune one weight, and say what that does to its layer's outputs."""
        weight, at = case.weight, case.weight.leaf
        loses = case.limits.total if decided is None and case.limits else None
        if loses == (~self.choice.old[at]).sum():
            return {"removed": 0.0, "updated": 0.0}
        mask, new = self.method.operate(case, self.choice, decided)
        leaf = jax.tree.leaves(self.params)[at]
        found = np.where(weight.read(), weight.gather(new), _wide(leaf)).astype(leaf.dtype)
        found = np.where(mask, found, np.zeros((), leaf.dtype))
        flags = [i == at for i in range(len(self.masks))]
        self.params = trees.replace_leaves(self.params, flags, [trees.from_host(found, leaf)])
        self.masks[at] = mask
        plain = [np.where(m, w, 0) for m, w in zip(weight.split(mask), case.old, strict=True)]
        return _errors(case, plain, weight.split(_wide(found)))


def _wide(leaf: Any) -> np.ndarray:
    """A parameter on the host, in score precision."""
    return np.asarray(leaf).astype(trees.score_dtype(leaf))


def _errors(case: Case, plain: list[np.ndarray], new: list[np.ndarray]) -> dict[str, float]:
    """`|X w - X w0|^2 / |X w0|^2` with the mask alone, and with the new weights."""
    parts = zip(case.hessians, case.old, plain, new, strict=True)
    sums = np.zeros(3)
    for h, old, removed, updated in parts:
        sums += [float(least_squares.error(h, x)) for x in (old, removed - old, updated - old)]
    whole = sums[0] if sums[0] > 0 else 1.0
    return {"removed": float(sums[1] / whole), "updated": float(sums[2] / whole)}


def _shapes(params: Params, inputs: Any) -> Any:
    leaves, structure = jax.tree.flatten((params, inputs))
    return structure, tuple((np.shape(x), trees.dtype_of(x)) for x in leaves)


def _check_finite(params: Params, weights: Sequence[Weight]) -> None:
    leaves = jax.tree.leaves(params)
    for weight in weights:
        bad = int(np.sum(~np.isfinite(_wide(leaves[weight.leaf]))))
        if bad:
            raise ValueError(
                f"{trees.label(weight.name)} is NaN or infinite at {bad} of "
                f"{math.prod(weight.shape)} entries. Check the parameters."
            )
