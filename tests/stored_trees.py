"""Trees that tests of the command line save, with zeros where they can be counted."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp


class Pair(NamedTuple):
    kernel: Any
    bias: Any


def drawn(seed, shape, dtype=np.float32, zeros=0.5):
    """About half of the entries are 0, and of the first axis one whole slice."""
    rng = np.random.default_rng(seed)
    array = np.where(rng.random(shape) < zeros, 0, rng.standard_normal(shape))
    if shape:
        array[0] = 0
    return jnp.asarray(array.astype(dtype))


def sharded():
    return {"w": drawn(0, (8, 6)), "b": drawn(1, (4,))}


def training():
    """Parameters, an average of them, and an optimizer's state with a mask and moments in it."""
    params = {
        "conv": {"kernel": drawn(2, (3, 3, 2, 4), zeros=0.9), "bias": jnp.zeros(4)},
        "dense": Pair(drawn(3, (6, 5)), jnp.ones(5)),
    }
    mask = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf) > 0.3), params)
    state = optax.chain(optax.adam(0.1), jp.freeze_pruned(mask)).init(params)
    return {"params": params, "ema": jax.tree.map(jnp.ones_like, params), "opt_state": state}


ARRAYS = {  # that plain Orbax saves too
    "nested": lambda: {"a": [drawn(4, (3, 4)), (drawn(5, (2,)), 3)], "b": {"c": drawn(6, ())}},
    "narrow": lambda: {
        "bf16": drawn(7, (5, 4), jnp.bfloat16),
        "f8": drawn(8, (7,), jnp.float8_e4m3fn),
        "i4": jnp.asarray(np.arange(-3, 4).astype(jnp.int4)),
    },
    "special": lambda: {
        "w": jnp.array([[np.nan, -0.0], [0.0, 1e-45], [np.inf, 0.0]], jnp.float32),
        "c": jnp.array([0j, 1j, -0.0j]),
        "flags": jnp.array([[True, False]]),
    },
    "numbers": lambda: {"i": 7, "f": 0.0, "t": True, "np": np.arange(3.0), "n64": np.int64(2**40)},
    "training": training,
}
ALONE = {  # that only `jaxprune.checkpoint` saves
    "bare": lambda: drawn(9, (4, 3)),
    "bare_number": lambda: 0,
    "empty_leaves": lambda: {"none": jnp.zeros((0, 3), jnp.bfloat16), "also": jnp.zeros((2, 0, 1))},
    "no_leaf": lambda: {"a": {}, "b": ()},
    "no_keys": lambda: {"k": jax.random.split(jax.random.key(0), 3)[:0], "w": jnp.ones(1)},
    "odd_names": lambda: {"": drawn(10, (2,)), "a/b": jnp.ones(2), "a": {"b": jnp.zeros(2)}},
    "many": lambda: [drawn(20 + i, (2,)) for i in range(12)],
}
