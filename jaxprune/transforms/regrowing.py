"""Masks that move while the model trains, at a constant count: SET and RigL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune import trees
from jaxprune.prune import one_shot
from jaxprune.saliency.weights import magnitude, random
from jaxprune.schedule import cosine_decay
from jaxprune.select.candidates import mask_in
from jaxprune.select.checks import whole
from jaxprune.select.ranking import LeafSparsity, lowest
from jaxprune.select.threshold import keep_largest
from jaxprune.transforms.mask_state import (
    MaskState,
    by_updates,
    cut_out,
    initial_state,
    is_empty,
    masked_updates,
    need_params,
)
from jaxprune.transforms.moments import reset_moments
from jaxprune.types import Mask, Params, Predicate, Pruned, PyTree, Schedule

_GROW = ("gradient", "random")
_SCOPES = ("erk", "layer")


class RegrowState(NamedTuple):
    """The state of `regrow`; `jp.mask_of` reads its mask.

    Attributes:
      masking: the mask, the number of updates seen, and how many mask updates were refused.
      inner: the state of the wrapped optimizer.
      key: the key that random growth folds the step into; empty for growth by gradient.
    """

    masking: MaskState
    inner: PyTree
    key: Any = ()


def regrow(
    optimizer: Any,
    *,
    every: int,
    stop: int,
    sparsity: float | None = None,
    fraction: float | Schedule = 0.3,
    grow: Literal["gradient", "random"] = "gradient",
    scope: Literal["erk", "layer"] | Mapping[str, LeafSparsity] = "erk",
    prunable: Predicate = trees.default_prunable,
    key: jax.Array | None = None,
    mask: Mask | Pruned | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Train sparse from the start, and move the mask: a wrapper around your whole Optax chain.

    At the steps t = every, 2 every, .. below `stop` each prunable leaf with K kept weights

    1. drops its `k = round(f(t) K)` kept weights of smallest |w|,
    2. grows k of those not kept then: of largest |dL/dw| ("gradient", RigL) or uniformly at
       random ("random", SET); a weight dropped a moment ago may be among them, and then was
       never off: it keeps its value and its moments.

    A weight that grows starts at 0, with the state that the optimizer's `init` gives it (moments
    0). K never changes. Ties go by index, as in every selection. As in RigL's Algorithm 1 such a
    step takes the PLACE of a gradient step: the optimizer is not called. On every other step it
    sees the gradients of the kept weights alone, and what is pruned stays at exactly 0.

    Gradients must be dense: those of the loss at the parameters you hold, pruned weights
    included, which `jax.grad` gives. Between mask updates nothing is ranked (`lax.cond`). If a
    weight or a gradient is NaN or infinite at a mask update, the mask stays and
    `MaskState.refused` counts it.

    Args:
      optimizer: any Optax transformation: a chain, `MultiSteps`, `multi_transform`, ...
      every: steps between mask updates, >= 2.
      stop: no mask update at or after this step. The paper stops at 3/4 of the training.
      sparsity: fraction of the prunable parameters pruned, in [0, 1); the mask is random at
        `init`. Or give `mask`.
      fraction: f at the start, in [0, 1), from where it falls as `jp.schedule.cosine_decay` does
        to 0 at `stop`; or f itself, a function of the step.
      grow: "gradient" or "random".
      scope: how the random mask is spread, "erk" (more of large leaves), "layer" (the same share
        of every leaf), or a mapping from leaf names to their own sparsities, as in
        `jp.select.lowest`; leaves it does not name get `sparsity`.
      prunable: `(name, leaf) -> bool`, which leaves take part.
      key: PRNG key of the random mask and of random growth.
      mask: a mask to start from instead, bool tree like the parameters, or what a Pruner returned.
        Leaves that are not prunable keep theirs.

    Returns:
      A gradient transformation; `update` needs `params`. `jp.mask_of(state)` is the mask. Zero
      what it drops before the first step, `jp.apply_mask(params, jp.mask_of(state))`, or the
      first update does.

    Raises:
      ValueError: numbers out of range, unknown words, not exactly one of `sparsity` and `mask`, a
        missing key; at `init`, a mask of another structure or shape, a leaf that would keep
        nothing; at `update`, no `params`, a prunable leaf without gradient. The leaf is named.
      TypeError: an optimizer that is none; at `init`, a mask that is not bool.

    References:
      Evci et al. 2020, Rigging the Lottery, Algorithm 1 and section 3 (a dropped weight that grows
      again at once keeps its value, as in the authors' code). Mocanu et al. 2018, Scalable training
      of artificial neural networks with adaptive sparse connectivity (random growth; there at the
      end of an epoch, at a constant fraction: `fraction=lambda step: 0.3`).

    Example:
      >>> from jaxprune.transforms import mask_of
      >>> kept = [jnp.array([[True, True, False, False]])]
      >>> tx = regrow(optax.sgd(0.1), mask=kept, every=2, stop=100, fraction=0.5)
      >>> params = [jnp.array([[3.0, 1.0, 0.0, 0.0]])]
      >>> grads, state = [jnp.array([[0.0, 0.0, 1.0, -2.0]])], tx.init(params)
      >>> for _ in range(3):  # the third drops the 1.0 and grows the last weight
      ...     updates, state = tx.update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> params, jax.tree.map(jnp.int32, mask_of(state))
      ([Array([[3., 0., 0., 0.]], dtype=float32)], [Array([[1, 0, 0, 1]], dtype=int32)])
    """
    inner, mask = _transformation(optimizer), mask_in(mask)
    every, stop = _steps(every, stop)
    _check(sparsity, grow, scope, key, mask)
    share = fraction if callable(fraction) else cosine_decay(fraction, stop)
    keys: Any = (None, None) if key is None else jax.random.split(key)

    def start(params: Params) -> Mask:
        if mask is None:
            prune = one_shot(random(keys[0]), lowest(scope, prunable=prunable))
            return prune(params, sparsity=sparsity).mask
        mine = cut_out(mask, params, "mask")
        trees.check_like(params, mine, "mask", boolean=True)
        return mine

    def init(params: Params) -> RegrowState:
        # A copy, because a donated step deletes the state's buffers.
        own = jnp.array(keys[1], copy=True) if grow == "random" else ()
        if is_empty(params):
            return RegrowState(initial_state(params, params), inner.init(params), own)
        flags = trees.prunable_flags(params, prunable)
        drawn = start(params)
        reached = jnp.float32(trees.prunable_counts(drawn, flags)["sparsity"])
        masking = initial_state(drawn, params)._replace(reached=reached)
        # Copies of the weights that an optimizer keeps must not remember what is pruned.
        return RegrowState(masking, inner.init(trees.apply_mask(params, drawn)), own)

    move = mask_mover(share, grow)

    def update(
        updates: PyTree, state: RegrowState, params: Params | None = None, **extra: Any
    ) -> tuple[PyTree, RegrowState]:
        params = need_params(params)
        old, step = state.masking.mask, state.masking.step
        flags = trees.prunable_flags(params, prunable)
        gradients = _gradients(updates, params, flags) if grow == "gradient" else None

        def train() -> Any:
            seen = _masked_gradients(updates, old, params)
            found, now = inner.update(seen, state.inner, params, **extra)
            return masked_updates(found, old, params), now, old, jnp.bool_(True)

        def regrown() -> Any:
            kept, weights = (trees.select_leaves(tree, flags) for tree in (old, params))
            moved, ok = move(kept, weights, gradients, state.key, step)
            new = trees.replace_leaves(old, flags, moved)
            stays = jax.tree.map(jnp.logical_and, new, old)
            grown = jax.tree.map(lambda n, o: n & ~o, new, old)
            like, wanted, _, _ = jax.eval_shape(train)
            still = masked_updates(_zero_updates(like, updates, params), stays, params)
            now = reset_moments(inner, state.inner, trees.apply_mask(params, stays), grown)
            return still, jax.tree.map(_as_dtype, now, wanted), new, ok

        due = (step % every == 0) & (step > 0) & (step < stop)
        # Outside jit the step is known, and `cond` would be compiled anew every time.
        choose = jax.lax.cond if trees.is_traced(due) else lambda due, a, b: a() if due else b()
        found, now, new, ok = choose(due, regrown, train)
        masking = state.masking._replace(
            step=optax.safe_increment(step),
            mask=new,
            refused=state.masking.refused + (~ok).astype(jnp.int32),
        )
        return found, RegrowState(masking, now, state.key)

    return optax.GradientTransformationExtraArgs(init, update)


