"""What the tests of regrow share: a tree with ties, dense gradients, a loop, a quick ranking."""

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp

KEY = jax.random.key(7)


def params(seed=0):
    """A kernel with many ties, a smooth one, and a bias that is not prunable."""
    first, second = jax.random.split(jax.random.key(seed))
    return {
        "tied": jnp.round(2 * jax.random.normal(first, (6, 5))) / 2,
        "smooth": jax.random.normal(second, (4, 6)),
        "bias": jnp.full((6,), 0.1),
    }


def noise(like, seed):
    """Random dense gradients, coarse enough to tie."""
    draw = lambda i, p: jnp.round(4 * jax.random.normal(jax.random.key(100 * seed + i), p.shape))
    leaves, structure = jax.tree.flatten(like)
    return structure.unflatten([draw(i, p).astype(p.dtype) for i, p in enumerate(leaves)])


def rigl(optimizer=None, **options):
    defaults = {"sparsity": 0.5, "every": 2, "stop": 7, "fraction": 0.5, "key": KEY}
    if "mask" in options:
        defaults |= {"sparsity": None, "key": None}
    return jp.regrow(
        optax.sgd(0.25, momentum=0.5) if optimizer is None else optimizer, **defaults | options
    )


def run(tx, start, steps, update=None, state=None, first=0):
    """`(params, state)` after every step, from masked parameters."""
    update = jax.jit(tx.update) if update is None else update
    if state is None:
        state = tx.init(start)
        start = jp.apply_mask(start, jp.mask_of(state))
    for i in range(first, first + steps):
        updates, state = update(noise(start, i), state, start)
        start = optax.apply_updates(start, updates)
        yield start, state


def kept(mask):
    return {name: int(leaf.sum()) for name, leaf in jp.trees.named_leaves(mask)}


def by_pairs(scores, pruned):
    """`keep_largest` by comparing every entry with every other."""
    flat, index = scores.ravel(), jnp.arange(scores.size)
    before = (flat[None] == flat[:, None]) & (index[None] < index[:, None])
    rank = ((flat[None] < flat[:, None]) | before).sum(axis=1).reshape(scores.shape)
    return (rank >= pruned) & (scores > -jnp.inf)
