"""BatchNorm's running statistics, estimated anew: for a net that merging or shrinking changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import objective, trees
from jaxprune.types import Params, PyTree

ApplyTrain = Callable[[Params, PyTree], tuple[Any, PyTree]]
"""`(variables, inputs) -> (outputs, new statistics)`, as Flax's mutable `apply` does."""

_DECIMALS = 6


def recalibrate_batch_norm(
    apply_train: ApplyTrain,
    variables: Params,
    batches: Iterable[PyTree],
    *,
    momentum: float | None = None,
    mean: str = "mean",
    var: str = "var",
) -> Params:
    """The running mean and variance of every BatchNorm, pooled over all batches.

    With n_b examples in batch b, and its mean and (biased) variance m_b, v_b in a layer,

        mean = sum_b n_b m_b / n,    var = sum_b n_b (v_b + (m_b - mean)^2) / n,    n = sum_b n_b

    the last term being the variance between batches: what one batch of all data would give, where
    the layer's inputs do not depend on the batches (after an earlier BatchNorm they do, as in
    training), and where all examples have the same number of positions. It is no moving average:
    order does not matter and nothing of the old statistics is left.

    In training a layer returns `new = c old + (1 - c) batch`, c its momentum. Here old is set to
    0, so that `batch = new / (1 - c)` without cancellation. c is given, or measured: the first
    batch is run with old = 1 as well, `c = new(1) - new(0)`, rounded to 6 decimals, for each leaf.

    Args:
      apply_train: `(variables, inputs) -> (outputs, new statistics)`, in training mode; jit it. In
        Linen `lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"])`. What is
        normalised must be the batch's own statistics (not so in batch renormalisation).
      variables: parameters and statistics; usually shrunk.
      batches: inputs, each a pytree whose leaves share a leading axis; read once.
      momentum: c of every layer, in [0, 1); None measures it.
      mean, var: the last names of a layer's two statistics. Others (counters) stay as they are.

    Returns:
      `variables` with new statistics, in their dtypes.

    Raises:
      ValueError: no batches, an empty batch; statistics that are not in `variables`, or a mean
        without its variance; a layer that ignores its running statistics or has c >= 1.

    References:
      Pooled moments: Chan, Golub, LeVeque 1983. Recalibration after pruning: Li et al. 2020,
      EagleEye.

    Example:
      >>> def apply_train(v, x):
      ...     now = {"mean": x.mean(0), "var": x.var(0)}
      ...     return x, jax.tree.map(lambda old, batch: 0.9 * old + 0.1 * batch, v, now)
      >>> old = {"mean": jnp.ones(1), "var": jnp.ones(1)}
      >>> new = recalibrate_batch_norm(apply_train, old, [jnp.array([[0.0]]), jnp.array([[2.0]])])
      >>> round(float(new["mean"][0]), 5), round(float(new["var"][0]), 5)
      (1.0, 1.0)
    """
    if momentum is not None and not 0 <= momentum < 1:
        raise ValueError(
            f"`momentum` is c in `c old + (1 - c) batch`, in [0, 1); got {momentum!r}."
        )
    pooled: dict[str, _Moments] = {}
    places: dict[str, str] = {}
    kept: dict[str, Any] = {}
    for inputs in batches:
        n = objective.batch_size(inputs)
        if not places:
            places = _places(apply_train, variables, inputs, mean, var)
            kept = _momenta(apply_train, variables, inputs, places, momentum)
        start = _with(variables, dict.fromkeys(places.values(), 0.0))
        new = dict(trees.named_leaves(apply_train(start, inputs)[1]))
        found = {name: np.asarray(new[name], np.float64) / (1 - kept[name]) for name in places}
        for name in found:
            if _last(name) == mean:
                partner = _partner(name, var)
                batch = _Moments(n, found[name], found[partner])
                pooled[name] = pooled[name].add(batch) if name in pooled else batch
    if not pooled:
        raise ValueError("There are no batches to estimate statistics from. Pass at least one.")
    values = {}
    for name, moments in pooled.items():
        values[places[name]] = moments.mean
        values[places[_partner(name, var)]] = moments.var
    return _with(variables, values)


class _Moments(NamedTuple):
    """Examples, their mean and their variance."""

    n: int
    mean: np.ndarray
    var: np.ndarray

    def add(self, other: _Moments) -> _Moments:
        n = self.n + other.n
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.n / n)
        within = (self.n * self.var + other.n * other.var) / n
        return _Moments(n, mean, within + apart**2 * (self.n * other.n / n**2))


def _last(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _partner(name: str, var: str) -> str:
    return "/".join([*name.split("/")[:-1], var])


def _places(
    apply_train: ApplyTrain, variables: Params, inputs: PyTree, mean: str, var: str
) -> dict[str, str]:
    """By the name of a new statistic, the name of the variable that it belongs to."""
    new = jax.eval_shape(lambda v, x: apply_train(v, x)[1], variables, inputs)
    names = trees.paths(variables)
    statistics = [name for name in trees.paths(new) if _last(name) in (mean, var)]
    found = {}
    for name in statistics:
        partner = _partner(name, var if _last(name) == mean else mean)
        if partner not in statistics:
            raise ValueError(
                f"The statistic {name!r} has no {partner!r} beside it among the new statistics. "
                "Say what the two are called with `mean=` and `var=`."
            )
        ours = [n for n in names if n == name] or [n for n in names if n.endswith("/" + name)]
        if len(ours) != 1:
            raise ValueError(
                f"The statistic {name!r} belongs to no one variable; the variables have "
                f"{[n for n in names if _last(n) in (mean, var)]}. `apply_train` must return the "
                "statistics under the names they have in `variables`."
            )
        found[name] = ours[0]
    if not found:
        raise ValueError(
            f"`apply_train` returned no statistics called {mean!r} and {var!r}, only "
            f"{trees.paths(new)}. It must return `(outputs, new statistics)`, in training mode."
        )
    return found


def _momenta(
    apply_train: ApplyTrain,
    variables: Params,
    inputs: PyTree,
    places: dict[str, str],
    momentum: float | None,
) -> dict[str, Any]:
    """c of every statistic."""
    if momentum is not None:
        return dict.fromkeys(places, momentum)
    runs = []
    for old in (0.0, 1.0):
        start = _with(variables, dict.fromkeys(places.values(), old))
        runs.append(dict(trees.named_leaves(apply_train(start, inputs)[1])))
    found = {}
    for name in places:
        zero, one = (np.asarray(run[name], np.float64) for run in runs)
        found[name] = np.round(np.median(one - zero), _DECIMALS)
        if not 0 <= found[name] < 1:
            raise ValueError(
                f"The statistic {name!r} moves by {found[name]} when its old value moves by 1: it "
                "is no `c old + (1 - c) batch` with c in [0, 1). Is `apply_train` in training mode?"
            )
    return found


def _with(variables: Params, values: dict[str, Any]) -> Params:
    """The variables with some leaves set, in their own dtypes."""
    leaves, structure = jax.tree.flatten(variables)
    for number, name in enumerate(trees.paths(variables)):
        if name in values:
            like = leaves[number]
            leaves[number] = jnp.broadcast_to(jnp.asarray(values[name], like.dtype), like.shape)
    return jax.tree.unflatten(structure, leaves)
