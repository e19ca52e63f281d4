"""Sensitivity curves: how much each leaf alone can lose, for any scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxprune import select, trees
from jaxprune.types import Params, Predicate, Scores


@dataclass(frozen=True)
class Sensitivity:
    """What the model is worth with one leaf pruned, the others untouched.

    Attributes:
      names: the prunable leaves, in flattening order.
      sparsities: of the pruned leaf.
      values: `values[leaf][sparsity]`, from `evaluate`.
      baseline: `evaluate` of the unpruned parameters.
    """

    names: tuple[str, ...]
    sparsities: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]
    baseline: float

    def as_dict(self) -> dict[str, Any]:
        """Names, sparsities, values and baseline as lists and numbers.

        Example:
          >>> Sensitivity(("kernel",), (0.5,), ((0.8,),), 0.9).as_dict()["values"]
          [[0.8]]
        """
        return {
            "names": list(self.names),
            "sparsities": list(self.sparsities),
            "values": [list(values) for values in self.values],
            "baseline": self.baseline,
        }


def sensitivity(
    params: Params,
    scores: Scores,
    evaluate: Callable[[Params], float],
    sparsities: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95),
    *,
    prunable: Predicate = trees.default_prunable,
    progress: bool = False,
) -> Sensitivity:
    """Prune each prunable leaf alone to each sparsity, and evaluate (Han et al. 2015, figure 6).

    A leaf of n entries loses exactly `round(sparsity * n)`, those of the lowest scores, ties by
    index. The model is evaluated once unpruned and `leaves * sparsities` times pruned.

    Args:
      params: any pytree of arrays.
      scores: of any saliency, `saliency(params, batch)`; larger = more important.
      evaluate: `params -> float`, such as validation accuracy; jit it.
      sparsities: each in [0, 1).
      prunable: which leaves are tried.
      progress: show a progress bar.

    Returns:
      A `Sensitivity`; `sensitivity_plot(curves, path)` draws it.

    Raises:
      ValueError: a sparsity outside [0, 1), scores that are NaN or do not fit `params`, nothing
        prunable, or two leaves of one name.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
      >>> total = lambda params: float(jnp.sum(params["kernel"]))
      >>> sensitivity(params, params, total, (0.25, 0.5)).values
      ((9.0, 7.0),)
    """
    sparsities = tuple(sparsities)  # gone over once a leaf
    flags = trees.prunable_flags(params, prunable)
    names = [name for flag, name in zip(flags, trees.paths(params), strict=True) if flag]
    trees.check_names(names)
    jobs = [(name, sparsity) for name in names for sparsity in sparsities]
    found = iter([_value(params, scores, evaluate, *job) for job in _shown(jobs, progress)])
    values = tuple(tuple(next(found) for _ in sparsities) for _ in names)
    return Sensitivity(tuple(names), tuple(map(float, sparsities)), values, float(evaluate(params)))


def _value(
    params: Params,
    scores: Scores,
    evaluate: Callable[[Params], float],
    only: str,
    sparsity: float,
) -> float:
    """The model's value with the leaf `only` pruned; a floor would keep it from what we ask."""
    choose = select.lowest(scope="layer", prunable=lambda name, leaf: name == only, floor=0)
    return float(evaluate(trees.apply_mask(params, choose(params, scores, sparsity=sparsity))))


def _shown(jobs: list[Any], progress: bool) -> Iterable[Any]:
    if not progress:
        return jobs
    from rich.progress import track

    return track(jobs, "sensitivity")
