"""How a surgeon models the loss around the weights, and judges what it did: data to a quadratic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import objective, trees
from jaxprune.curvature import FactoredFisher, factored_fisher
from jaxprune.curvature.examples import mean_over_examples
from jaxprune.surgeon.quadratic import Quadratic
from jaxprune.types import Apply, Batch, Loss, Mask, Params, Predicate, PyTree, Selection

Fisher = Callable[[Params, Batch], FactoredFisher]


def _nothing(name: str, leaf: Any) -> bool:
    return False


def _is(value: Any, kind: type) -> bool:
    """True for numbers of a kind, NumPy's too; a bool is none."""
    return isinstance(value, kind) and not isinstance(value, bool)


@dataclass(frozen=True)
class LocalModel:
    """The loss around trained weights: `Q(z) = g'(z - w) + 1/2 (z - w)'(F + damping I)(z - w)`.

    Surgeons are made from it, so that they share one model of the loss:

    Attributes:
      apply: `(params, inputs) -> outputs`.
      loss: `(outputs, targets) -> [N]`.
      fisher: `(params, batch) -> FactoredFisher`: by default the empirical Fisher,
        `jp.curvature.factored_fisher(apply, loss)`, as in WoodFisher and the Combinatorial Brain
        Surgeon. `jp.curvature.sketched_gauss_newton` models pruning better.
      damping: added to the diagonal, >= 0 (most surgeons need > 0).
      examples: how many of the batch the Fisher is taken over, drawn by `key`; None for all. The
        surgeon's solves are of this size.
      first_order: include the gradient g over the whole batch; without, training has converged.
      adjust: `(name, leaf) -> bool`: further leaves that the update may move but nobody prunes,
        such as biases or norm parameters. By default only prunable leaves move.
      judged: at most so many examples of the batch judge candidates by their true loss: those that
        the Fisher was not taken over, or any where fewer than a quarter of the batch are left (and
        fewer than so many).
      key: draws the examples.

    Example:
      >>> from jaxprune import curvature
      >>> loss = lambda y, t: 0.5 * (y - t) ** 2
      >>> model = LocalModel(lambda w, x: x @ w, loss, damping=1e-3)
      >>> model.fisher is None, model.examples
      (True, 1000)

    References:
      Hassibi and Stork 1993, Optimal Brain Surgeon; Singh and Alistarh 2020, WoodFisher.
    """

    apply: Apply
    loss: Loss
    fisher: Fisher | None = None
    damping: float = 1e-3
    examples: int | None = 1000
    first_order: bool = False
    adjust: Predicate = _nothing
    judged: int = 5000
    key: jax.Array | None = None
    _compiled: dict[str, Any] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (_is(self.damping, Real) and 0 <= self.damping < np.inf):
            raise ValueError(f"`damping` is a number >= 0, got {self.damping!r}.")
        for name, least in (("examples", 1), ("judged", 1)):
            count = getattr(self, name)
            if count is not None and not (_is(count, Integral) and count >= least):
                raise ValueError(
                    f"`{name}` is a number of examples, an integer >= {least}, got {count!r}."
                )
        # `dataclasses.replace` hands these on, so that a model of another key compiles nothing.
        made_for = (self.apply, self.loss)
        if self._compiled is None or self._compiled["for"] != made_for:
            mean = objective.mean_loss(self.apply, self.loss)
            functions = {
                "for": made_for,
                "fisher": factored_fisher(self.apply, self.loss),
                "loss": jax.jit(mean),
                "slopes": _mean_gradient(self.apply, mean),
            }
            object.__setattr__(self, "_compiled", functions)

    @property
    def functions(self) -> dict[str, Any]:
        """Compiled losses, slopes and the default Fisher."""
        assert self._compiled is not None
        return self._compiled

    def loss_of(self, params: Params, batch: Batch) -> float:
        """The true mean loss."""
        return float(self.functions["loss"](params, batch))


def _mean_gradient(apply: Apply, mean: objective.MeanLoss) -> Callable[[Params, Batch], PyTree]:
    """The gradient of the mean loss, as many examples at once as a CPU's last cache holds."""

    def sums(params: Params, batch: Batch, independent: bool) -> PyTree:
        n = objective.batch_size(batch)
        return jax.tree.map(
            lambda g: n * objective.wide(g), objective.gradient(mean, params, batch)
        )

    return mean_over_examples(apply, sums, lambda outputs, targets: 1, None)


