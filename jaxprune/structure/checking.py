"""`check_shrunk`: the masked model and the shrunk one, run side by side."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune.coupling.groups import Coupling
from jaxprune.coupling.models import shrunk_apply, source_of
from jaxprune.structure.dead import dead_units
from jaxprune.structure.shrinking import shrink
from jaxprune.structure.slices import numbers
from jaxprune.types import Mask, Params, PyTree


class Check(NamedTuple):
    """How far the shrunk model is from the masked one.

    Attributes:
      largest: the largest absolute difference of any output.
      relative: the same, relative to the largest output.
      original: `relative` for the ORIGINAL code run on the shrunk variables; None if it cannot.
      refusal: why it cannot: its first error, such as a width written into the code.
      stuck: units that emit a constant nothing can take over and were kept, and why.
    """

    largest: float
    relative: float
    original: float | None
    refusal: str
    stuck: dict[str, str]

    def __str__(self) -> str:
        lines = [f"shrunk against masked: {self.largest:.3g} ({self.relative:.3g} relative)"]
        if self.original is None:
            lines.append(f"the original code does not run on the shrunk variables: {self.refusal}")
            lines.append("run them with `shrunk_apply`")
        elif self.original > max(1e-4, 10 * self.relative):
            lines.append(
                f"the original code computes something else on the shrunk variables "
                f"({self.original:.3g} relative): it reads a width. Run them with `shrunk_apply`"
            )
        else:
            lines.append(f"the original code on the shrunk variables: {self.original:.3g} relative")
        lines += [f"kept, masked: {name}: {why}" for name, why in self.stuck.items()]
        return "\n".join(lines)


def check_shrunk(variables: Params, mask: Mask, coupling: Coupling, *inputs: PyTree) -> Check:
    """Run the masked model and the shrunk one on the same inputs, at the highest precision.

    Args:
      variables, mask, coupling: as for `shrink`.
      *inputs: arrays.

    Returns:
      A `Check`; print it.

    Raises:
      ValueError: as `shrink`; or outputs that are not finite.

    Example:
      >>> from jaxprune.coupling import couple
      >>> apply = lambda w, x: jax.nn.relu(x @ w[0]) @ w[1]
      >>> w = [jnp.ones((3, 4)), jnp.ones((4, 2))]
      >>> coupling = couple(apply, w, jnp.ones((1, 3)))
      >>> mask = coupling.mask({"0": np.array([True, False, True, False])}, w)
      >>> check_shrunk(w, mask, coupling, jnp.ones((1, 3))).largest
      0.0
    """
    apply = source_of(coupling).apply
    dead = dead_units(variables, mask, coupling)
    small = shrink(variables, mask, coupling)
    with jax.default_matmul_precision("highest"):
        masked = apply(trees.apply_mask(variables, mask), *inputs)
        shrunk = shrunk_apply(coupling, dead.kept)(small, *inputs)
        original, refusal = None, ""
        try:
            outputs = apply(small, *inputs)
        except Exception as error:  # the user's code may raise anything at widths it did not expect
            refusal = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        else:
            shapes = [jnp.shape(x) for x in jax.tree.leaves(outputs)]
            if shapes == [jnp.shape(x) for x in jax.tree.leaves(masked)]:
                original = _apart(masked, outputs)[1]
            else:
                refusal = f"its outputs have the shapes {shapes}"
    largest, relative = _apart(masked, shrunk)
    return Check(largest, relative, original, refusal, dead.stuck)


def _apart(a: Any, b: Any) -> tuple[float, float]:
    """The largest difference, and relative to the largest entry of `a`."""
    largest, scale = 0.0, 0.0
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(jnp.result_type(x), jnp.number) and np.size(x):
            x, y = numbers(x), numbers(y)
            if not np.isfinite(x).all():
                raise ValueError(
                    f"The masked model's outputs are not finite at {int((~np.isfinite(x)).sum())} "
                    f"of {x.size} entries: nothing can be compared. Check the variables and inputs."
                )
            largest = max(largest, float(np.abs(x - y).max()))
            scale = max(scale, float(np.abs(x).max()))
    return largest, largest / scale if scale else largest
