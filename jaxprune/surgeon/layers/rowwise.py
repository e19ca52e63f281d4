"""ExactOBS: every output prunes its weights one by one, exactly, and outputs compete by loss."""

from __future__ import annotations

from functools import partial

import numpy as np

from jaxprune.surgeon.layers import elimination
from jaxprune.surgeon.layers.elimination import Losses, Rows
from jaxprune.surgeon.layers.layer_by_layer import Case, Method, layer_by_layer
from jaxprune.surgeon.layers.least_squares import (
    by_row,
    check_damping,
    check_finite,
    compensated,
    damped,
)
from jaxprune.surgeon.layers.limits import Choice
from jaxprune.surgeon.progress import Progress
from jaxprune.types import Apply, Pruner, Selection

_SPARE = 16  # steps beyond what a row is expected to need


def exact_obs(
    apply: Apply,
    *,
    select: Selection | None = None,
    damping: float = 0.01,
    microbatch: int | None = None,
    sequential: bool = True,
    progress: Progress | None = None,
) -> Pruner:
    """ExactOBS: layer by layer, the mask and the weights that least change the layer's outputs.

    For one output of a layer with weights w0 over its i inputs, the mean over examples of the
    squared change of that output is `(w - w0)' H (w - w0)`, `H = (1/N) sum_n sum_p x_np x_np'`.
    Its weights are eliminated one by one, the cheapest first,

        q = argmin w_q^2 / [H^-1]_qq,    w <- w - w_q / [H^-1]_qq H^-1 e_q,

    until they are all gone, row and column q leaving H each time. What a step cost is the score
    of its weight, and `select` decides between all scores how far each output goes, always a first
    part of its order: in the scope "layer" outputs of one leaf compete, in "global" outputs of all.
    Last, the weights that stay are solved for once more, `min (w - w0)' H (w - w0)` with the
    mask as it is. Biases and what is not prunable keep their bits.

    With `n_of_m(n, m)`, a group that has lost m - n weights is protected from then on; groups must
    run along inputs of the layer. What a given `mask` has pruned counts, is 0 and has no part in
    any of this: H is that of the other inputs. No steps are taken towards weights that `select`
    would not take in any case.

    Args:
      apply: `(params, inputs) -> outputs`, where each example's outputs depend on its inputs only
        (BatchNorm in inference mode).
      select: which scores go; by default `jp.select.lowest("layer")`. Its `prunable` says
        which leaves take part: all of them weights of dense layers or convolutions.
      damping: `damping mean(diag H)` is added to the diagonal. 0 where no inputs are
        dependent on this batch; an input that is always 0 does no harm.
      microbatch: examples at once, as in `input_hessians`.
      sequential: measure the inputs of every layer in the model whose layers before it are pruned
        already. If leaves compete ("global") the mask is decided in the dense model, and only the
        weights are solved for in this order. False: measure once. One leaf is measured once, also
        where layers read slices of it (`scan` over stacked layers).
      progress: called with `(leaf name, leaves done, leaves in all)` after every leaf.

    Returns:
      A `Pruner`, to be called outside jit; its batch is `(inputs, targets)`, the targets not read
      (they may be None). `info["output_error"]` has by leaf `|X w - X w0|^2 / |X w0|^2` with the
      mask alone ("removed") and with the new weights ("updated", never above "removed").

    Raises:
      ValueError: a selection of units, a negative damping; when called, a sparsity as `select`
        says, an empty batch, NaN inputs or weights, singular second moments with too little
        damping, N:M groups along outputs, examples that depend on each other, or a prunable leaf
        that enters something besides dense layers and convolutions; the leaf is named.

    References:
      Frantar and Alistarh 2022, Optimal Brain Compression, section 4 and algorithms 1 and 2.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[1.0, 1.0, 0.0], [2.0, 2.0, 1.0], [0.0, 0.0, 2.0]])
      >>> prune = exact_obs(lambda w, x: x @ w)
      >>> pruned = prune(jnp.array([[1.0], [2.0], [3.0]]), (x, None), sparsity=1 / 3)
      >>> pruned.params.ravel().round(1)  # the second input says what the first did
      Array([0., 3., 3.], dtype=float32)
      >>> {name: round(error, 2) for name, error in pruned.info["output_error"][""].items()}
      {'removed': 0.04, 'updated': 0.0}
    """
    check_damping(damping)
    method = Method(partial(_choose, damping=damping), partial(_operate, damping=damping))
    return layer_by_layer(
        apply,
        method,
        select=select,
        microbatch=microbatch,
        sequential=sequential,
        progress=progress,
    )


