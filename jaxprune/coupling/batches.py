"""Which axis of a value runs over the examples of a batch, read off two batch sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import numpy as np

from jaxprune.coupling.groups import Coupling
from jaxprune.jaxpr.equations import Constant
from jaxprune.jaxpr.labels import Frame
from jaxprune.jaxpr.reading import Reading, abstract
from jaxprune.types import PyTree


def doubled(inputs: PyTree, examples: int) -> PyTree:
    """The shapes of inputs with twice as many examples.

    Raises:
      ValueError: no input has an axis of that length in front.
    """
    leaves = jax.tree.leaves(inputs)
    if not any(np.shape(x)[:1] == (examples,) for x in leaves):
        raise ValueError(
            f"The gates are those of {examples} examples, the inputs have the shapes "
            f"{[np.shape(x) for x in leaves]}. Make gates with `ones(coupling, examples=N)`."
        )

    def twice(x: PyTree) -> PyTree:
        of_examples = x.shape[:1] == (examples,)
        shape = (2 * examples, *x.shape[1:]) if of_examples else x.shape
        return jax.ShapeDtypeStruct(shape, x.dtype)

    return jax.tree.map(twice, abstract(inputs))


def twice(read: Callable[..., Reading], inputs: PyTree, examples: int) -> Reading:
    """A reading of the model with twice as many examples.

    Raises:
      ValueError: no input has an axis of that length in front, or the model does not run so.
    """
    more = doubled(inputs, examples)
    try:
        return read(more)
    except Exception as error:  # the user's code may raise anything at sizes it did not expect
        shapes = [np.shape(x) for x in jax.tree.leaves(inputs)]
        raise ValueError(
            f"With gates of {examples} examples the model is also read with {2 * examples}, and "
            f"fails: {type(error).__name__}: {str(error).strip().splitlines()[0]}. Every input "
            f"with {examples} in front is taken to hold examples; the inputs have the shapes "
            f"{shapes}. Let one that holds none have another length, or close over it."
        ) from error


def example_axes(
    reading: Reading, twice: Reading, examples: int, coupling: Coupling, units: np.ndarray
) -> Callable[[Frame, int | Constant, np.ndarray], int]:
    """A function from a frame, an operand and the classes of one of its axes to the example axis.

    Args:
      reading, twice: of the model, with the batch's examples and with twice as many.
      examples: of the batch.
      coupling, units: to name the group where there is no such axis.
    """
    wide = {id(frame): other for frame, other in _pairs(reading.frame, twice.frame)}

    def axis(frame: Frame, operand: int | Constant, roots: np.ndarray) -> int:
        found: list[int] = []
        other = wide.get(id(frame))
        if not isinstance(operand, Constant) and other is not None:
            few, many = frame.program.shapes[operand].shape, other.program.shapes[operand].shape
            pairs = enumerate(zip(few, many, strict=True))
            found = [a for a, (n, m) in pairs if (n, m) == (examples, 2 * examples)]
        if len(found) != 1:
            raise ValueError(
                f"The units of {groups_of(coupling, units[roots])} are read where examples are "
                "not an axis of their own (they are merged with another axis, or looped over), so "
                "they have no gates of single examples. Leave these groups out, or score them "
                "with `jp.saliency.unit_fisher`."
            )
        return found[0]

    return axis


def groups_of(coupling: Coupling, units: np.ndarray) -> list[str]:
    """The names of the groups that some units belong to."""
    return [name for name, group in coupling.groups.items() if np.isin(group.ids, units).any()]


def _pairs(frame: Frame, other: Frame) -> Iterator[tuple[Frame, Frame]]:
    """The frames of two readings of one program, as far as they are alike."""
    if len(frame.program.equations) != len(other.program.equations):
        return
    yield frame, other
    for index, inner in frame.inner.items():
        for a, b in zip(inner, other.inner.get(index, []), strict=False):
            yield from _pairs(a, b)