class Site:
    """Where a quadratic's flat vectors lie in the parameters.

    Attributes:
      params: what is pruned, already without what the given mask prunes.
      select: what chooses.
      names, prunable, moving: of every leaf.
      sizes: of the leaves that move.
      old: [d] bool, what the given mask keeps.
      prunable_entries, candidates: [d] bool, of prunable leaves, and of those still there.
    """

    def __init__(
        self, params: Params, select: Selection, adjust: Predicate, mask: Mask | None
    ) -> None:
        if select.coupling is not None:
            raise ValueError(
                "A surgeon moves single weights; this selection takes whole units. Prune units "
                "with `jp.one_shot(saliency, jp.select.lowest_units(coupling))`."
            )
        objective.by_leaves(params)
        self.select = select
        self.prunable = trees.prunable_flags(params, select.prunable)
        named = trees.named_leaves(params)
        self.names = [name for name, _ in named]
        self.moving = [
            flag or (trees.is_float(leaf) and bool(adjust(name, leaf)))
            for flag, (name, leaf) in zip(self.prunable, named, strict=True)
        ]
        full = trees.full_mask(params) if mask is None else mask
        self.params = trees.apply_mask(params, full)
        self.dtype = jnp.result_type(
            *[trees.score_dtype(leaf) for leaf in trees.select_leaves(params, self.moving)]
        )
        self.old = self.flat(full).astype(bool)
        self.sizes = [int(np.size(leaf)) for leaf in trees.select_leaves(params, self.moving)]
        flags = trees.select_leaves(self.prunable, self.moving)
        self.prunable_entries = jnp.asarray(np.repeat(flags, self.sizes))
        self.candidates = self.prunable_entries & self.old

    @property
    def size(self) -> int:
        """d."""
        return int(self.old.size)

    def flat(self, tree: PyTree) -> jax.Array:
        """A tree's moving leaves as one vector [d]."""
        leaves = trees.select_leaves(tree, self.moving)
        return jnp.concatenate([jnp.asarray(x).astype(self.dtype).ravel() for x in leaves])

    def weights(self, flat: jax.Array) -> Params:
        """The parameters with a vector's entries in the moving leaves, dtypes kept."""
        return self._placed(flat, self.params)

    def scores(self, flat: jax.Array) -> PyTree:
        """Scores with a vector's entries in the moving leaves, 0 elsewhere."""
        return self._placed(flat, jax.tree.map(objective.zeros, self.params))

    def mask(self, flat: jax.Array) -> Mask:
        """The mask of a flat one."""
        return self._placed(flat, trees.full_mask(self.params))

    def choose(self, scores: jax.Array, sparsity: Any) -> jax.Array:
        """The flat mask that the selection makes of flat scores; pruned entries stay pruned."""
        hidden = jnp.where(self.old, scores, -jnp.inf)
        chosen = self.select.choose(self.params, self.scores(hidden), sparsity)
        return self.flat(chosen).astype(bool) & self.old

    def parts(self) -> jax.Array | None:
        """Which entries may change places, [d]; None where the selection does not say."""
        if self.select.parts is None:
            return None
        numbers = self.select.parts(self.params)
        leaves = trees.select_leaves(numbers, self.moving)
        flat = jnp.concatenate([jnp.asarray(x).ravel() for x in leaves])
        return jnp.where(self.candidates, flat, -1)

    def one_part(self) -> bool:
        """True if any entry that is still there may change places with any other."""
        parts = self.parts()
        return parts is not None and len(np.unique(np.asarray(parts[self.candidates]))) == 1

    def _placed(self, flat: jax.Array, into: PyTree) -> PyTree:
        new, at = [], 0
        old = trees.select_leaves(into, self.moving)
        for leaf, size in zip(old, self.sizes, strict=True):
            piece = flat[at : at + size].reshape(np.shape(leaf))
            new.append(piece.astype(trees.dtype_of(leaf)))
            at += size
        return trees.replace_leaves(into, self.moving, new)


def split_examples(
    model: LocalModel, batch: Batch, key: jax.Array | None = None
) -> tuple[Batch, Batch]:
    """The examples that the Fisher is taken over, and those that judge.

    The others judge, or the whole batch where fewer than a quarter of it are left (and fewer than
    `judged`).

    Args:
      key: draws them, instead of the model's own.

    Raises:
      ValueError: no batch.
    """
    if batch is None:
        raise ValueError(
            "A surgeon needs data for the loss around the weights, and got no batch. Pass "
            "`batch=(inputs, targets)`."
        )
    batch = objective.split_batch(batch)
    n = objective.batch_size(batch)
    count = min(model.examples or n, n)
    whole = jax.tree.map(lambda x: x[: model.judged], batch)
    if count == n:
        return batch, whole
    drawn = model.key if key is None else key
    with jax.ensure_compile_time_eval():  # sizes and rows are known, also inside jit
        order = np.asarray(jax.random.permutation(jax.random.key(0) if drawn is None else drawn, n))
    cut = lambda rows: jax.tree.map(lambda x: jnp.asarray(x)[rows], batch)
    if n - count < min(model.judged or n, n // 4):
        return cut(order[:count]), whole
    return cut(order[:count]), cut(order[count:][: model.judged])


def quadratic_at(
    model: LocalModel, site: Site, params: Params, batch: Batch, key: jax.Array | None = None
) -> tuple[Quadratic, Batch]:
    """The quadratic around params, and the examples that judge.

    Returns:
      The quadratic in the site's flat vectors, and the examples that judge.
    """
    chosen, others = split_examples(model, batch, key)
    fisher = (model.fisher or model.functions["fisher"])(params, chosen)
    if model.first_order:
        slopes = site.flat(model.functions["slopes"](params, batch))
    else:
        slopes = jnp.zeros(site.size, site.dtype)
    read = [trees.is_float(leaf) for leaf in jax.tree.leaves(params)]
    moving = [m for m, r in zip(site.moving, read, strict=True) if r]
    factors = tuple(f for f, m in zip(fisher.factors, moving, strict=True) if m)
    shapes = tuple(np.shape(x) for x in trees.select_leaves(params, site.moving))
    quadratic = Quadratic(
        factors, site.flat(params), slopes, jnp.asarray(model.damping, site.dtype),
        fisher.examples, shapes,
    )  # fmt: skip
    return quadratic, others
