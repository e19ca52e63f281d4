"""Scores that a Pruner inside jit forms as it reads them: the same masks, and no memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests import doubles
from tests.near import assert_trees_equal


def kept_in_memory(saliency):
    """The same saliency, as a plain function, of which nothing is known."""
    return lambda params, batch: saliency(params, batch)


def weights(dtype):
    """Weights with ties, zeros of both signs, subnormal numbers; a bias, a counter and a key."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(np.round(4 * rng.normal(size=shape)) / 4, dtype)
    tiny = jnp.finfo(dtype).smallest_subnormal
    return {
        "conv": draw(3, 3, 2, 4),
        "dense": draw(12, 6).at[0].set(-0.0).at[1].set(tiny),
        "wide": jnp.asarray(rng.normal(size=(6, 5)), jnp.float32),
        "bias": draw(6),
        "steps": jnp.arange(4).reshape(2, 2),
        "key": jax.random.key(0),
    }


def check(scope, dtype):
    params, magnitude = weights(dtype), jp.saliency.magnitude()
    mask = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
    mask["dense"] = mask["dense"].at[::5].set(False)
    prune, plain = (
        jp.one_shot(saliency, jp.select.lowest(scope))
        for saliency in (magnitude, kept_in_memory(magnitude))
    )
    run = lambda pruner: jax.jit(lambda p, s: pruner(p, sparsity=s, mask=mask))(params, 0.6)
    assert_trees_equal(run(prune), run(plain))


def test_scores_formed_as_they_are_read_give_the_masks_of_scores_kept_in_memory():
    check("global", jnp.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("scope", ["global", "layer", "output", "erk"])
def test_so_they_do_in_every_scope(scope, dtype):
    check(scope, dtype)


def test_they_give_the_mask_of_a_sort():
    params = {name: leaf for name, leaf in weights(jnp.float32).items() if name != "key"}
    prune = jp.one_shot(jp.saliency.magnitude(), jp.select.lowest())
    mask = jax.jit(lambda params: prune(params, sparsity=0.6).mask)(params)
    names = ("conv", "dense", "wide")  # subnormal numbers tie with 0 on CPU
    sizes = [np.abs(np.asarray(params[n])) for n in names]
    sizes = [np.where(s < np.finfo(np.float32).tiny, 0, s) for s in sizes]
    for name, double in zip(names, doubles.one_ranking(sizes, 0.6), strict=True):
        np.testing.assert_array_equal(mask[name], double)


def test_a_score_that_is_not_finite_is_counted_and_changes_no_mask():
    prune = jp.one_shot(jp.saliency.magnitude(), jp.select.lowest())
    params = {"kernel": jnp.arange(8.0).reshape(2, 4).at[0, 0].set(jnp.nan).at[1, 1].set(jnp.inf)}
    pruned = jax.jit(lambda params: prune(params, sparsity=0.5))(params)
    assert int(pruned.info["bad_scores"]) == 2
    assert bool(pruned.mask["kernel"].all())


def test_they_take_no_memory_beside_the_tree_and_its_mask():
    tree = {name: jax.ShapeDtypeStruct((256, 256), jnp.bfloat16) for name in "ab"}
    prune = jp.one_shot(jp.saliency.magnitude(), jp.select.lowest())
    run = jax.jit(lambda params: prune(params, sparsity=0.5)[:2], donate_argnums=0)
    memory = run.lower(tree).compile().memory_analysis()
    extra = memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    assert extra < 1.2 * jp.trees.count(tree)  # a byte a parameter is the mask


def net(params, x):
    for kernel in params.values():
        x = jnp.tanh(x @ kernel)
    return x


def squares(outputs, targets):
    return jnp.sum(jnp.square(outputs.astype(jnp.float32) - targets), axis=1)


def test_scores_of_gradients_are_not_kept_beside_the_gradients():
    tree = {name: jax.ShapeDtypeStruct((512, 512), jnp.bfloat16) for name in "abcd"}
    batch = (jnp.ones((4, 512), jnp.bfloat16), jnp.ones((4, 512)))
    taylor = jp.saliency.taylor(net, squares)

    def beside(scores):
        prune = jp.one_shot(scores, jp.select.lowest())
        run = jax.jit(lambda p, batch: prune(p, batch, sparsity=0.5)[:2], donate_argnums=0)
        memory = run.lower(tree, batch).compile().memory_analysis()
        return memory.temp_size_in_bytes / jp.trees.count(tree)

    assert beside(taylor) < beside(kept_in_memory(taylor)) - 1
