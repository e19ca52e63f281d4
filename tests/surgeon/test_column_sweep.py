"""sparse_gpt against the paper's loop over columns, and what it keeps to."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune as jp
from jaxprune.surgeon.layers.columnwise import sparse_gpt
from jaxprune.surgeon.layers.rowwise import exact_obs
from tests.near import assert_near, assert_trees_equal
from tests.surgeon import layer_doubles
from tests.surgeon.layer_doubles import moment

I, O, N = 12, 5, 40
lowest, n_of_m = jp.select.lowest, jp.select.n_of_m


def problem(seed=0, i=I, o=O, n=N):
    """Inputs that depend on each other, and weights."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, i)) @ rng.normal(size=(i, i)) / i, rng.normal(size=(i, o))


def prune(x, w, sparsity=None, mask=None, **options):
    pruner = sparse_gpt(lambda w, x: x @ w, **options)
    return pruner(jnp.asarray(w), (jnp.asarray(x), None), sparsity=sparsity, mask=mask)


@pytest.mark.parametrize("block", [1, 3, 5, 128])
@pytest.mark.parametrize("sparsity", [0.5, 0.77])
def test_the_sweep_is_the_papers_loop(block, sparsity, x64):
    x, w = problem()
    new, keep = layer_doubles.sparse_gpt(moment(x, 0.01), w, block, sparsity)
    pruned = prune(x, w, sparsity, block=block)
    np.testing.assert_array_equal(pruned.mask, keep)
    assert_near(pruned.params, new, jnp.float64, 10**5)
    assert pruned.info["kept"] == w.size - round(sparsity * w.size)


@pytest.mark.parametrize(("n", "m", "block"), [(2, 4, 128), (2, 4, 6), (1, 3, 3)])
def test_groups_are_chosen_when_the_sweep_reaches_them(n, m, block, x64):
    x, w = problem(1)
    new, keep = layer_doubles.sparse_gpt(moment(x, 0.01), w, 12, n_of_m=(n, m))
    pruned = prune(x, w, select=n_of_m(n, m), block=block)
    np.testing.assert_array_equal(pruned.mask, keep)
    assert (np.asarray(pruned.mask).reshape(-1, m, O).sum(axis=1) == n).all()
    assert_near(pruned.params, new, jnp.float64, 10**5)


def test_groups_across_the_window_of_a_convolution(x64):
    conv = lambda w, x: lax.conv_general_dilated(
        x, w, (1,), "VALID", dimension_numbers=("NHC", "HIO", "NHC")
    )
    x, w = problem(2)
    order = np.arange(I).reshape(2, 2, 3).swapaxes(1, 2).ravel()  # the two of a group together
    new, keep = layer_doubles.sparse_gpt(moment(x[:, order], 0.01), w[order], 12, n_of_m=(1, 2))
    pruner = sparse_gpt(conv, select=n_of_m(1, 2, axis=0))
    pruned = pruner(jnp.asarray(w.reshape(4, 3, O)), (jnp.asarray(x.reshape(N, 4, 3)), None))
    np.testing.assert_array_equal(np.asarray(pruned.mask).reshape(I, O)[order], keep)
    assert_near(np.asarray(pruned.params).reshape(I, O)[order], new, jnp.float64, 10**5)


def test_every_output_loses_its_share_of_each_block(x64):
    x, w = problem(3)
    pruned = prune(x, w, 0.5, select=lowest("output"), block=6)
    mask = np.asarray(pruned.mask)
    assert (mask.reshape(2, 6, O).sum(axis=1) == 3).all()


@pytest.mark.slow
def test_every_output_loses_its_share_where_blocks_do_not_divide_the_inputs():
    x, w = (np.float32(a) for a in problem(3))
    for block in (1, 5, 7):
        mask = np.asarray(prune(x, w, 1 / 3, select=lowest("output"), block=block).mask)
        np.testing.assert_array_equal((~mask).sum(axis=0), [4] * O)


