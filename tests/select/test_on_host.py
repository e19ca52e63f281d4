"""Rankings sorted by NumPy, where there are few scores, are those of the compiled search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.select import on_host
from tests.near import assert_trees_equal, no_compilation

SCOPES = ["global", "layer", "output", "erk", {"a": 0.2, "c": lambda sparsity: sparsity / 2}]


def scores(dtype, pruned):
    """Ties, zeros of both signs, subnormal numbers, an infinity; what is pruned already."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(np.round(2 * rng.normal(size=shape)) / 2, dtype)
    tiny = jnp.finfo(dtype).smallest_subnormal
    return {
        "a": draw(5, 4, 6).at[:2, 1].set(-0.0).at[2].set(tiny),
        "b": draw(7, 3).at[:pruned].set(-jnp.inf),
        "c": draw(4, 6).at[1, 1].set(jnp.inf),
        "empty": jnp.zeros((0, 3), dtype),
    }


@pytest.mark.parametrize("scope", SCOPES, ids=[*SCOPES[:-1], "mapping"])
@pytest.mark.parametrize("dtype", [
    jnp.float32, pytest.param(jnp.float64, marks=pytest.mark.slow),
], ids=lambda dtype: dtype.__name__)  # fmt: skip
def test_a_sort_on_the_host_gives_the_masks_of_the_compiled_search(scope, dtype, x64, monkeypatch):
    tree = scores(dtype, pruned=int(scope in ("global", "layer")))
    floor = 6 if scope == "global" else 1
    select = jp.select.lowest(scope, prunable=lambda name, leaf: True, floor=floor)
    choose = lambda: [select(tree, tree, sparsity=share) for share in (0.3, 0.7)]
    found = choose()
    monkeypatch.setattr(on_host, "MOST", -1)
    assert_trees_equal(found, choose())


def test_few_scores_are_ranked_without_compiling():
    tree = {"kernel": jax.device_put(np.arange(35, dtype=np.float32).reshape(5, 7))}
    with no_compilation():
        mask = jp.select.lowest()(tree, tree, sparsity=0.6)
    np.testing.assert_array_equal(np.asarray(mask["kernel"]).ravel(), np.arange(35) >= 21)


def test_units_of_a_network_are_scored_ranked_and_removed_without_compiling():
    draw = lambda *shape: jax.device_put(np.random.default_rng(0).normal(size=shape))
    params = [draw(11, 13), draw(13), draw(13, 3)]
    coupling = jp.couple(lambda w, x: jax.nn.relu(x @ w[0] + w[1]) @ w[2], params, np.ones((2, 11)))
    prune = jp.one_shot(jp.saliency.unit_magnitude(coupling), jp.select.lowest_units(coupling))
    jnp.int32(0).block_until_ready()
    with no_compilation():
        found = prune(params, sparsity=0.5)
        small = jp.shrink(found.params, found.mask, coupling)
    assert [leaf.shape for leaf in small] == [(11, 7), (7,), (7, 3)]