def mask_mover(share: Schedule, grow: str) -> Callable[..., tuple[list[jax.Array], jax.Array]]:
    """`(masks, weights, gradients, key, step) -> (masks, ok)` over lists of prunable leaves.

    Not `ok` where a weight or a gradient is NaN or infinite; then the masks are the old ones.
    """
    score = magnitude()

    def move(
        masks: list[jax.Array], weights: list[Any], gradients: Any, key: Any, step: jax.Array
    ) -> tuple[list[jax.Array], jax.Array]:
        sizes = score(weights, None)
        if grow == "gradient":
            growth = score(gradients, None)
        else:
            now = jax.random.fold_in(key, step)
            growth = [_drawn(jax.random.fold_in(now, i), size) for i, size in enumerate(sizes)]
        finite = [jnp.isfinite(leaf).all() for leaf in (*sizes, *growth)]
        ok = jnp.stack(finite).all()
        dropped = jnp.clip(jnp.asarray(share(step), jnp.float32), 0, 1)
        moved = [_moved(*leaf, dropped) for leaf in zip(masks, sizes, growth, strict=True)]
        return [jnp.where(ok, n, o) for n, o in zip(moved, masks, strict=True)], ok

    return jax.jit(move, inline=True)


def _moved(mask: jax.Array, sizes: jax.Array, growth: jax.Array, share: jax.Array) -> jax.Array:
    """One leaf's mask after dropping its smallest weights and growing as many others."""
    kept = trees.total(mask)
    goes = jnp.round(share * kept.astype(jnp.float32)).astype(kept.dtype)
    stays = keep_largest(jnp.where(mask, sizes, -jnp.inf), mask.size - kept + goes)
    return stays | keep_largest(jnp.where(stays, -jnp.inf, growth), mask.size - goes)


