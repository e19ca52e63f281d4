"""Schedules `step -> sparsity`, shaped as Optax's are: Python numbers in, Python numbers out,
traced steps in, arrays out. Each rises from `initial` at `begin` to exactly `final` at
`begin + steps`, and holds. One falls: `cosine_decay`, the fraction that `regrow` moves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


def cosine_decay(initial: float, steps: int) -> Schedule:
    """RigL's drop fraction: `f(t) = initial / 2 * (1 + cos(pi t / steps))`, and 0 after `steps`.

    Args:
      initial: the fraction at step 0, in [0, 1).
      steps: when it reaches 0, > 0.

    Returns:
      `step -> fraction`.

    Raises:
      ValueError: a fraction outside [0, 1), or `steps` not positive.

    References:
      Evci et al. 2020, Rigging the Lottery, section 3 (f_decay).

    Example:
      >>> round(cosine_decay(0.3, 100)(50), 6)
      0.15
    """
    _number(initial, "fraction")
    if isinstance(initial, bool) or not 0 <= initial < 1:
        raise ValueError(
            f"`fraction` is the share of the kept weights that is dropped, in [0, 1); got "
            f"{initial!r}. The papers take 0.3."
        )
    _number(steps, "number of steps")
    if not steps > 0:
        raise ValueError(f"The fraction decays over a positive number of steps, got {steps}.")

    def at(step: Any) -> Any:
        if is_traced(step):
            passed = jnp.clip(step / steps, 0.0, 1.0)
            return initial / 2 * (1 + jnp.cos(jnp.pi * passed))
        return initial / 2 * (1 + math.cos(math.pi * min(max(float(step) / steps, 0.0), 1.0)))

    return at


def in_turn(names: Sequence[str], final: float) -> dict[str, Callable[[Any], Any]]:
    """Layers one after another: own sparsities for `jp.select.lowest(in_turn(...))`.

    While the call's sparsity s rises from 0 to `final`, leaf i of L goes from 0 to `final` in the
    i-th of L equal parts: `s_i = final * clip(L s / final - i, 0, 1)`. So with a `linear` schedule
    each leaf has a turn of `steps / L` steps; mask updates at the ends of the turns alone
    (`every=steps // L`) prune each leaf at once.

    Args:
      names: the leaves in the order of their turns. Give other leaves an exception of their own,
        `in_turn(names, 0.9) | {"readout/kernel": 0.0}`; they follow the call's sparsity otherwise.
      final: sparsity at the end of its turn, in [0, 1); the call's sparsity must end there.

    Returns:
      A dict of leaf names to functions of the call's sparsity.

    Raises:
      ValueError: no name or one twice, `final` outside [0, 1).

    Example:
      >>> turns = in_turn(["first", "second"], 0.8)
      >>> [(turns["first"](s), turns["second"](s)) for s in (0.0, 0.2, 0.4, 0.8)]
      [(0.0, 0.0), (0.4, 0.0), (0.8, 0.0), (0.8, 0.8)]
    """
    check_sparsity(final, "final sparsity")
    names = list(names)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"Each leaf has one turn: name at least one, and none twice; got {names}.")

    def own(turn: int) -> Callable[[Any], Any]:
        def at(sparsity: Any) -> Any:
            passed = sparsity * (len(names) / max(final, 1e-30)) - turn
            if is_traced(sparsity):
                return final * jnp.clip(jnp.round(passed, 6), 0.0, 1.0)
            return final * min(max(round(float(passed), 6), 0.0), 1.0)

        return at

    return {name: own(turn) for turn, name in enumerate(names)}


def _number(value: Any, what: str) -> None:
    """Raise TypeError unless it is a number, and not one written in a string."""
    try:
        number = not isinstance(value, str | bytes) and float(value) is not None
    except (TypeError, ValueError):
        number = False
    if not number:
        raise TypeError(f"The {what} is a number, got {value!r}.")


def _rise(
    final: float, steps: int, begin: int, initial: float, shape: Callable[[Any], Any]
) -> Schedule:
    check_sparsity(final, "final sparsity")
    check_sparsity(initial, "initial sparsity")
    _number(steps, "number of steps")
    _number(begin, "step that a schedule begins at")
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
