"""One small problem, many optimizers and the four masking transformations: the test tables."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

import jaxprune as jp

LEARNING_RATE = 1e-2
DECAY = 1e-2


def dense_params():
    """Two kernels and a bias; the kernels are prunable."""
    first, second = jax.random.split(jax.random.key(0))
    return {
        "hidden": {
            "kernel": jax.random.normal(first, (8, 6)),
            "bias": jnp.full((6,), 0.1, jnp.float32),
        },
        "readout": {"kernel": jax.random.normal(second, (6, 4))},
    }


def batch():
    inputs = jax.random.normal(jax.random.key(1), (16, 8))
    return inputs, jax.random.normal(jax.random.key(2), (16, 4))


def loss(params, batch):
    inputs, targets = batch
    hidden = jnp.tanh(inputs @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return jnp.mean((hidden @ params["readout"]["kernel"] - targets) ** 2)


def masked_start(sparsity=0.5):
    """Parameters with half of their kernels at 0, and the mask."""
    pruned = jp.one_shot(jp.saliency.magnitude(), jp.select.lowest())(
        dense_params(), sparsity=sparsity
    )
    return pruned.params, pruned.mask


def alive(params, mask):
    """How many pruned entries are not exactly 0; an integer, also inside jit."""
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True)
    return sum(jnp.sum((leaf != 0) & ~keep) for leaf, keep in leaves)


def dropped(mask):
    return int(jp.trees.drop(mask))


def step_of(tx, *, data=None, extra=lambda value, grads: {}):
    """A train step `(params, state) -> (params, state)`, jitted and donated, that counts traces."""
    data = batch() if data is None else data
    traces = []

    def step(params, state):
        traces.append(1)
        value, grads = jax.value_and_grad(loss)(params, data)
        updates, state = tx.update(grads, state, params, **extra(value, grads))
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    step.traces = traces
    return step


def copied(tree):
    """Fresh arrays: the old ones may be donated."""
    return jax.tree.map(jnp.copy, tree)


def assert_same_bits(tree, other):
    """Equal structure, dtypes and bits, NaN and -0.0 included."""
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for (name, a), b in zip(jp.trees.named_leaves(tree), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype, f"{name}: {a.dtype} and {b.dtype}"
        assert a.shape == b.shape, name
        assert a.tobytes() == b.tobytes(), name


def _with_decay(optimizer):
    """Weight decay for an optimizer that has none of its own."""
    return optax.chain(optimizer, optax.add_decayed_weights(-LEARNING_RATE * DECAY))


OPTIMIZERS = {
    "sgd_nesterov": lambda: _with_decay(optax.sgd(LEARNING_RATE, momentum=0.9, nesterov=True)),
    "adam": lambda: _with_decay(optax.adam(LEARNING_RATE)),
    "adamw": lambda: optax.adamw(LEARNING_RATE, weight_decay=DECAY),
    "nadamw": lambda: optax.nadamw(LEARNING_RATE, weight_decay=DECAY),
    "adabelief": lambda: _with_decay(optax.adabelief(LEARNING_RATE)),
    "adafactor": lambda: optax.adafactor(
        LEARNING_RATE, min_dim_size_to_factor=4, weight_decay_rate=DECAY
    ),
    "adagrad": lambda: _with_decay(optax.adagrad(LEARNING_RATE)),
    "adan": lambda: optax.adan(LEARNING_RATE, weight_decay=DECAY),
    "lamb": lambda: optax.lamb(LEARNING_RATE, weight_decay=DECAY),
    "lion": lambda: optax.lion(LEARNING_RATE, weight_decay=DECAY),
    "novograd": lambda: optax.novograd(LEARNING_RATE, weight_decay=DECAY),
    "rmsprop": lambda: _with_decay(optax.rmsprop(LEARNING_RATE, momentum=0.9)),
    "sm3": lambda: _with_decay(optax.sm3(LEARNING_RATE)),
    "yogi": lambda: _with_decay(optax.yogi(LEARNING_RATE)),
    "muon": lambda: contrib.muon(LEARNING_RATE, weight_decay=DECAY),
    "mechanic": lambda: contrib.mechanize(optax.adamw(LEARNING_RATE, weight_decay=DECAY)),
    "prodigy": lambda: contrib.prodigy(weight_decay=DECAY),
    "schedule_free": lambda: contrib.schedule_free_adamw(LEARNING_RATE, weight_decay=DECAY),
    "sophia": lambda: contrib.sophia(LEARNING_RATE, weight_decay=DECAY, update_interval=2),
    "momo_adam": lambda: contrib.momo_adam(LEARNING_RATE, weight_decay=DECAY),
}


def extra_arguments(value, grads):
    """What some optimizers read beside the gradients."""
    return {"value": value, "obj_fn": lambda params: loss(params, batch())}


def ranked_in_pairs():
    """Prune the lowest share of every leaf by comparing all pairs: slow to run, quick to compile.

    An entry's rank is the number of entries below it, ties by index; the laws here are about what
    is done with a mask, and the package's own selections take a second each to compile.
    """

    def leaf(scores, sparsity):
        if scores.ndim < 2:
            return jnp.ones(scores.shape, bool)
        flat, index = scores.ravel(), jnp.arange(scores.size)
        below = flat[None, :] < flat[:, None]
        before = (flat[None, :] == flat[:, None]) & (index[None, :] < index[:, None])
        rank = (below | before).sum(axis=1).reshape(scores.shape)
        return rank >= jnp.round(sparsity * scores.size)

    return jp.Selection(
        jp.trees.default_prunable,
        lambda params, scores, sparsity: jax.tree.map(lambda s: leaf(s, sparsity), scores),
    )


def magnitude_pruning(end=0.5, steps=3, every=1):
    """Gradual magnitude pruning; the fixtures' workhorse."""
    return jp.prune_gradually(
        jp.saliency.magnitude(), ranked_in_pairs(), jp.schedule.linear(end, steps), every=every
    )


TRANSFORMS = {
    "freeze_pruned": lambda: jp.freeze_pruned(masked_start()[1]),
    "freeze_random": lambda: jp.freeze_random(jax.random.key(3), 0.5),
    "prune_gradually": magnitude_pruning,
    "straight_through": lambda: jp.straight_through(
        jp.saliency.magnitude(), ranked_in_pairs(), jp.schedule.constant(0.5)
    ),
}
"""Each prunes half of the 72 kernel entries within four updates."""
