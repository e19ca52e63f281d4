"""Least-squares reconstruction of what the next layers receive, from the units that are kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.coupling.groups import Coupling, Kept
from jaxprune.jaxpr import equations
from jaxprune.jaxpr.equations import Equation
from jaxprune.structure.ways import Use, Wiring, read_by, wiring
from jaxprune.types import Params, PyTree

_ENTRIES = 1 << 23  # of the regressors held in float64 at one time


class Reconstructed(NamedTuple):
    """What reconstruction did; errors are |reconstructed - dense|^2 / |dense|^2.

    Attributes:
      variables: as whole as before, with other weights for the kept units; for `shrink_units`.
      before: by leaf, the error of what it gives with its old weights and the kept units alone.
      after: the same with its new weights.
      skipped: by group, why something that reads it keeps its old weights.
    """

    variables: Params
    before: dict[str, float]
    after: dict[str, float]
    skipped: dict[str, str]


def reconstruct(
    variables: Params, kept: Kept, coupling: Coupling, *inputs: PyTree, ridge: float = 1e-4
) -> Reconstructed:
    """New outgoing weights for the kept units: least squares on what the next layer receives.

    For every product that reads units of which some are dropped,

        min over W'  |X_k W' - Y|^2 + ridge mean(diag X_k' X_k) |W' - W_k|^2

    Y [rows, outputs] is what the dense model's product gives, X_k [rows, regressors] the inputs
    that are left, as they come out of the PRUNED model with the products before already
    reconstructed, so that errors do not pile up. Rows are examples and positions; a convolution's
    regressors are all taps of all kept channels. The penalty draws towards the old weights: the
    error is never above that of plain removal, for any ridge. Biases stay as they are.

    A leaf that several products read (shared weights) is solved for once, for all of them, with
    the dense model's inputs. What is read inside a loop, a branch or a custom derivative, or by
    something else than a parameter, keeps its weights and is listed in `skipped`.

    Args:
      variables: what was coupled; concrete arrays.
      kept: `{group: bool[units]}`, True = kept.
      coupling: from `couple`.
      *inputs: a calibration batch, as the model takes it. All activations of one call are held.
      ridge: >= 0; with 0 the smallest change of all that fit best.

    Returns:
      A `Reconstructed`. Solved in float64 on the host, from activations in the model's dtype at
      the highest matmul precision.

    Raises:
      ValueError: nothing can be reconstructed (why, by group); a negative ridge; inputs of other
        shapes than the model takes; `kept` of another model.

    References:
      He, Zhang, Sun 2017, Channel Pruning for Accelerating Very Deep Neural Networks, which also
      takes the pruned model's inputs. (Luo et al. 2017, ThiNet, rescale whole channels only.)

    Example:
      >>> from jaxprune.coupling import couple
      >>> apply = lambda w, x: (x @ w[0]) @ w[1]
      >>> w = [jnp.array([[1.0, 1.0]]), jnp.array([[1.0], [2.0]])]
      >>> coupling = couple(apply, w, jnp.ones((1, 1)))
      >>> keep = {"0": np.array([True, False])}
      >>> found = reconstruct(w, keep, coupling, jnp.ones((3, 1)), ridge=0)
      >>> found.variables[1].tolist(), round(found.before["1"], 3), round(found.after["1"], 3)
      ([[3.0], [2.0]], 0.444, 0.0)
    """
    if not ridge >= 0:
        raise ValueError(f"`ridge` is a number >= 0, got {ridge!r}.")
    coupling.check(variables)
    flags = coupling.vector(kept)
    wired = wiring(coupling, inputs)
    uses, skipped = _readers(wired, flags)
    dropped = sorted(name for name, g in coupling.groups.items() if not flags[g.ids].all())
    if dropped and not uses:
        raise ValueError(
            "Nothing that reads the dropped units can be reconstructed: "
            + "; ".join(f"{name!r}: {why}" for name, why in skipped.items())
            + ". Leave these groups out."
        )
    run = _Run(wired, flags, ridge, uses)
    with jax.default_matmul_precision("highest"):
        changes = run(jax.tree.leaves(variables), coupling.mask(kept, variables), inputs)
    leaves, structure = jax.tree.flatten(variables)
    for number, change in changes.items():
        leaf = leaves[number]
        leaves[number] = (leaf + uses[number][0].back(change, np.shape(leaf))).astype(leaf.dtype)
    result = jax.tree.unflatten(structure, leaves)
    return Reconstructed(result, run.before, run.after, skipped)


def _readers(wired: Wiring, flags: np.ndarray) -> tuple[dict[int, list[Use]], dict[str, str]]:
    """The leaves to solve for, with all their uses, and why others are not."""
    found: dict[int, list[Use]] = {}
    skipped: dict[str, list[str]] = {}
    for name, group in wired.coupling.groups.items():
        if flags[group.ids].all():
            continue
        for event in wired.events(group):
            ids = wired.ids(event.labels)
            use = read_by(wired, event)
            if flags[ids].all():
                continue
            if isinstance(use, str):
                skipped.setdefault(name, []).append(use)
                continue
            why = _unlike(wired, use)
            if why:
                skipped.setdefault(name, []).append(why)
            else:
                found[use.leaf] = wired.uses[use.leaf]
    return found, {name: "; ".join(dict.fromkeys(why)) for name, why in skipped.items()}


def _unlike(wired: Wiring, use: Use) -> str:
    """Why the uses of a leaf are not all one and the same product; empty if they are."""
    leaf = wired.coupling.names[use.leaf]
    mine = wired.equation(use.at)
    if mine.name == "conv_general_dilated" and use.operand == 0:
        return f"the leaf {leaf!r} is the image of a convolution at {equations.line_of(mine)}"
    if any(np.issubdtype(dtype, np.complexfloating) for dtype in wired.frame.dtypes(mine)):
        return f"the leaf {leaf!r} or what it reads is complex at {equations.line_of(mine)}"
    for other in wired.uses[use.leaf]:
        if other.at < 0:
            return f"the leaf {leaf!r} is an output of the model"
        theirs = wired.equation(other.at)
        line = equations.line_of(theirs)
        moves = lambda use: [(m.name, str(m.params)) for m in use.moves]
        if (theirs.name, other.operand) != (mine.name, use.operand) or moves(other) != moves(use):
            return f"the leaf {leaf!r} is used in another way at {line}"
        a, b = (e.params["dimension_numbers"] for e in (mine, theirs))
        if a != b:
            return f"the leaf {leaf!r} is contracted in another way at {line}"
        if wired.frame.value(theirs.operands[1 - other.operand]).varies is False:
            return f"the leaf {leaf!r} meets another parameter at {line}"
    return ""


class _Run:
    """The dense and the pruned model, evaluated side by side.

    Attributes:
      before, after: errors by leaf.
    """

    def __init__(
        self, wired: Wiring, flags: np.ndarray, ridge: float, uses: dict[int, list[Use]]
    ) -> None:
        self.wired, self.flags, self.ridge, self.uses = wired, flags, ridge, uses
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}

    def __call__(self, leaves: list[Any], mask: Any, inputs: Any) -> dict[int, Any]:
        """By leaf, the change of the operand that it is."""
        program = self.wired.frame.program
        rest = jax.tree.leaves(inputs)
        at = {use.at: use for uses in self.uses.values() for use in uses}
        dense: dict[int, tuple[list[Any], Any]] = {}
        changes: dict[int, Any] = {}

        def watch(index: int, equation: Equation, operands: list[Any]) -> list[Any] | None:
            if index not in at:
                return None
            [result] = equations.apply(equation, operands)
            alone = len(self.uses[at[index].leaf]) == 1
            dense[index] = ([] if alone else operands, result)
            return [result]

        def solve(index: int, equation: Equation, operands: list[Any]) -> list[Any] | None:
            if index not in at:
                return None
            use = at[index]
            operands = list(operands)
            if use.leaf not in changes:
                changes[use.leaf] = self._solve(use.leaf, operands, dense)
            weights = operands[use.operand]
            operands[use.operand] = (weights + changes[use.leaf]).astype(weights.dtype)
            return equations.apply(equation, operands)

        equations.evaluate(program, [*leaves, *rest], watch)
        masked = [
            leaf if keep.all() else jnp.where(keep, leaf, jnp.zeros((), leaf.dtype))
            for leaf, keep in zip(leaves, jax.tree.leaves(mask), strict=True)
        ]
        equations.evaluate(program, [*masked, *rest], solve)
        return changes

    def _solve(self, leaf: int, operands: list[Any], dense: dict[int, Any]) -> Any:
        """The change of the operand that a leaf is."""
        uses = self.uses[leaf]
        products = []
        for use in uses:
            inputs, target = dense[use.at]
            x = (inputs or operands)[1 - use.operand]
            products.append(_Product(self.wired, use, self.flags, x, target))
        weights = operands[uses[0].operand]
        old = products[0].regressors(np.asarray(weights).astype(np.float64))
        change = np.zeros_like(old)
        totals = np.zeros(3)  # |dense|^2, |error before|^2, |error after|^2
        for batch in range(len(old)):
            rows, columns = products[0].kept(batch)
            if not rows.size or not columns.size:
                continue
            gram = np.zeros((len(rows), len(rows)))
            cross = np.zeros((len(rows), len(columns)))
            sums = np.zeros(2)
            for product in products:
                for x, y in product.blocks(batch):
                    x, y = x[:, rows], y[:, columns]
                    missing = y - x @ old[batch][np.ix_(rows, columns)]
                    gram += x.T @ x
                    cross += x.T @ missing
                    sums += (y**2).sum(), (missing**2).sum()
            found = _least_squares(gram, cross, self.ridge)
            change[batch][np.ix_(rows, columns)] = found
            fitted = 2 * (found * cross).sum() - (found * (gram @ found)).sum()
            totals += sums[0], sums[1], max(sums[1] - fitted, 0.0)
        name = self.wired.coupling.names[leaf]
        self.before[name], self.after[name] = (totals[1:] / max(totals[0], 1e-300)).tolist()
        wide = trees.score_dtype(weights)
        return jnp.asarray(products[0].operand(change), wide)


def _least_squares(gram: np.ndarray, cross: np.ndarray, ridge: float) -> np.ndarray:
    """`(G + ridge mean(diag G) I)^-1 C`, or the smallest solution where there is no ridge."""
    more = ridge * float(np.trace(gram)) / len(gram)
    if more > 0:
        return np.linalg.solve(gram + more * np.eye(len(gram)), cross)
    return np.linalg.pinv(gram, rcond=len(gram) * 1e-14, hermitian=True) @ cross


class _Product:
    """A product as `[batch, rows, regressors] @ [batch, regressors, outputs]`."""

    def __init__(self, wired: Wiring, use: Use, flags: np.ndarray, x: Any, target: Any) -> None:
        self.equation = wired.equation(use.at)
        self.x, self.target = x, target
        self.side, p = use.operand, self.equation.params
        value = wired.frame.value(self.equation.operands[use.operand])
        self.shape = tuple(len(labels) for labels in value.labels)
        self.flags = [flags[wired.ids(labels)] for labels in value.labels]
        if self.equation.name == "dot_general":
            contracted, batched = p["dimension_numbers"]
            self.ended, self.shared = tuple(contracted[self.side]), tuple(batched[self.side])
        else:
            channels, *space = p["dimension_numbers"].rhs_spec[1:]
            self.ended, self.shared = (channels, *space), ()
        busy = (*self.ended, *self.shared)
        self.free = tuple(axis for axis in range(len(self.shape)) if axis not in busy)

    def regressors(self, weights: np.ndarray) -> np.ndarray:
        """An operand as [batch, regressors, outputs]."""
        moved = weights.transpose(*self.shared, *self.ended, *self.free)
        return moved.reshape(self._sizes())

    def operand(self, weights: np.ndarray) -> np.ndarray:
        """The way back."""
        order = (*self.shared, *self.ended, *self.free)
        moved = weights.reshape([self.shape[axis] for axis in order])
        return moved.transpose(np.argsort(order))

    def _sizes(self) -> tuple[int, int, int]:
        size = lambda axes: math.prod(self.shape[axis] for axis in axes)
        return size(self.shared), size(self.ended), size(self.free)

    def kept(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Which regressors and which outputs are left."""
        keep = np.ones(self.shape, bool)
        for axis, flags in enumerate(self.flags):
            keep &= flags.reshape([-1 if a == axis else 1 for a in range(keep.ndim)])
        left = self.regressors(keep)[batch]
        return np.flatnonzero(left.any(axis=1)), np.flatnonzero(left.any(axis=0))

    def blocks(self, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(regressors, what the product gives), some rows at a time, float64."""
        if self.equation.name == "dot_general":
            yield from self._dots(batch)
        else:
            yield from self._patches()

    def _dots(self, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        batches, inputs, outputs = self._sizes()
        contracted, batched = self.equation.params["dimension_numbers"]
        ended, shared = contracted[1 - self.side], batched[1 - self.side]
        x, y = np.asarray(self.x), np.asarray(self.target)
        free = [axis for axis in range(x.ndim) if axis not in (*ended, *shared)]
        x = x.transpose(*shared, *free, *ended).reshape(batches, -1, inputs)[batch]
        y = y.reshape(batches, -1, outputs) if self.side == 1 else y.reshape(batches, outputs, -1)
        y = y[batch] if self.side == 1 else y[batch].T
        step = max(_ENTRIES // max(inputs, 1), 1)
        for start in range(0, len(x), step):
            rows = slice(start, start + step)
            yield x[rows].astype(np.float64), y[rows].astype(np.float64)

    def _patches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        p, numbers = self.equation.params, self.equation.params["dimension_numbers"]
        x = jnp.transpose(self.x, numbers.lhs_spec)
        y = np.transpose(np.asarray(self.target), numbers.out_spec)
        window = [self.shape[axis] for axis in numbers.rhs_spec[2:]]
        per = math.prod(window) * x.shape[1] * math.prod(y.shape[2:])
        step = max(_ENTRIES // max(per, 1), 1)
        for start in range(0, len(x), step):
            patches = jax.lax.conv_general_dilated_patches(
                x[start : start + step],
                window,
                p["window_strides"],
                p["padding"],
                p["lhs_dilation"],
                p["rhs_dilation"],
                precision=jax.lax.Precision.HIGHEST,
            )
            rows = np.moveaxis(np.asarray(patches), 1, -1).reshape(-1, patches.shape[1])
            got = np.moveaxis(y[start : start + step], 1, -1).reshape(len(rows), -1)
            yield rows.astype(np.float64), got.astype(np.float64)
