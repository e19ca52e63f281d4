"""From `(apply, loss)` or a plain `loss(params, batch)` to checked losses over a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.types import Apply, Batch, Loss, Params, PyTree

MeanLoss = Callable[[Params, Batch], jax.Array]


def batch_size(batch: Batch) -> int:
    """N, the leading axis that all leaves of a batch share.

    Raises:
      ValueError: there is no batch, it is empty, or its leaves disagree; the leaf is named.
    """
    leaves = trees.named_leaves(batch)
    if not leaves:
        raise ValueError(
            "This saliency needs data, and got no batch. Pass `batch=(inputs, targets)`; inside an "
            "Optax chain that is `tx.update(grads, state, params, batch=batch)`."
        )
    first, size = leaves[0][0], None
    for name, leaf in leaves:
        if np.ndim(leaf) == 0:
            raise ValueError(f"Batch {trees.label(name)} is a scalar; it needs a leading axis N.")
        if size is None:
            first, size = name, np.shape(leaf)[0]
        if np.shape(leaf)[0] != size:
            raise ValueError(
                f"Batch leaves disagree about the number of examples: '{first}' has {size}, "
                f"'{name}' has {np.shape(leaf)[0]}. All share a leading axis N."
            )
    if not size:
        raise ValueError("The batch is empty: N = 0 examples. Pass at least one.")
    return size


def split_batch(batch: Batch) -> tuple[PyTree, PyTree]:
    """`(inputs, targets)`, with the examples counted and checked.

    Raises:
      ValueError: the batch is not such a pair.
    """
    batch_size(batch)
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(
            f"A batch is the pair `(inputs, targets)`, got {type(batch).__name__}. Wrap yours, or "
            "give the saliency a plain `loss(params, batch)`."
        )
    return batch[0], batch[1]


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise unless the named argument is an integer, and not less.

    Raises:
      ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"`{name}` is how many are taken, an integer >= {least}; got {value!r}.")


def _check_alone(value: Any, what: str) -> None:
    """Raise unless a loss returned one array or number."""
    if not jax.tree_util.all_leaves([value]):
        raise ValueError(
            f"{what} must return the loss alone, got a {type(value).__name__}. Leave out what else "
            "it returns (`has_aux`), such as metrics or new statistics."
        )


def check_losses(losses: Any, n: int) -> jax.Array:
    """Per-example losses as they should be: real numbers of shape [N].

    Raises:
      ValueError: any other shape.
    """
    _check_alone(losses, "`loss(outputs, targets)`")
    if np.shape(losses) != (n,):
        raise ValueError(
            f"`loss(outputs, targets)` must return one loss per example, shape ({n},), got "
            f"{np.shape(losses)}. Drop the mean over examples; take it over tokens inside each."
        )
    return losses


def example_losses(apply: Apply, loss: Loss) -> Callable[[Params, Batch], jax.Array]:
    """`(params, batch) -> [N]`, checked."""

    def losses(params: Params, batch: Batch) -> jax.Array:
        inputs, targets = split_batch(batch)
        return check_losses(loss(apply(params, inputs), targets), batch_size(batch))

    return losses


def mean_loss(apply: Any, loss: Loss | None = None) -> MeanLoss:
    """`(params, batch) -> scalar`, the mean over examples.

    Args:
      apply: the model; or, without `loss`, a plain `loss(params, batch) -> scalar` mean.
      loss: per-example losses, or None.
    """
    if loss is not None:
        losses = example_losses(apply, loss)
        return lambda params, batch: jnp.mean(losses(params, batch))

    def checked(params: Params, batch: Batch) -> jax.Array:
        batch_size(batch)
        value = apply(params, batch)
        _check_alone(value, "A plain `loss(params, batch)`")
        if np.shape(value) != ():
            raise ValueError(
                f"A plain `loss(params, batch)` must return a scalar, got shape {np.shape(value)}. "
                "Return the mean over examples, or pass `(apply, loss)`."
            )
        return value

    return checked


def check_outputs(outputs: PyTree) -> None:
    """Raise unless every output has a row an example and is floating-point.

    Raises:
      ValueError: names the first that has or is not.
    """
    leaves = trees.named_leaves(outputs)
    n = next((np.shape(leaf)[0] for _, leaf in leaves if np.ndim(leaf)), None)
    for name, leaf in leaves:
        if np.shape(leaf)[:1] != (n,) or not trees.is_float(leaf):
            raise ValueError(
                f"Every output of `apply` has a row an example and is real floating-point; "
                f"{trees.label(name)} of them has shape {np.shape(leaf)} and dtype "
                f"{trees.dtype_of(leaf)}. Let `apply` return what the loss reads, without new "
                "statistics, predictions or a mean."
            )


def output_slopes(loss: Loss, outputs: PyTree, targets: PyTree) -> PyTree:
    """The gradient of each example's loss in its outputs, [N, ...]."""
    check_outputs(outputs)
    n = jax.tree.leaves(outputs)[0].shape[0]
    return jax.grad(lambda y: jnp.sum(check_losses(loss(y, targets), n)))(outputs)


