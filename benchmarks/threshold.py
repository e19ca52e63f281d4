"""The exact global threshold inside jit, against one `jnp.max`, `jnp.sort` and argsort.

    python benchmarks/threshold.py            # 1e7 entries
    python benchmarks/threshold.py 1e7 1e8 --save  # the committed table (needs about 3 GiB)

Bound to keep: the k-th value in at most 30 times one `jnp.max` over the same array.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measuring  # isort: skip  # sets XLA's threads: before jax

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.select import threshold


def mask_at(scores: jax.Array, bound: threshold.Bound) -> jax.Array:
    return threshold.keep_from(scores, bound, (0,))


def sort_kth(scores: jax.Array, rank: jax.Array) -> jax.Array:
    return jnp.sort(scores)[rank]


def argsort_mask(scores: jax.Array, rank: jax.Array) -> jax.Array:
    order = jnp.argsort(scores)
    return jnp.ones(scores.shape, bool).at[order].set(jnp.arange(scores.size) >= rank)


def run(n: int) -> list[list[str]]:
    scores = jnp.abs(jax.random.normal(jax.random.key(0), (n,)))
    rank = jnp.int32(round(0.9 * n))
    bound = jax.jit(lambda s, r: threshold.bound_of(s, r.reshape(1), (0,)))(scores, rank)
    done = lambda f, *args: lambda: jax.block_until_ready(f(*args))
    largest = done(jax.jit(jnp.max), scores)
    compiled = jax.jit(threshold.kth_smallest).lower(scores, rank).compile()
    cases = {
        "k-th value": (done(compiled, scores, rank), 15),
        "mask write alone": (done(jax.jit(mask_at), scores, bound), 15),
        "k-th value, ties and mask": (done(jax.jit(threshold.keep_largest), scores, rank), 15),
        "jnp.sort, then index": (done(jax.jit(sort_kth), scores, rank), 1),
    }
    if n <= 10**7:
        cases["argsort, then scatter"] = (done(jax.jit(argsort_mask), scores, rank), 1)
    exact = np.partition(np.asarray(scores), int(rank))[int(rank)]
    assert float(compiled(scores, rank)) == exact
    assert int(jnp.sum(threshold.keep_largest(scores, rank))) == n - int(rank)
    memory: Any = compiled.memory_analysis()
    rows = []
    for name, (call, pairs) in cases.items():
        ratio = measuring.paired(largest, call, pairs=pairs)
        extra = f"{memory.temp_size_in_bytes:,}" if name == "k-th value" else ""
        rows.append([f"{n:.0e}", name, *measuring.ratio_cells(ratio), extra])
    return rows


if __name__ == "__main__":
    given = [word for word in sys.argv[1:] if not word.startswith("-")]
    sizes = [round(float(size)) for size in given] or [10**7]
    header = ["entries", "what", "x jnp.max", "95 %", "pairs", "ms", "jnp.max ms", "temp bytes"]
    command = "python benchmarks/threshold.py " + " ".join(f"{size:.0e}" for size in sizes)
    measuring.publish("threshold", command, header, [row for n in sizes for row in run(n)])
