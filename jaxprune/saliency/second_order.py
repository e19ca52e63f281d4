"""Second-order saliencies: the rise of the loss, to second order, when a weight becomes zero."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxprune import objective
from jaxprune.saliency.measured import from_means
from jaxprune.types import (
    Batch,
    Curvature,
    Diagonal,
    GradientMoments,
    LayerMoments,
    Params,
    Saliency,
    Scores,
)


def optimal_brain_damage(curvature: Curvature) -> Saliency:
    """Optimal Brain Damage: `s = h w^2 / 2`, h the diagonal of the Hessian of the mean loss.

    Args:
      curvature: `(params, batch) -> Diagonal`, for example `jp.curvature.exact_diagonal(apply,
        loss)`; with a Gauss-Newton or Fisher diagonal it is OBD in that approximation.

    Returns:
      A `Saliency`; scores are negative where the curvature is.

    Raises:
      TypeError: a curvature that returns something other than a `Diagonal`.

    References:
      LeCun, Denker, Solla 1990, Optimal Brain Damage, equation 5.

    Example:
      >>> quadratic = lambda params, batch: Diagonal(jnp.array([2.0, 4.0]))
      >>> optimal_brain_damage(quadratic)(jnp.array([3.0, 1.0]), (jnp.ones(1), jnp.ones(1)))
      Array([9., 2.], dtype=float32)
    """

    def score(params: Params, diagonal: Any) -> Scores:
        _expect(diagonal, Diagonal, "Optimal Brain Damage", "jp.curvature.exact_diagonal(...)")
        return _halved(params, diagonal.mean)

    # A curvature of ours offers its mean without the second moment, which this does not read.
    return from_means(_numbers(getattr(curvature, "mean_only", curvature)), score, entrywise=True)


def _numbers(source: Callable[[Params, Batch], Any]) -> Callable[[Params, Batch], Any]:
    """What is measured without words, which may differ between batches: those of one example have
    no fallback, and what is to be added must have one structure."""

    def means(params: Params, batch: Batch) -> Any:
        found = source(params, batch)
        plain = isinstance(found, Diagonal)
        return replace(found, is_hessian=False, fallback_paths=()) if plain else found

    return means


def fisher(curvature: Curvature) -> Saliency:
    """Diagonal Fisher: `s = F w^2 / 2`, F the mean over examples of squared gradients.

    The formula of OBD with the empirical Fisher in place of the Hessian.

    Args:
      curvature: `jp.curvature.fisher_diagonal(apply, loss)`.

    References:
      Theis et al. 2018, Faster gaze prediction with dense networks and Fisher pruning, equation 6.

    Example:
      >>> squares = lambda params, batch: Diagonal(jnp.array([2.0]))
      >>> fisher(squares)(jnp.array([3.0]), (jnp.ones(1), jnp.ones(1)))
      Array([9.], dtype=float32)
    """
    return optimal_brain_damage(curvature)


def _halved(params: Params, curvature: Any) -> Scores:
    """`h w^2 / 2`, with the weight squared last so that a tiny weight does not underflow first."""

    def leaf(w: Any, h: Any) -> jax.Array:
        wide = objective.wide(w)
        return h * wide * wide / 2

    return jax.tree.map(leaf, params, curvature)


Reading = Literal["damage_spread", "gradient_variance", "input_spread"]


def optimal_brain_damage_sd(
    source: Callable[[Params, Batch], Any], *, reading: Reading = "damage_spread", c: float = 1.0
) -> Saliency:
    """OBD-SD, in one of OUR READINGS: its definition is in no text we could find.

    With means and standard deviations taken over the examples:

    - "damage_spread" (R1, default): `s = mean_n(d_n) + c sd_n(d_n)` of the per-example OBD damage
      `d_n = h_n w^2 / 2`; c = 0 is OBD. `source`: a curvature with second moments, such as
      `jp.curvature.exact_diagonal`.
    - "gradient_variance" (R2): `s = w^2 var_n(g_n) / 2`, the centred Fisher. `source`:
      `jp.curvature.gradient_moments(apply, loss)`.
    - "input_spread" (R3): `s = h_z (w sd_n(x))^2 / 2`, x the weight's input and h_z the curvature
      at its layer's output: what pruning costs once the bias has taken over the mean part
      `w mean(x)`. `source`: `jp.curvature.layer_moments(apply, loss)`. A leaf that enters no
      dense layer or convolution scores NaN, so a Pruner that wants it says so.

    Args:
      source: `(params, batch) -> means over examples`, of the kind the reading needs.
      reading: which reading.
      c: weight of the spread in "damage_spread".

    Returns:
      A `Saliency`. Standard deviations are those of the examples as a population (1/N).

    Raises:
      ValueError: an unknown reading, or a curvature without second moments.
      TypeError: a source of another kind.

    References:
      The name: Harang and Sanders 2023, Magnificent Minified Models. The readings are ours.

    Example:
      >>> spread = lambda params, batch: Diagonal(jnp.array([1.0]), jnp.array([5.0]))
      >>> optimal_brain_damage_sd(spread)(jnp.array([2.0]), (jnp.ones(1), jnp.ones(1)))
      Array([6.], dtype=float32)
    """
    scores: dict[str, Callable[[Params, Any], Scores]] = {
        "damage_spread": lambda params, means: _damage_spread(params, means, c),
        "gradient_variance": _gradient_variance,
        "input_spread": _input_spread,
    }
    if reading not in scores:
        near = difflib.get_close_matches(str(reading), scores, 1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"Unknown reading {reading!r} of OBD-SD. Known: {list(scores)}.{hint}")
    return from_means(_numbers(source), scores[reading])


def _expect(means: Any, kind: type, who: str, maker: str) -> None:
    if not isinstance(means, kind):
        raise TypeError(
            f"{who} needs a source that returns {kind.__name__}, such as `{maker}`; it returned "
            f"{'an array' if isinstance(means, jax.Array) else type(means).__name__}."
        )


def _damage_spread(params: Params, means: Any, c: float) -> Scores:
    _expect(means, Diagonal, "OBD-SD's 'damage_spread'", "jp.curvature.exact_diagonal(...)")
    if means.second_moment is None:
        raise ValueError(
            "OBD-SD needs the spread of the curvature over examples, and this curvature gives no "
            "second moment. Use one that does, such as `jp.curvature.exact_diagonal(apply, loss)`: "
            "that has none either where a leaf of a `custom_vjp` model, or of one whose examples "
            "meet, has to be taken an entry at a time; `gauss_newton_diagonal` has one."
        )
    spread = jax.tree.map(
        lambda h, hh: h + c * jnp.sqrt(jnp.maximum(hh - h * h, 0)), means.mean, means.second_moment
    )
    return _halved(params, spread)


def _gradient_variance(params: Params, means: Any) -> Scores:
    _expect(
        means, GradientMoments, "OBD-SD's 'gradient_variance'", "jp.curvature.gradient_moments(...)"
    )
    variance = jax.tree.map(
        lambda g, gg: jnp.maximum(gg - g * g, 0), means.mean, means.second_moment
    )
    return _halved(params, variance)


def _input_spread(params: Params, means: Any) -> Scores:
    _expect(means, LayerMoments, "OBD-SD's 'input_spread'", "jp.curvature.layer_moments(...)")
    spread = jax.tree.map(
        lambda x, xx, h: h * jnp.maximum(xx - x * x, 0),
        means.input_mean,
        means.input_second_moment,
        means.output_curvature,
    )
    return _halved(params, spread)
