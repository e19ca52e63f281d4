"""Pruners: score, select, apply. Everything that prunes has this type, and composes."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import trees
from jaxprune.select import checks
from jaxprune.select.candidates import candidates, losing, mask_in, scores_of
from jaxprune.trees import check_sparsity
from jaxprune.types import (
    Batch,
    FineTune,
    Mask,
    Params,
    Pruned,
    Pruner,
    Saliency,
    Schedule,
    ScoreFunction,
    Selection,
)


def one_shot(saliency: ScoreFunction, select: Selection) -> Pruner:
    """A Pruner that scores once and prunes once.

    The sparsity is of the original parameters: pruning to 0.5 and then to 0.7 gives 0.7. What a
    given `mask` has pruned stays pruned; it may also be what a Pruner returned.

    Args:
      saliency: a `Saliency`, or a plain `(params, batch) -> scores`.
      select: a `Selection`, such as `jp.select.lowest()`.

    Returns:
      `(params, batch=None, *, sparsity=None, mask=None) -> Pruned`. It may be called inside jit,
      with a traced sparsity. There nothing can be raised: if a score is NaN or infinite the old
      mask stays and `info["bad_scores"]` counts them; a sparsity below the one already reached
      leaves the mask as it is.

    Raises:
      ValueError: when called, a sparsity outside [0, 1) or below the one already reached, trees
        that differ, NaN or infinite scores; the leaf is named.
      TypeError: a saliency or a selection that is none; when called, an integer leaf that is to be
        pruned, a mask that is not bool.

    Example:
      >>> from jaxprune import saliency, select
      >>> prune = one_shot(saliency.magnitude(), select.lowest())
      >>> pruned = prune({"kernel": jnp.array([[1.0, -3.0], [0.5, 2.0]])}, sparsity=0.5)
      >>> pruned.params["kernel"]
      Array([[ 0., -3.],
             [ 0.,  2.]], dtype=float32)
      >>> pruned.info["kept"]
      2
    """

    check_parts(saliency, select)

    def prune(
        params: Params, batch: Batch = None, *, sparsity: Any = None, mask: Mask | None = None
    ) -> Pruned:
        mask = mask_in(mask)
        if sparsity is not None:
            check_sparsity(sparsity)
        if select.coupling is not None:
            return _prune_units(saliency, select, params, batch, sparsity, mask)
        flags = trees.prunable_flags(params, select.prunable)
        old = trees.full_mask(params) if mask is None else mask
        if mask is not None:
            params = trees.apply_mask(params, mask)
        shown, bad = candidates(select, params, scores_of(saliency, select, params, batch), mask)
        new = select.choose(params, shown, sparsity)
        if bad is not None:
            new = jax.tree.map(lambda n, o: jnp.where(bad == 0, n, o), new, old)
        new = jax.tree.map(jnp.logical_and, new, old)
        info = trees.prunable_counts(new, flags)
        if bad is not None:
            info["bad_scores"] = bad
        return Pruned(trees.apply_mask(params, new), new, info)

    return prune


def check_parts(saliency: Any, select: Any) -> None:
    """Raise unless these are what they should be: makers of them are easily passed uncalled.

    Raises:
      TypeError: says which, what was got and what to write.
    """
    uncalled = str(getattr(saliency, "__module__", "")).startswith("jaxprune.saliency.")
    name = getattr(saliency, "__qualname__", "")
    if uncalled and not isinstance(saliency, Saliency) and "<locals>" not in name:
        raise TypeError(
            f"`saliency` is the function {name} that makes one: call it, such as "
            "`jp.saliency.magnitude()` or `jp.saliency.taylor(apply, loss)`."
        )
    if not callable(saliency):
        raise TypeError(
            "`saliency` is a Saliency, such as `jp.saliency.magnitude()`, or a function "
            f"`(params, batch) -> scores`; got {saliency!r}."
        )
    if not isinstance(select, Selection):
        raise TypeError(
            "`select` is a Selection, such as `jp.select.lowest()`, with the brackets; got "
            f"{select!r}."
        )


def check_schedule(schedule: Any) -> None:
    """Raise TypeError unless it can be called."""
    if not callable(schedule):
        raise TypeError(
            "`schedule` is a function `step -> sparsity`, such as `jp.schedule.constant(0.9)`; got "
            f"{schedule!r}."
        )


def _prune_units(
    saliency: ScoreFunction,
    select: Selection,
    params: Params,
    batch: Batch,
    sparsity: Any,
    mask: Mask | None,
) -> Pruned:
    """The same for whole units: scores are `{group: [units]}`, or elementwise and reduced.

    `kept`, `prunable` and `sparsity` of the info are of the groups that can lose units.
    """
    coupling = select.coupling
    coupling.check(params)
    if mask is not None:
        params = trees.apply_mask(params, mask)
    shown, bad = candidates(select, params, saliency(params, batch), mask)
    new = select.choose(params, shown, sparsity)
    if bad is not None:
        old = trees.full_mask(params) if mask is None else mask
        new = jax.tree.map(lambda n, o: jnp.where(bad == 0, n, o), new, old)
    if mask is not None:
        new = jax.tree.map(jnp.logical_and, new, mask)
    units: dict[str, Any] = {name: flags.sum() for name, flags in coupling.kept(new).items()}
    if not trees.is_traced(units):
        units = {name: int(n) for name, n in units.items()}
    kept_units: Any = sum(units[name] for name in losing(select))
    prunable = sum(coupling.group(name).units for name in losing(select))
    info = {
        "kept": kept_units,
        "prunable": prunable,
        "sparsity": 1 - kept_units / prunable,
        "units": units,
        "parameters": trees.keep(new),
    }
    if bad is not None:
        info["bad_scores"] = bad
    return Pruned(trees.apply_mask(params, new), new, info)


def iterative(
    pruner: Pruner, schedule: Schedule, rounds: int, fine_tune: FineTune | None = None
) -> Pruner:
    """A Pruner that goes to the sparsity in rounds, each from the mask of the one before.

    With `fine_tune` it is prune-and-tune; without, every round scores the pruned parameters anew.
    Round r of R prunes to `sparsity * schedule(r) / schedule(R)`: the schedule gives the shape of
    the path, the call its end, so any Optax-shaped schedule will do.

    Lottery-ticket rewinding is a `fine_tune` that starts from earlier parameters:
    `lambda params, mask: train(jp.rewind(mask, early), mask)`.

    Args:
      pruner: the Pruner of every round.
      schedule: round -> sparsity, for rounds 1 .. `rounds`; it must not fall.
      rounds: how many.
      fine_tune: `(params, mask) -> params`, called after every round. Entries it revives are
        zeroed again, with a warning: train with `jp.freeze_pruned(mask)` in the chain.

    Returns:
      A `Pruner`; its `info["rounds"]` lists the info of every round.

    Raises:
      ValueError: rounds < 1, or a schedule that falls or ends at 0; when called, a `fine_tune`
        that returns another tree. TypeError: a schedule that is no function.

    Example:
      >>> from jaxprune import saliency, schedule, select
      >>> prune = one_shot(saliency.magnitude(), select.lowest())
      >>> slow = iterative(prune, schedule.cubic(0.75, 3), rounds=3)
      >>> pruned = slow({"kernel": jnp.arange(16.0).reshape(4, 4)}, sparsity=0.75)
      >>> [r["kept"] for r in pruned.info["rounds"]]
      [8, 4, 4]
    """
    rounds = checks.whole(rounds, 1, "`rounds` is a number of rounds,")
    check_schedule(schedule)
    path = [float(schedule(r)) for r in range(1, rounds + 1)]
    rises = all(a <= b for a, b in pairwise(path))  # and no step is NaN
    if not (path[-1] > 0 and rises):
        raise ValueError(
            f"The schedule must rise (or hold) to a positive sparsity over its {rounds} rounds, "
            f"got {path}. Is `rounds` its number of steps?"
        )

    def prune(
        params: Params, batch: Batch = None, *, sparsity: Any = None, mask: Mask | None = None
    ) -> Pruned:
        end, mask = check_sparsity(sparsity), mask_in(mask)
        done: list[dict[str, Any]] = []
        for share in path:
            target = end if share == path[-1] else end * share / path[-1]
            pruned = pruner(params, batch, sparsity=target, mask=mask)
            params, mask = pruned.params, pruned.mask
            done.append(pruned.info)
            if fine_tune is not None:
                params = _zeroed_again(fine_tune(params, mask), mask)
        return Pruned(params, mask, {**done[-1], "rounds": done})

    return prune


def rewind(pruned: Pruned | Mask, early: Params) -> Params:
    """A lottery ticket: earlier parameters under a later mask, `w = mask * w_early`.

    All leaves go back, biases and statistics too. What is kept has its early value, so train it
    again with `jp.freeze_pruned(mask)` last in the chain. For tickets found in rounds rewind in
    the `fine_tune` of `iterative`, as below; after the last round that returns trained weights.

    Args:
      pruned: what a Pruner returned, or a mask (`jp.mask_of(state)`, say).
      early: parameters of the same structure and shapes, from initialisation (Frankle and Carbin)
        or from a few hundred steps on (Frankle et al.).

    Returns:
      A tree like `early`, exactly 0 where the mask is False.

    Raises:
      ValueError: structures or shapes differ, the leaf is named. TypeError: a mask not bool.

    References:
      Frankle and Carbin 2019, The Lottery Ticket Hypothesis, section 1 (to initialisation).
      Frankle et al. 2020, Linear Mode Connectivity and the Lottery Ticket Hypothesis (to step k).

    Example:
      >>> from jaxprune import saliency, schedule, select
      >>> early = {"kernel": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
      >>> train = lambda params, mask: jax.tree.map(lambda w: w * (5 - w), params)  # stands in
      >>> prune = one_shot(saliency.magnitude(), select.lowest())
      >>> tickets = iterative(prune, schedule.exponential(0.75, 2), rounds=2,
      ...     fine_tune=lambda params, mask: train(rewind(mask, early), mask))
      >>> winner = tickets(train(early, None), sparsity=0.75)
      >>> rewind(winner, early)["kernel"]
      Array([[0., 0., 3., 0.]], dtype=float32)
    """
    return trees.apply_mask(early, mask_in(pruned))


def _zeroed_again(params: Params, mask: Mask) -> Params:
    """The tuned parameters, masked; revived entries are reported, never silently dropped."""
    trees.check_like(mask, params, "result of `fine_tune`")
    masked = trees.apply_mask(params, mask)
    if not trees.is_traced(params):
        for (name, tuned), kept in zip(
            trees.named_leaves(params), jax.tree.leaves(mask), strict=True
        ):
            if not trees.is_inexact(tuned):
                continue
            revived = int(jnp.sum((jnp.asarray(tuned) != 0) & ~kept))
            if revived:
                warnings.warn(
                    f"fine_tune revived {revived} pruned entries of {trees.label(name)}; they are "
                    "zeroed again. Put jp.freeze_pruned(mask) last in its Optax chain.",
                    stacklevel=3,
                )
    return masked