def test_in_one_ranking_the_dense_losses_give_every_leaf_its_number(x64):
    rng = np.random.default_rng(4)
    x = problem(4)[0]
    params = [rng.normal(size=s) * k for s, k in (((I, O), 1), ((O, I), 0.1))]
    apply = lambda p, x: x @ p[0] @ p[1]
    tree = [jnp.asarray(w) for w in params]
    pruned = sparse_gpt(apply, select=lowest("global"))(tree, (x, None), sparsity=0.5)
    losses = []
    for given, w in ((x, params[0]), (x @ params[0], params[1])):
        root = np.linalg.cholesky(np.linalg.inv(moment(given, 0.01))).T
        losses.append((w / np.diag(root)[:, None]) ** 2)
    cut = np.sort(np.concatenate([x.ravel() for x in losses]))[60]
    lost = [int((~np.asarray(m)).sum()) for m in pruned.mask]
    assert lost == [int((x < cut).sum()) for x in losses]
    assert lost[0] < lost[1]


def test_other_selections_are_refused_by_name():
    x, w = (np.float32(a) for a in problem(5, o=6))
    for select in (lowest("output", output_axis=0), jp.select.blocks((3, 2))):
        with pytest.raises(ValueError, match=r"sweep over the inputs of the only leaf.*exact_obs"):
            prune(x, w, 0.5, select=select)


@pytest.mark.parametrize(
    "select", [lowest("layer"), pytest.param(lowest("output"), marks=pytest.mark.slow)],
    ids=["layer", "output"],
)  # fmt: skip
def test_what_was_pruned_stays_pruned_and_counts(select):
    x, w = (np.float32(a) for a in problem(6))
    first = prune(x, w, 0.25, select=select)
    second = prune(x, first.params, 0.75, mask=first.mask, select=select)
    assert not np.any(second.mask & ~first.mask)
    assert second.info["kept"] == 15
    np.testing.assert_array_equal(np.asarray(second.params) != 0, second.mask)
    again = prune(x, second.params, 0.75, mask=second.mask, select=select)
    assert_trees_equal((again.params, again.mask), (second.params, second.mask))
    third = prune(x, first.params, mask=first.mask, select=n_of_m(2, 4))
    assert not np.any(third.mask & ~first.mask)
    assert (np.asarray(third.mask).reshape(3, 4, O).sum(axis=1) <= 2).all()


def test_permuting_outputs_permutes_the_result(x64):
    x, w = problem(7)
    order = np.random.default_rng(0).permutation(O)
    a, b = (prune(x, some, 0.5) for some in (w, w[:, order]))
    np.testing.assert_array_equal(np.asarray(a.mask)[:, order], b.mask)
    assert_near(np.asarray(a.params)[:, order], b.params, jnp.float64)


def test_dead_and_twin_inputs():
    x, w = (np.float32(a) for a in problem(8))
    x[:, [0, 5]] = 0
    pruned = prune(x, w, 1 / 6)
    assert not np.asarray(pruned.mask)[[0, 5]].any()
    assert pruned.info["output_error"][""] == {"removed": 0.0, "updated": 0.0}
    assert np.isfinite(prune(x, w, 0.5, damping=0).params).all()
    x[:, 2] = x[:, 1]
    assert np.isfinite(prune(x, w, 0.5).params).all()
    with pytest.raises(ValueError, match=r"the only leaf are linearly dependent.*damping"):
        prune(x, w, 0.5, damping=0)


@pytest.mark.parametrize(
    "select",
    [lowest("layer"), pytest.param(n_of_m(2, 4), marks=pytest.mark.slow)],
    ids=["layer", "2:4"],
)
def test_exact_is_better_than_the_sweep_and_the_sweep_than_magnitude(select):
    apply = lambda w, x: x @ w
    means = np.zeros(3)
    for seed in range(6):
        x, w = (jnp.asarray(a, jnp.float32) for a in problem(seed))
        magnitude = jp.one_shot(jp.saliency.magnitude(), select)(w, sparsity=0.5).params
        pruners = exact_obs(apply, select=select), sparse_gpt(apply, select=select)
        infos = [prune(w, (x, None), sparsity=0.5).info for prune in pruners]
        found = [info["output_error"][""]["updated"] for info in infos]
        plain = float(jnp.sum((x @ magnitude - x @ w) ** 2) / jnp.sum((x @ w) ** 2))
        means += np.array([*found, plain]) / 6
    assert means[0] < 0.9 * means[1]
    assert means[1] < 0.9 * means[2]
