"""Schedules `step -> sparsity`, shaped as Optax's are: Python numbers in, Python numbers out,
traced steps in, arrays out. Each rises from `initial` at `begin` to exactly `final` at
`begin + steps`, and holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxprune.trees import check_sparsity, is_traced
from jaxprune.types import Schedule


def constant(final: float) -> Schedule:
    """The same sparsity at every step.

    Example:
      >>> constant(0.9)(17)
      0.9
    """
    check_sparsity(final)
    return lambda step: final if not is_traced(step) else jnp.full(jnp.shape(step), final)


def linear(final: float, steps: int, *, begin: int = 0, initial: float = 0.0) -> Schedule:
    """`s = initial + (final - initial) x`, x the fraction of `steps` passed since `begin`.

    Args:
      final: sparsity at the end, in [0, 1).
      steps: length of the rise in steps, > 0.
      begin: the step it starts at; before it the sparsity is `initial`.
      initial: sparsity at the start, in [0, 1).

    Raises:
      ValueError: a sparsity outside [0, 1), a start above the end, or `steps` not positive.

    Example:
      >>> linear(0.8, 100)(50)
      0.4
    """
    return _rise(final, steps, begin, initial, lambda x: x)


def cubic(final: float, steps: int, *, begin: int = 0, initial: float = 0.0) -> Schedule:
    """The gradual schedule of Zhu and Gupta: `s = final + (initial - final) (1 - x)^3`.

    Args:
      final: sparsity at the end, in [0, 1).
      steps: length of the rise in steps (n times Delta t of the paper), > 0.
      begin: the step it starts at; before it the sparsity is `initial`.
      initial: sparsity at the start, in [0, 1).

    Raises:
      ValueError: a sparsity outside [0, 1), a start above the end, or `steps` not positive.

    References:
      Zhu and Gupta 2017, To prune, or not to prune, equation 1.

    Example:
      >>> round(cubic(0.9, 100)(50), 6)
      0.7875
    """
    return _rise(final, steps, begin, initial, lambda x: 1 - (1 - x) ** 3)


def exponential(final: float, steps: int, *, begin: int = 0, initial: float = 0.0) -> Schedule:
    """The density decays geometrically: `1 - s = (1 - initial) ((1 - final)/(1 - initial))^x`.

    Every step removes the same share of what is left, as iterative pruning by 20 % a round does.

    Args:
      final: sparsity at the end, in [0, 1).
      steps: length of the rise in steps, > 0.
      begin: the step it starts at; before it the sparsity is `initial`.
      initial: sparsity at the start, in [0, 1).

    Raises:
      ValueError: a sparsity outside [0, 1), a start above the end, or `steps` not positive.

    References:
      Frankle and Carbin 2019, The Lottery Ticket Hypothesis, section 2 (p^(1/n) a round).

    Example:
      >>> round(exponential(0.75, 2)(1), 6)
      0.5
    """
    start, end = 1 - check_sparsity(initial), 1 - check_sparsity(final)
    if start == end:
        return _rise(final, steps, begin, initial, lambda x: x)
    share = lambda x: (start - start * (end / start) ** x) / (start - end)
    return _rise(final, steps, begin, initial, share)


def _rise(
    final: float, steps: int, begin: int, initial: float, shape: Callable[[Any], Any]
) -> Schedule:
    check_sparsity(final, "final sparsity")
    check_sparsity(initial, "initial sparsity")
    if not steps > 0:
        raise ValueError(f"A schedule rises over a positive number of steps, got steps={steps}.")
    if initial > final:
        raise ValueError(
            f"A schedule rises, and this one starts at {initial}, above its end {final}. Pass "
            "`initial` <= `final`: pruned weights do not come back."
        )

    # Both ends are exact, and rounding takes no step between them below one or above the other.
    def at(step: Any) -> Any:
        if is_traced(step):
            passed = jnp.clip((step - begin) / steps, 0.0, 1.0)
            rise = jnp.clip(initial + (final - initial) * shape(passed), initial, final)
            return jnp.where(passed == 0, initial, jnp.where(passed == 1, final, rise))
        x = min(max((float(step) - begin) / steps, 0.0), 1.0)
        rise = min(max(initial + (final - initial) * shape(x), initial), final)
        return initial if x == 0 else final if x == 1 else rise

    return at
