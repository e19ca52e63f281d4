"""The types every stage speaks, and the conventions they keep.

One tree
    `params` is whatever pytree `apply` takes first: a params collection, Linen variables, an
    `nnx.State`, bare arrays. Masks and scores have its structure and its shapes.
Batch
    `(inputs, targets)`, each any pytree whose leaves share a leading axis N >= 1.
    `apply(params, inputs) -> outputs`; `loss(outputs, targets) -> [N]`, a loss per example.
    A plain `loss(params, batch) -> scalar` is the MEAN over N.
Mask
    `bool`, True = kept. A leaf that is not prunable is all True.
Scores
    float32 (float64 for float64 leaves); larger = more important; may be negative.
    A saliency knows no mask: a Pruner puts `-inf` where its mask is False.
Sparsity
    The fraction pruned of the ORIGINAL prunable parameters, in [0, 1): exactly
    `round(sparsity * n)` of n go, ties broken by index, so masks nest.
Randomness
    An explicit `key`. No global state anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

PyTree = Any
"""Any pytree of arrays."""
Params = PyTree
Scores = PyTree
Mask = PyTree
Batch = Any
"""`(inputs, targets)`; anything a plain `loss(params, batch)` takes."""


class Apply(Protocol):
    """The model: `apply(params, inputs) -> outputs`."""

    def __call__(self, params: Params, inputs: PyTree, /) -> PyTree: ...


class Loss(Protocol):
    """`loss(outputs, targets) -> [N]`: one number per example."""

    def __call__(self, outputs: PyTree, targets: PyTree, /) -> jax.Array: ...


Predicate = Callable[[str, Any], bool]
"""`prunable(name, leaf)`: may this leaf be pruned? `name` is its path, such as `dense/kernel`."""


class Stats(NamedTuple):
    """What a saliency measured: SUMS over examples. Stats add across batches and devices.

    Attributes:
      count: number of examples, int32 scalar.
      sums: pytree of sums over those examples (empty for a saliency that needs no data).
    """

    count: jax.Array  # type: ignore[assignment]  # a field, not tuple.count
    sums: PyTree


@dataclass(frozen=True)  # not a NamedTuple: `jax.jit` needs a weak reference to what it is given
class Saliency:
    """How important every parameter is: two pure functions, and callable.

    Attributes:
      measure: `(params, batch) -> Stats`.
      score: `(params, stats) -> Scores`.
      formed: where an entry's score depends on that entry of the parameters and of what was
        measured alone, `(params, batch) -> scores` that are formed as they are read: a Pruner
        inside jit then need not keep them, see `Formed`. Otherwise None.
    """

    measure: Callable[[Params, Batch], Stats]
    score: Callable[[Params, Stats], Scores]
    formed: Callable[[Params, Batch], Scores] | None = None

    def __call__(self, params: Params, batch: Batch = None) -> Scores:
        """`score(params, measure(params, batch))`."""
        return self.score(params, self.measure(params, batch))


@dataclass(frozen=True)
class Formed:
    """The scores of one leaf, formed anew each time they are read, so that none are ever kept.

    In a tree it is a leaf. It lives inside one trace: no jitted function takes it as an argument.

    Attributes:
      arrays: what they are formed from, arrays of the leaf's shape.
      form: `(*arrays) -> scores`, entry by entry.
      dtype: of the scores.
    """

    arrays: tuple[Any, ...]
    form: Callable[..., jax.Array]
    dtype: Any

    shape = property(lambda self: self.arrays[0].shape)
    ndim = property(lambda self: self.arrays[0].ndim)
    size = property(lambda self: self.arrays[0].size)

    def read(self) -> jax.Array:
        """The scores."""
        return self.form(*self.arrays).astype(self.dtype)

    def astype(self, dtype: Any) -> Formed:
        """The same in another dtype."""
        return Formed(self.arrays, self.form, dtype)


ScoreFunction = Saliency | Callable[[Params, Batch], Scores]
"""A `Saliency`, or a user's plain `(params, batch) -> Scores` (which cannot be accumulated)."""


@dataclass(frozen=True)
class Selection:
    """Which parameters stay, given scores.

    Attributes:
      prunable: the predicate that says which leaves take part.
      choose: `(params, scores, sparsity) -> Mask`; a score of `-inf` is never kept.
      coupling: for a selection of whole units, what lives together; otherwise None.
      read: for a selection of units, scores of either kind -> `{group: [units]}`.
      parts: `params -> tree` of integers, equal for entries that compete with each other: a kept
        and a pruned entry of one part may change places. -1 where nothing is pruned. None where
        entries do not compete one by one.
      fixed: the only sparsity it can reach, of a pattern such as N:M; otherwise None.
      takes_formed: `choose` also takes scores that are formed as they are read, see `Formed`.
      groups: for a selection of units, the groups that can lose some; empty for all.
      by_budget: a cost says how much goes, and `choose` takes no sparsity.
    """

    prunable: Predicate
    choose: Callable[[Params, Scores, Any], Mask]
    coupling: Any = None
    read: Callable[[Scores], Any] | None = None
    parts: Callable[[Params], PyTree] | None = None
    fixed: float | None = None
    takes_formed: bool = False
    groups: tuple[str, ...] = ()
    by_budget: bool = False

    def __call__(self, params: Params, scores: Scores, *, sparsity: Any = None) -> Mask:
        """The mask; `sparsity` may be traced, and None where the pattern itself fixes it."""
        return self.choose(params, scores, sparsity)


class Pruned(NamedTuple):
    """What a Pruner returns.

    Attributes:
      params: the parameters, exactly 0 where the mask is False.
      mask: True = kept.
      info: what happened, by name (counts, objectives, seconds).
    """

    params: Params
    mask: Mask
    info: dict[str, Any]


@runtime_checkable
class Pruner(Protocol):
    """Everything that prunes: `(params, batch, *, sparsity, mask=None) -> Pruned`."""

    def __call__(
        self, params: Params, batch: Batch = None, *, sparsity: Any = None, mask: Mask | None = None
    ) -> Pruned: ...


Schedule = Callable[[Any], Any]
"""`step -> sparsity`, shaped as Optax schedules are."""

FineTune = Callable[[Params, Mask], Params]
"""`(params, mask) -> params`: the user's own training, which must keep pruned entries at 0."""

Batches = Iterable[Batch]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("mean", "second_moment"),
    meta_fields=("is_hessian", "fallback_paths"),
)
@dataclass(frozen=True)
class Diagonal:
    """The diagonal of a curvature matrix, MEANS over examples.

    Attributes:
      mean: mean over examples of the per-example diagonal; structure and shapes of `params`.
      second_moment: mean over examples of its square, or None where it was not measured.
      is_hessian: True if it is the Hessian's diagonal, not an approximation of it.
      fallback_paths: names of the leaves that took a slower path.
    """

    mean: PyTree
    second_moment: PyTree | None = None
    is_hessian: bool = False
    fallback_paths: tuple[str, ...] = ()


Curvature = Callable[[Params, Batch], Diagonal]
"""`(params, batch) -> Diagonal`."""


class GradientMoments(NamedTuple):
    """Means over examples of per-example gradients and of their squares; trees like `params`."""

    mean: PyTree
    second_moment: PyTree


class LayerMoments(NamedTuple):
    """Inputs and output curvature of the layer each weight belongs to; broadcast like `params`.

    Attributes:
      input_mean: mean over examples of the input that the weight multiplies.
      input_second_moment: mean over examples of that input's square.
      output_curvature: mean over examples of the curvature of the loss in the layer's output.
    """

    input_mean: PyTree
    input_second_moment: PyTree
    output_curvature: PyTree
