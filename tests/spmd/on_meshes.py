"""Run by test_spmd_laws.py in a process of its own, with eight CPU devices; prints JSON.

Arguments: cases, `row/layout/how`, with how = eager, inferred (jit of placed arrays) or given
(jit with in_shardings, of arrays on the host).
"""

import json
import sys
import traceback

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from tests.spmd import meshes
from tests.spmd.spmd_rows import FULL, ROWS

ROUNDINGS = 200  # of float32, relative to the largest entry of a leaf


def called(row, how, arguments, places):
    if how == "eager":
        return row.run(*jax.device_put(arguments, places))
    if how == "given":
        return jax.jit(row.run, in_shardings=places)(*arguments)
    return jax.jit(row.run)(*jax.device_put(arguments, places))


def numbers(leaf):
    if jnp.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def same_bits(a, b):
    a, b = numbers(a), numbers(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def slack(leaf):
    """What rounding may do to an entry of a leaf."""
    known = np.nan_to_num(numbers(leaf).astype(np.float64))
    return ROUNDINGS * float(np.finfo(np.float32).eps) * np.max(np.abs(known), initial=0)


def near(a, b):
    x, y = (numbers(leaf).astype(np.float64) for leaf in (a, b))
    return x.shape == y.shape and np.allclose(x, y, rtol=0, atol=slack(b), equal_nan=True)


def all_leaves(check, one, other):
    return jax.tree.structure(one) == jax.tree.structure(other) and all(
        check(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def ranks_alike(params, alone, found):
    """Do masks differ only where a score is within rounding of the threshold?"""
    scored = lambda name, leaf: jp.trees.default_prunable(name, leaf) and name in finite
    finite = {n for n, leaf in jp.trees.named_leaves(alone) if np.isfinite(numbers(leaf)).all()}
    one, many = (
        jp.select.lowest(prunable=scored)(params, jax.tree.map(numbers, scores), sparsity=0.6)
        for scores in (alone, found)
    )
    flags = jp.trees.prunable_flags(params, scored)
    kept, scores = (jp.trees.select_leaves(tree, flags) for tree in (one, alone))
    gone = [numbers(s)[~numbers(m)] for s, m in zip(scores, kept, strict=True)]
    threshold = max(part.max() for part in gone if part.size)
    within = 2 * max(slack(leaf) for leaf in scores)
    pairs = zip(kept, jp.trees.select_leaves(many, flags), scores, strict=True)
    return all(
        (np.abs(numbers(s)[numbers(a) != numbers(b)] - threshold) <= within).all()
        for a, b, s in pairs
    )


def laws(name, layout, how):
    row, mesh = ROWS[name], meshes.mesh_of()
    arguments = (FULL.params, meshes.tied_scores(FULL.params), FULL.batch)
    places = (
        meshes.shardings(arguments[0], layout, mesh),
        meshes.shardings(arguments[1], layout, mesh),
        meshes.examples(arguments[2], layout, mesh),
    )
    alone = (row.run if how == "eager" else jax.jit(row.run))(*jax.tree.map(jnp.asarray, arguments))
    found = called(row, how, arguments, places)
    placed = jax.device_put(arguments[0], places[0])
    verdict = {
        "has the bits of one device" if row.exact else "is near one device": all_leaves(
            same_bits if row.exact else near, found, alone
        ),
        "lies as its parameters": all(meshes.lies_as(t, placed) for t in row.beside(found)),
    }
    if row.ranked:
        verdict["ranks as on one device"] = ranks_alike(FULL.params, alone, found)
    return verdict


def main(cases):
    results = {}
    for case in cases:
        try:
            results[case] = laws(*case.rsplit("/", 2))
        except Exception:
            results[case] = {traceback.format_exc()[-1500:]: False}
        print(case, [law for law, holds in results[case].items() if not holds], file=sys.stderr)
    print(json.dumps({"devices": jax.device_count(), "results": results}))


if __name__ == "__main__":
    main(sys.argv[1:])