def check_alone(loss: Loss, outputs: PyTree, targets: PyTree) -> None:
    """Raise if an example's loss is certainly another one beside other examples.

    The loss of the first example is taken again with the first in the place of all.

    Raises:
      ValueError: it is.
    """
    again = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], jnp.shape(x)), (outputs, targets))
    n = jax.tree.leaves(outputs)[0].shape[0]
    losses = [np.asarray(check_losses(loss(*of), n), float) for of in ((outputs, targets), again)]
    (before, *_), (after, *_) = losses
    most = max(64 * float(jnp.finfo(trees.dtype_of(jax.tree.leaves(outputs)[0])).eps), 1e-3)
    far = abs(before - after) > most * (abs(before) + np.mean(np.abs(losses[0]))) + 1e-6
    if np.all(np.isfinite(losses)) and far:
        raise ValueError(
            f"The loss of an example depends on the others of its batch: that of the first is "
            f"{before:.6g}, and {after:.6g} where all examples are the first. Its curvature or "
            "Fisher is no mean over examples. `jp.curvature.hvp` and `hutchinson_diagonal` take "
            "such a loss, as a plain `loss(params, batch)`."
        )


def by_leaves(params: Params) -> tuple[list[Any], Callable[[list[Any]], Params], list[bool]]:
    """The real floating leaves, a function that puts such leaves back, and their flags.

    Statistics that are floating-point are leaves too; integers, flags and PRNG keys are not.

    Raises:
      TypeError: a complex leaf, whose derivative needs a convention we do not choose for you.
    """
    for name, leaf in trees.named_leaves(params):
        if jnp.issubdtype(trees.dtype_of(leaf), jnp.complexfloating):
            raise TypeError(
                f"{trees.label(name)} is {trees.dtype_of(leaf)}: derivatives are taken for real "
                "leaves only. Split it into real and imaginary parts, or score by magnitude."
            )
    flags = [trees.is_float(leaf) for leaf in jax.tree.leaves(params)]
    return (
        [jnp.asarray(x) for x in trees.select_leaves(params, flags)],
        lambda new: trees.replace_leaves(params, flags, new),
        flags,
    )


def gradient(objective: MeanLoss, params: Params, batch: Batch) -> PyTree:
    """The gradient in every real floating leaf, in that leaf's dtype; zeros for other leaves."""
    leaves, merge, flags = by_leaves(params)
    grads = jax.grad(lambda some: objective(merge(some), batch))(leaves)
    return filled(params, flags, grads)


def filled(params: Params, flags: list[bool], new: list[Any]) -> PyTree:
    """New arrays for the flagged leaves, each beside its leaf; zeros for the others."""
    leaves = trees.select_leaves(params, flags)
    placed = [trees.beside(found, leaf) for found, leaf in zip(new, leaves, strict=True)]
    return trees.replace_leaves(params, flags, placed, zeros)


def zeros(leaf: Any) -> jax.Array:
    """Zeros of a leaf's shape in score precision."""
    return jnp.zeros(np.shape(leaf), trees.score_dtype(leaf))


def wide(leaf: Any) -> jax.Array:
    """A weight in score precision; zeros for a leaf that is not real floating-point."""
    if not trees.is_float(leaf):
        return zeros(leaf)
    return jnp.asarray(leaf).astype(trees.score_dtype(leaf))
