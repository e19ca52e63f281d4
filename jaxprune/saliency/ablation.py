"""What the loss loses when units are left out: one by one, or many at a time at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import objective, trees
from jaxprune.coupling.groups import Coupling
from jaxprune.coupling.models import source_of
from jaxprune.saliency.gates import gated_model, open_gates
from jaxprune.saliency.measured import from_means
from jaxprune.types import Batch, Loss, Params, PyTree, Saliency

Estimator = Literal["difference", "least_squares"]
_ESTIMATORS = ("difference", "least_squares")
_CACHE_BYTES = 32 << 20
_DEVICE_BYTES = 1 << 30
_MOST = 64  # forward passes at once


def unit_ablation(coupling: Coupling, loss: Loss, *, chunk: int | None = None) -> Saliency:
    """The rise of the loss without the unit: `s_i = mean_n (L_n without i - L_n)`, exactly.

    One forward pass a unit, and the yardstick for everything cheaper; coupled places go together.

    Args:
      coupling: from `couple`.
      loss: `(outputs, targets) -> [N]`.
      chunk: forward passes at once; by default as many as keep their activations in a CPU's last
        cache, or in 1 GiB of another device.

    Returns:
      A `Saliency`; scores are negative where the loss falls.

    Raises:
      ValueError: a chunk below 1; see `on_gates`.

    References:
      Mozer and Smolensky 1989, Skeletonization: the relevance of a unit.

    Example:
      >>> from jaxprune.coupling import couple
      >>> w = [jnp.array([[1.0, 2.0]]), jnp.array([[3.0], [0.5]])]
      >>> coupling = couple(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], w, jnp.ones((1, 1)))
      >>> damage = unit_ablation(coupling, lambda y, t: ((y - t) ** 2)[:, 0])
      >>> damage(w, (jnp.ones((1, 1)), jnp.full((1, 1), 4.0)))
      {'0': Array([9., 1.], dtype=float32)}
    """
    losses = _losses_without(coupling, loss, chunk)

    def alone(rows: np.ndarray) -> np.ndarray:
        return rows[:, None] - 1 == np.arange(coupling.units)  # row 0 is the whole model

    def means(params: Params, batch: Batch) -> PyTree:
        found = losses(params, batch, alone, coupling.units + 1)
        return _by_group(coupling, found[1:] - found[0])

    return from_means(means, lambda params, damage: damage)


def dropout_damage(
    coupling: Coupling,
    loss: Loss,
    key: jax.Array,
    *,
    masks: int,
    rate: float = 0.1,
    estimator: Estimator = "difference",
    chunk: int | None = None,
) -> Saliency:
    """What leaving a unit out costs while others are left out too, from random unit masks.

    Each unit is dropped in exactly `round(rate * masks)` of the masks, drawn by itself. With L the
    mean loss under a mask and z_i = 1 where unit i is dropped,

    - "difference": `s_i = mean(L | z_i = 1) - mean(L | z_i = 0)`, for any number of masks. The
      other units' damage is noise, of the size `sqrt(sum_j s_j^2 / masks)`;
    - "least_squares": s of the fit `L = b + sum_i s_i z_i`; more masks than units, and the noise
      is only what is not additive.

    Where damages add up, s is that of `unit_ablation`, at any rate; elsewhere it is the damage
    among neighbours of which `rate` are gone already. At rate 1/2 it is the Banzhaf value.

    Args:
      coupling: from `couple`.
      loss: `(outputs, targets) -> [N]`.
      key: a PRNG key; all batches see the same masks, so stats add.
      masks: how many, each one forward pass.
      rate: the share of units that a mask drops.
      estimator: "difference" or "least_squares".
      chunk: forward passes at once; by default as many as keep their activations in a CPU's last
        cache, or in 1 GiB of another device.

    Returns:
      A `Saliency`, whose stats are the loss summed over examples, [masks].

    Raises:
      ValueError: an unknown estimator, a rate that drops no unit or drops one always, masks too few
        or too alike to tell the units apart by least squares, a chunk below 1; see `on_gates`.

    References:
      Wang and Jia 2023, Data Banzhaf, for the difference (each forward pass tells of all units);
      Hammer and Holzman 1992, Approximations of pseudo-Boolean functions, for least squares.

    Example:
      >>> from jaxprune.coupling import couple
      >>> w = [jnp.array([[1.0, 2.0]]), jnp.array([[3.0], [0.5]])]
      >>> coupling = couple(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], w, jnp.ones((1, 1)))
      >>> fall = lambda y, t: (t - y)[:, 0]
      >>> damage = dropout_damage(coupling, fall, jax.random.key(0), masks=8, rate=0.5,
      ...                         estimator="least_squares")
      >>> damage(w, (jnp.ones((1, 1)), jnp.zeros((1, 1))))["0"].round()
      Array([3., 1.], dtype=float32)
    """
    both = _dropout(coupling, loss, key, masks, rate, estimator, chunk, 0)
    return Saliency(both.measure, lambda params, stats: both.score(params, stats)[0])


def damage_with_errors(
    coupling: Coupling,
    loss: Loss,
    key: jax.Array,
    *,
    masks: int,
    rate: float = 0.1,
    estimator: Estimator = "difference",
    chunk: int | None = None,
) -> Saliency:
    """`dropout_damage` and its standard error, that of drawing masks: the examples are given.

    "difference": `sqrt(var(L | z_i = 1) / n1 + var(L | z_i = 0) / n0)`, n1 and n0 the masks with
    and without the unit. "least_squares": `sqrt(RSS / (masks - units - 1) (X'X)^-1_ii)`.

    Args:
      coupling, loss, key, masks, rate, estimator, chunk: see `dropout_damage`.

    Returns:
      A `Saliency` whose scores are `(damage, standard_error)`, both `{group: [units]}`. Its stats
      are those of `dropout_damage` with the same arguments.

    Raises:
      ValueError: as `dropout_damage`; and fewer than two masks with or without a unit, or no more
        masks than units + 1 for least squares.

    Example:
      >>> from jaxprune.coupling import couple
      >>> w = [jnp.array([[1.0, 2.0]]), jnp.array([[3.0], [0.5]])]
      >>> coupling = couple(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], w, jnp.ones((1, 1)))
      >>> fall = lambda y, t: (t - y)[:, 0]
      >>> measured = damage_with_errors(coupling, fall, jax.random.key(0), masks=64, rate=0.5)
      >>> damage, error = measured(w, (jnp.ones((1, 1)), jnp.zeros((1, 1))))
      >>> bool((abs(damage["0"] - jnp.array([3.0, 1.0])) < 3 * error["0"]).all())
      True
    """
    return _dropout(coupling, loss, key, masks, rate, estimator, chunk, 1)


def _dropout(
    coupling: Coupling,
    loss: Loss,
    key: jax.Array,
    masks: int,
    rate: float,
    estimator: str,
    chunk: int | None,
    spare: int,
) -> Saliency:
    """Damage and standard error; `spare` masks more than the damage alone needs."""
    losses = _losses_without(coupling, loss, chunk)
    dropped = _drawn(coupling, key, masks, rate, estimator, spare)
    estimate = _difference if estimator == "difference" else _least_squares

    def means(params: Params, batch: Batch) -> PyTree:
        return losses(params, batch, lambda rows: dropped[rows], masks)

    def score(params: Params, means: PyTree) -> Any:
        with jax.default_matmul_precision("highest"):
            damage, error = estimate(jnp.asarray(dropped, means.dtype), means)
        return _by_group(coupling, damage), _by_group(coupling, error)

    return from_means(means, score)


def _drawn(
    coupling: Coupling, key: jax.Array, masks: Any, rate: Any, estimator: str, spare: int
) -> Any:
    """Which units each mask drops, bool [masks, units]."""
    objective.check_count("masks", masks)
    if estimator not in _ESTIMATORS:
        raise ValueError(f"The estimator is one of {list(_ESTIMATORS)}, got {estimator!r}.")
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 1:
        raise ValueError(f"The rate is the share of units dropped, in (0, 1); got {rate!r}.")
    times = round(rate * masks)
    if not 1 + spare <= times <= masks - 1 - spare:
        raise ValueError(
            f"At a rate of {rate} each unit is dropped in {times} of {masks} masks; it takes at "
            f"least {1 + spare} that drop it and as many that keep it. Draw more masks, or change "
            "the rate."
        )
    units = coupling.units
    if estimator == "least_squares" and masks < units + 1 + spare:
        raise ValueError(
            f"Least squares over {units} units takes at least {units + 1 + spare} masks, got "
            f"{masks}. Draw more, or take the estimator 'difference'."
        )
    start = jnp.broadcast_to(jnp.arange(masks)[:, None] < times, (masks, units))
    drawn = jax.random.permutation(key, start, axis=0, independent=True)
    if trees.is_traced(drawn):
        return drawn
    dropped = np.asarray(drawn)
    if estimator == "least_squares":
        diagonal = np.abs(np.diag(np.linalg.qr(dropped - dropped.mean(0), mode="r")))
        if diagonal.min() <= 1e-5 * diagonal.max():
            raise ValueError(
                f"These {masks} masks of {units} units are too alike to tell all units apart. Draw "
                "more, change the rate, or take another key."
            )
    return dropped


def _difference(dropped: jax.Array, losses: jax.Array) -> tuple[jax.Array, jax.Array]:
    centred = losses - jnp.mean(losses)

    def moments(among: jax.Array) -> tuple[jax.Array, jax.Array]:
        n = jnp.sum(among, axis=0)
        mean = centred @ among / n
        square = jnp.square(centred) @ among / n
        return mean, jnp.maximum(square - jnp.square(mean), 0) / (n - 1)

    (gone, variance), (kept, other) = moments(dropped), moments(1 - dropped)
    return gone - kept, jnp.sqrt(variance + other)


def _least_squares(dropped: jax.Array, losses: jax.Array) -> tuple[jax.Array, jax.Array]:
    masks, units = dropped.shape
    design = dropped - jnp.mean(dropped, axis=0)  # which takes the intercept out
    centred = losses - jnp.mean(losses)
    q, r = jnp.linalg.qr(design)
    inverse = jax.scipy.linalg.solve_triangular(r, jnp.eye(units, dtype=r.dtype))
    damage = inverse @ (q.T @ centred)
    left = jnp.sum(jnp.square(centred - design @ damage))
    freedom = masks - units - 1
    variance = left / freedom if freedom else jnp.nan
    return damage, jnp.sqrt(variance * jnp.sum(jnp.square(inverse), axis=1))


def _losses_without(coupling: Coupling, loss: Loss, chunk: int | None) -> Callable[..., jax.Array]:
    """`(params, batch, without, number) -> [number]`: mean losses without some units.

    `without(rows)`, bool [rows, units], says which. A loop on the host over one compiled program
    that takes `chunk` rows at once.
    """
    if chunk is not None:
        objective.check_count("chunk", chunk)
    model = gated_model(coupling)

    @jax.jit
    def some(params: Params, batch: Batch, without: jax.Array) -> jax.Array:
        losses = objective.example_losses(model(params), loss)
        gates = open_gates(coupling, params)

        def one(row: jax.Array) -> jax.Array:
            apart = _by_group(coupling, row)
            closed = {name: jnp.where(apart[name], 0, gate) for name, gate in gates.items()}
            return jnp.mean(losses(closed, batch))

        with jax.default_matmul_precision("highest"):
            return jax.vmap(one)(without)

    def run(params: Params, batch: Batch, without: Callable[..., Any], number: int) -> jax.Array:
        size = min(chunk or _fitting(coupling, objective.batch_size(batch)), number)
        starts = range(0, number, size)
        rows = [np.minimum(np.arange(start, start + size), number - 1) for start in starts]
        parts = [some(params, batch, without(some_rows)) for some_rows in rows]
        return jnp.concatenate(parts)[:number]

    return run


def _fitting(coupling: Coupling, n: int) -> int:
    """How many forward passes of n examples to take at once."""
    shapes = [x.shape for x in jax.tree.leaves(source_of(coupling).inputs) if x.shape]
    each = coupling.activations() / max(shapes[0][0], 1) if shapes else 0
    budget = _CACHE_BYTES if jax.default_backend() == "cpu" else _DEVICE_BYTES
    return int(min(max(budget // max(each * n, 1), 1), _MOST))


def _by_group(coupling: Coupling, units: jax.Array) -> dict[str, jax.Array]:
    """A vector over all units, cut into groups."""
    sizes = [group.units for group in coupling.groups.values()]
    ends = np.cumsum(sizes).tolist()
    starts = [end - size for end, size in zip(ends, sizes, strict=True)]
    return {
        name: units[start:end]
        for name, start, end in zip(coupling.groups, starts, ends, strict=True)
    }