def _drawn(key: jax.Array, like: jax.Array) -> jax.Array:
    return jax.random.uniform(key, like.shape, like.dtype)


def _gradients(updates: PyTree, params: Params, flags: list[bool]) -> list[Any]:
    """The gradients of the prunable leaves."""
    structure: Any = jax.tree.structure(params)
    found = []
    pairs = zip(flags, trees.named_leaves(params), structure.flatten_up_to(updates), strict=True)
    for flag, (name, _), gradient in pairs:
        if flag and gradient is None:
            raise ValueError(
                f"There is no gradient for {trees.label(name)}, and weights are grown by it. "
                'Exclude it in `prunable`, or pass grow="random".'
            )
        if flag:
            found.append(gradient)
    return found


def _masked_gradients(updates: PyTree, mask: Mask, params: Params) -> PyTree:
    """The gradients that training sees: 0 for what is pruned."""

    def leaf(gradient: Any, keep: Any, param: Any) -> Any:
        if gradient is None or not trees.is_inexact(param):
            return gradient
        return jnp.where(keep, gradient, jnp.zeros((), trees.dtype_of(gradient)))

    return by_updates(leaf, updates, mask, params)


def _zero_updates(like: PyTree, updates: PyTree, params: Params) -> PyTree:
    """Updates of 0 in the dtypes of the optimizer's; what has no zero passes through."""

    def leaf(wanted: Any, given: Any, param: Any) -> Any:
        if wanted is None or not trees.is_inexact(param):
            return given
        return jnp.zeros(wanted.shape, wanted.dtype)

    return by_updates(leaf, like, updates, params)


def _as_dtype(leaf: Any, like: Any) -> Any:
    """Both ways of a `cond` give the same types, also where the first update changes one."""
    return leaf if trees.dtype_of(leaf) == like.dtype else jnp.asarray(leaf, like.dtype)


def _transformation(optimizer: Any) -> optax.GradientTransformationExtraArgs:
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            "`regrow` wraps an Optax transformation, such as optax.adam(1e-3) or a chain; got "
            f"{type(optimizer).__name__}."
        )
    return optax.with_extra_args_support(optimizer)


def _steps(every: Any, stop: Any) -> tuple[int, int]:
    why = " A mask update takes the place of a gradient step, so that with 1 nothing is trained."
    every = whole(every, 2, "`every` is steps between mask updates,", why)
    return every, whole(stop, 1, "`stop` is the step of the last mask update,")


def _check(sparsity: Any, grow: Any, scope: Any, key: Any, mask: Any) -> None:
    if grow not in _GROW:
        raise ValueError(
            f'Unknown growth {grow!r}. Known: "gradient" (RigL) and "random" (SET, needs a key).'
        )
    if not isinstance(scope, Mapping) and scope not in _SCOPES:
        raise ValueError(
            f'Unknown scope {scope!r}. Known: "erk", "layer", or a mapping from leaf names to '
            "sparsities; other masks can be given as `mask`."
        )
    if (sparsity is None) == (mask is None):
        raise ValueError(
            "Pass either `sparsity`, for a random mask at the start, or `mask`, one of your own."
        )
    if sparsity is not None:
        trees.check_sparsity(sparsity)
    if key is None and (mask is None or grow == "random"):
        what = "A random mask at the start" if mask is None else "Random growth (SET)"
        raise ValueError(f"{what} needs a PRNG key: pass `key=jax.random.key(seed)`.")
