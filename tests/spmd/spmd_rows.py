"""The table of functions that are run on a mesh, for on_meshes.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from tests import laws
from tests.quantize.quantize_cases import QUANTIZERS
from tests.spmd import meshes

curvature, saliency, select, surgeon = jp.curvature, jp.saliency, jp.select, jp.surgeon

FULL = meshes.problem()
COUPLING = cache(lambda: jp.couple(FULL.apply, FULL.params, FULL.batch[0]))


class Row(NamedTuple):
    """A function of parameters, scores and a batch.

    Attributes:
      run: `(params, scores, batch) -> any pytree`.
      beside: which parts of what it returns lie as the parameters do.
      exact: are they the bits of one device? Otherwise they are near.
      ranked: are these elementwise scores, whose masks are compared too?
      jit: may it be called inside jit?
    """

    run: Callable[[Any, Any, Any], Any]
    beside: Callable[[Any], list[Any]] = lambda out: [out]
    exact: bool = False
    ranked: bool = False
    jit: bool = True


def _scores(make: Any, exact: bool = False) -> Row:
    return Row(lambda p, s, b: make(FULL)(p, b), exact=exact, ranked=True)


def _units(make: Any, *, jit: bool = True) -> Row:
    return Row(lambda p, s, b: make(COUPLING())(p, b), lambda out: [], jit=jit)


def _diagonal(make: Any, **options: Any) -> Row:
    run = lambda p, s, b: make(FULL.apply, FULL.loss, **options)(p, b)
    return Row(lambda p, s, b: (run(p, s, b).mean, run(p, s, b).second_moment),
               lambda out: [tree for tree in out if tree is not None])  # fmt: skip


def _product(make: Any) -> Row:
    return Row(lambda p, s, b: make(FULL.apply, FULL.loss)(p, b, s))


def _factors(make: Any) -> Row:
    def run(p: Any, s: Any, b: Any) -> Any:
        fisher = make(FULL.apply, FULL.loss)(p, b)
        return fisher.diagonal(), fisher.fisher_vp(s)

    return Row(run, lambda out: [])  # it knows the shapes of the parameters, not their places


def _mask(make: Any, sparsity: float | None = 0.6) -> Row:
    return Row(lambda p, s, b: make()(p, s, sparsity=sparsity), exact=True)


def _pruner(prune: Any, sparsity: float | None = 0.6, **traits: Any) -> Row:
    run = lambda p, s, b: prune()(p, b, sparsity=sparsity)
    return Row(run, lambda out: [out.params, out.mask], **traits)


def _surgeon(make: Any, *, jit: bool = False) -> Row:
    model = lambda: surgeon.LocalModel(FULL.apply, FULL.loss, damping=0.1)
    timeless = lambda out: out._replace(info={})
    run = lambda p, s, b: timeless(make(model())(p, b, sparsity=0.6))
    return Row(run, lambda out: [out.params, out.mask], jit=jit)


def _update(make: Any, exact: bool = True) -> Row:
    def run(p: Any, s: Any, b: Any) -> Any:
        tx = optax.chain(optax.sgd(0.125), make(p))
        state = tx.init(p)
        for _ in range(3):
            updates, state = tx.update(s, state, p, batch=b)
        return updates, jp.mask_of(state)

    return Row(run, lambda out: list(out), exact=exact)


def _removing(p: Any, s: Any, b: Any) -> Any:
    tx = jp.remove_units(COUPLING(), every=1, each=2)
    gates = {name: jnp.arange(1.0, g.units + 1) for name, g in COUPLING().groups.items()}
    slopes = jax.tree.map(lambda g: jnp.broadcast_to(g, (16, *g.shape)), gates)
    updates, state = tx.update(s, tx.init(p), p, gates=slopes)
    return updates, state.masking.mask


def _quantized(row: Any) -> Row:
    run = lambda p, s, b: row.make()(p)
    return Row(run, lambda out: [out.params], exact=not row.sums)


def _counted(p: Any, s: Any, b: Any) -> Any:
    mask = jax.tree.map(lambda leaf: leaf > 0.5, s)
    counts = {"keep": jp.trees.keep(mask), "drop": jp.trees.drop(mask)}
    return jax.tree.map(jnp.asarray, counts), jp.apply_mask(p, mask), jp.rewind(mask, p)


def _reported(p: Any, s: Any, b: Any) -> Any:
    told = jp.report(p, jax.tree.map(lambda leaf: leaf > 0.5, s))
    return [ord(letter) for letter in told.to_json()]


_MAGNITUDE, _LOWEST = saliency.magnitude(), select.lowest()
_KEY = jax.random.key(3)
_HALF = jp.schedule.constant(0.5)

ROWS: dict[str, Row] = {
    **{
        f"saliency {name}": _scores(row.make, exact=name in ("magnitude", "random"))
        for name, row in laws.SALIENCIES.items()
    },
    "units magnitude": _units(saliency.unit_magnitude),
    "units random": _units(lambda c: saliency.random_units(c, _KEY)),
    "units taylor": _units(lambda c: saliency.unit_taylor(c, FULL.loss)),
    "units fisher": _units(lambda c: saliency.unit_fisher(c, FULL.loss)),
    "units of magnitude": _units(lambda c: saliency.on_units(c, _MAGNITUDE)),
    "units ablation": _units(lambda c: saliency.unit_ablation(c, FULL.loss), jit=False),
    "units dropout": _units(
        lambda c: saliency.dropout_damage(c, FULL.loss, _KEY, masks=20), jit=False
    ),
    "curvature exact": _diagonal(curvature.exact_diagonal),
    "curvature gauss-newton": _diagonal(curvature.gauss_newton_diagonal),
    "curvature fisher": _diagonal(curvature.fisher_diagonal),
    "curvature hutchinson": _diagonal(curvature.hutchinson_diagonal, key=_KEY, probes=2),
    "curvature moments": Row(
        lambda p, s, b: tuple(curvature.gradient_moments(FULL.apply, FULL.loss)(p, b)),
        lambda out: list(out),
    ),
    "curvature layers": Row(
        lambda p, s, b: tuple(curvature.layer_moments(FULL.apply, FULL.loss)(p, b)),
        lambda out: [],  # they broadcast against the parameters
    ),
    "curvature hvp": _product(curvature.hvp),
    "curvature gauss-newton vp": _product(curvature.gauss_newton_vp),
    "curvature factored fisher": _factors(curvature.factored_fisher),
    "curvature sketched": _factors(
        lambda apply, loss: curvature.sketched_gauss_newton(
            apply, loss, root=FULL.root, key=_KEY
        )
    ),
    "select global": _mask(select.lowest),
    "select layer": _mask(lambda: select.lowest("layer")),
    "select output": _mask(lambda: select.lowest("output")),
    "select erk": _mask(lambda: select.lowest("erk")),
    "select mapping": _mask(lambda: select.lowest({"dense/kernel": 0.25})),
    "select 2:4": _mask(lambda: select.n_of_m(2, 4), None),
    "select 2:8 of outputs": _mask(lambda: select.n_of_m(2, 8, axis=-1), None),
    "select blocks": _mask(lambda: select.blocks((2, 4))),
    "select units": _mask(lambda: select.lowest_units(COUPLING())),
    "prune one_shot": _pruner(lambda: jp.one_shot(_MAGNITUDE, _LOWEST), exact=True),
    "prune one_shot taylor": _pruner(
        lambda: jp.one_shot(saliency.taylor(FULL.apply, FULL.loss), _LOWEST)
    ),
    "prune units": _pruner(
        lambda: jp.one_shot(_MAGNITUDE, select.lowest_units(COUPLING())), 0.5
    ),
    "prune iterative": _pruner(
        lambda: jp.iterative(jp.one_shot(_MAGNITUDE, _LOWEST), jp.schedule.cubic(0.6, 2), 2),
        exact=True, jit=False,
    ),
    "update freeze_pruned": _update(
        lambda p: jp.freeze_pruned(jax.tree.map(lambda leaf: leaf > 0, p))
    ),
    "update freeze_random": _update(lambda p: jp.freeze_random(_KEY, 0.5)),
    "update prune_gradually": _update(
        lambda p: jp.prune_gradually(_MAGNITUDE, _LOWEST, _HALF)
    ),
    "update prune_gradually taylor": _update(
        lambda p: jp.prune_gradually(saliency.taylor(FULL.apply, FULL.loss), _LOWEST, _HALF),
        exact=False,
    ),
    "update straight_through": _update(
        lambda p: jp.straight_through(_MAGNITUDE, _LOWEST, _HALF)
    ),
    "update regrow": _update(
        lambda p: jp.regrow(optax.trace(0.5), every=2, stop=9, sparsity=0.5, key=_KEY)
    ),
    "update remove_units": Row(_removing, lambda out: list(out), exact=True),
    **{f"quantize {name}": _quantized(row) for name, row in QUANTIZERS.items()},
    "trees": Row(_counted, lambda out: list(out[1:]), exact=True),
    "report": Row(_reported, lambda out: [], exact=True, jit=False),
    "surgeon woodfisher": _surgeon(surgeon.woodfisher),
    "surgeon woodfisher scores": _surgeon(
        lambda model: jp.one_shot(surgeon.woodfisher_scores(model), _LOWEST), jit=True
    ),
    "surgeon obs": _surgeon(lambda m: surgeon.optimal_brain_surgeon(m, rounds=4)),
    "surgeon cbs": _surgeon(lambda m: surgeon.combinatorial_brain_surgeon(m, draws=2)),
    "surgeon joint": _surgeon(surgeon.joint_surgeon),
    "surgeon stages": _surgeon(
        lambda m: surgeon.multi_stage_surgeon(m, stages=2, tuning=1, probes=4, scales=(1.0,),
                                              dampings=(0.1,))
    ),
    "surgeon sparse_gpt": _surgeon(lambda m: surgeon.sparse_gpt(FULL.apply)),
    "surgeon exact_obs": _surgeon(lambda m: surgeon.exact_obs(FULL.apply)),
}  # fmt: skip
