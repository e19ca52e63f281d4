"""Means over seeds, their spread, and differences paired over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class MeanAndSpread(NamedTuple):
    """A mean over seeds.

    Attributes:
      mean: arithmetic mean.
      sd: sample standard deviation (divisor n - 1), None for n = 1.
      n: number of values.
    """

    mean: float
    sd: float | None
    n: int


class PairedDifference(NamedTuple):
    """A mean difference and its confidence interval.

    Attributes:
      mean: mean of `a[i] - b[i]`.
      low: lower end of the interval.
      high: upper end.
    """

    mean: float
    low: float
    high: float


def mean_and_spread(values: Sequence[float]) -> MeanAndSpread:
    """Mean, sample standard deviation `sqrt(sum((x - mean)^2) / (n - 1))`, and n.

    Raises:
      ValueError: no values, or one that is NaN or infinite (a diverged run is not a number to
        average; report it).

    Example:
      >>> mean_and_spread([1.0, 2.0, 3.0])
      MeanAndSpread(mean=2.0, sd=1.0, n=3)
      >>> mean_and_spread([1.0]).sd is None
      True
    """
    x = _finite(values, "values")
    sd = float(x.std(ddof=1)) if x.size > 1 else None
    return MeanAndSpread(float(x.mean()), sd, x.size)


def paired_difference(
    a: Sequence[float], b: Sequence[float], *, confidence: float = 0.95
) -> PairedDifference:
    """Mean of `a - b` over seeds with Student's interval, paired by position.

    `mean +- t * sd / sqrt(n)`, sd of the differences, t the `(1 + confidence) / 2` quantile of
    Student's distribution with n - 1 degrees of freedom.

    Args:
      a: one value a seed.
      b: one value for each of the SAME seeds, in the same order.
      confidence: of the two-sided interval, in (0, 1).

    Raises:
      ValueError: different lengths, fewer than 2 pairs, NaN or infinite values.

    Example:
      >>> mean, low, high = paired_difference([0.93, 0.95, 0.94], [0.90, 0.93, 0.92])
      >>> round(mean, 4), round(low, 4), round(high, 4)
      (0.0233, 0.009, 0.0377)
    """
    x, y = _finite(a, "a"), _finite(b, "b")
    if x.size != y.size or x.size < 2:
        raise ValueError(
            f"A paired difference needs at least 2 seeds and as many values on both sides, got "
            f"{x.size} and {y.size}. Give both methods' values for the same seeds."
        )
    mean, sd, n = mean_and_spread(x - y)
    half = student_quantile((1 + confidence) / 2, n - 1) * (sd or 0.0) / math.sqrt(n)
    return PairedDifference(mean, mean - half, mean + half)


def student_quantile(probability: float, degrees: int) -> float:
    """The t with `P(T <= t) = probability`, T of Student's distribution; 1/2 <= probability < 1.

    Found by bisection of the finite series for whole degrees of freedom (Abramowitz and Stegun
    1964, 26.7.3 and 26.7.4), to the last bits of a double.

    Example:
      >>> round(student_quantile(0.975, 4), 6)
      2.776445
    """
    if not 0.5 <= probability < 1 or degrees < 1:
        raise ValueError(
            f"Student's quantile needs a probability in [0.5, 1) and at least 1 degree of freedom, "
            f"got {probability} and {degrees}. A confidence c in (0, 1) means (1 + c) / 2."
        )
    low, high = 0.0, 1.0
    while _two_sided(high, degrees) < 2 * probability - 1:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        below = _two_sided(middle, degrees) < 2 * probability - 1
        low, high = (middle, high) if below else (low, middle)
    return (low + high) / 2


def _two_sided(t: float, degrees: int) -> float:
    """`P(|T| <= t)`: a finite sum of powers of cos(theta), theta = atan(t / sqrt(degrees))."""
    theta = math.atan(t / math.sqrt(degrees))
    sine, square = math.sin(theta), math.cos(theta) ** 2
    odd = degrees % 2
    term = math.cos(theta) if odd else 1.0
    total = term if degrees > 1 else 0.0
    for power in range(2 + odd, degrees - 1, 2):
        term *= square * (power - 1) / power
        total += term
    return 2 / math.pi * (theta + sine * total) if odd else sine * total


def _finite(values: Sequence[float], what: str) -> np.ndarray:
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not x.size:
        raise ValueError(f"`{what}` must be a list of at least one number, got shape {x.shape}.")
    bad = np.flatnonzero(~np.isfinite(x))
    if bad.size:
        raise ValueError(
            f"`{what}` holds {x[bad[0]]} at position {bad[0]}: a diverged run has no mean. Report "
            "it apart, or count it as the accuracy it had."
        )
    return x