def _operate(
    case: Case, choice: Choice, mask: np.ndarray | None, *, damping: float
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The mask, unless it is decided already, and the weights that suit it best."""
    if mask is None:
        (mask,) = _choose([case], choice, damping)
    new = []
    parts = zip(case.hessians, case.old, case.alive, case.weight.split(mask), strict=True)
    for hessian, old, alive, keep in parts:
        new.append(compensated(damped(hessian, damping)[0], old, alive, keep))
        check_finite(new[-1], case.weight.name)
    return mask, new


def _choose(cases: list[Case], choice: Choice, damping: float) -> list[np.ndarray]:
    """The masks of leaves that compete, or of one.

    Every row is eliminated as far as it is likely to go. What it has not reached costs at least as
    much as its last step, and is shown to the selection at that price: if none of it is taken, the
    masks are those of complete eliminations. Rows of which something is taken go on.
    """
    rivals = [_Rival(case, damping) for case in cases]
    weights = [case.weight for case in cases]
    masks = choice(weights, [rival.first() for rival in rivals])
    for rival, mask in zip(rivals, masks, strict=True):
        rival.expect(mask)
    while True:
        moved = [rival.advance() for rival in rivals]
        if not any(moved):
            return masks
        masks = choice(weights, [rival.scores() for rival in rivals])
        for rival, mask in zip(rivals, masks, strict=True):
            rival.check(mask)


class _Rival:
    """The eliminations of one leaf, as far as they have got; lists are by part."""

    def __init__(self, case: Case, damping: float) -> None:
        self.case = case
        self.rows = [self._rows(p, damping) for p in range(len(case.old))]
        self.inverses = [elimination.inverse_of(rows) for rows in self.rows]
        self.found = [Losses(np.zeros_like(r.weights), np.zeros_like(r.alive)) for r in self.rows]
        self.steps = [np.zeros(len(r.weights), int) for r in self.rows]
        self.waiting = [r.alive.any(axis=1) for r in self.rows]

    def _rows(self, p: int, damping: float) -> Rows:
        case, limits = self.case, self.case.limits
        hessian, dead = damped(case.hessians[p], damping)
        alive = by_row(case.alive[p])
        groups, each = np.zeros(alive.shape[1], int), np.full((len(alive), 1), alive.shape[1])
        if limits is not None and limits.groups is not None:
            groups = limits.groups[p]
            each = np.full((len(alive), groups.max() + 1), limits.goes)
        elif limits is not None and limits.rows is not None:
            each = limits.rows[p].reshape(-1, 1)
        gone = ~alive @ (groups[:, None] == np.arange(each.shape[1])).astype(int)
        allowed = np.maximum(each - gone, 0)
        return Rows(
            case.weight.name,
            hessian,
            np.asarray(dead),
            by_row(case.old[p]),
            alive,
            groups,
            allowed,
        )

    def first(self) -> np.ndarray:
        """Scores like the parameter: what removing each weight first would cost."""
        pairs = zip(self.rows, self.inverses, strict=True)
        return self._like_leaf([elimination.first_losses(*pair) for pair in pairs])

    def expect(self, mask: np.ndarray) -> None:
        """Set how far every row is likely to go, from the mask of the first scores."""
        for p, (rows, keep) in enumerate(zip(self.rows, self.case.weight.split(mask), strict=True)):
            going = (~by_row(keep) & rows.alive).sum(axis=1)
            self.steps[p] = np.minimum(going + going // 4 + _SPARE, rows.allowed.sum(axis=1))

    def advance(self) -> bool:
        """Eliminate in the rows that wait for it; were there any?"""
        for p, waiting in enumerate(self.waiting):
            (which,) = np.nonzero(waiting)
            if which.size:
                new = elimination.eliminate(
                    self.rows[p], self.inverses[p], which, self.steps[p][which]
                )
                for array, part in zip(self.found[p], new, strict=True):
                    array[which] = part
        return any(waiting.any() for waiting in self.waiting)

    def scores(self) -> np.ndarray:
        """Scores like the parameter."""
        return self._like_leaf([found.scores for found in self.found])

    def check(self, mask: np.ndarray) -> None:
        """Find the rows of which more is taken than was reached."""
        for p, keep in enumerate(self.case.weight.split(mask)):
            reached, rows = self.found[p].reached, self.rows[p]
            beyond = (~by_row(keep) & rows.alive & ~reached).any(axis=1)
            most = np.minimum(rows.allowed.sum(axis=1), rows.alive.sum(axis=1))
            self.waiting[p] = beyond & (self.steps[p] < most)
            further = np.minimum(2 * np.maximum(self.steps[p], _SPARE), most)
            self.steps[p] = np.where(self.waiting[p], further, self.steps[p])

    def _like_leaf(self, rows: list[np.ndarray]) -> np.ndarray:
        arrays = []
        for old, array in zip(self.case.old, rows, strict=True):
            b, i, o = old.shape
            arrays.append(array.reshape(b, o, i).swapaxes(1, 2))
        return self.case.weight.gather(arrays)
