"""Surgeons on tiny random networks: counts, zeros, and the best weights in closed form."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests import doubles
from tests.fuzz.drawing import Row, each, holds
from tests.fuzz.random_net import Net, close, loss, model

surgeon, select = jp.surgeon, jp.select
DAMPING = 0.5


def is_matrix(name, leaf):
    """The two kernels of `Net`, whatever they are called."""
    return np.ndim(leaf) == 2


@cache
def local_model(kind):
    return surgeon.LocalModel(model(kind), loss, damping=DAMPING, examples=None)


GLOBAL = select.lowest(prunable=is_matrix)
LAYER = select.lowest("layer", prunable=is_matrix, floor=0)
MAKES = {
    "woodfisher": lambda kind: surgeon.woodfisher(local_model(kind), GLOBAL, update="joint"),
    "optimal_brain_surgeon": lambda kind: surgeon.optimal_brain_surgeon(local_model(kind), GLOBAL),
    "joint_surgeon": lambda kind: surgeon.joint_surgeon(local_model(kind), GLOBAL),
    "combinatorial_brain_surgeon": lambda kind: surgeon.combinatorial_brain_surgeon(
        local_model(kind), GLOBAL, draws=2),
    "multi_stage_surgeon": lambda kind: surgeon.multi_stage_surgeon(
        local_model(kind), GLOBAL, stages=2, tuning=1),
    "exact_obs": lambda kind: surgeon.exact_obs(model(kind), select=LAYER, damping=0.1),
    "sparse_gpt": lambda kind: surgeon.sparse_gpt(model(kind), select=LAYER, damping=0.1),
}  # fmt: skip


FAST = ("exact_obs",)


@cache
def made(name, kind):
    return MAKES[name](kind)


def matrices(leaves):
    """The two kernels as one vector."""
    return np.concatenate([np.asarray(leaves[i], np.float64).ravel() for i in (0, 2)])


def fisher(net):
    """`F + damping I` over the kernels."""
    sizes = np.cumsum([x.size for x in net.leaves])
    kernel = np.r_[0 : sizes[0], sizes[1] : sizes[2]]
    g = net.truth["gradient"][:, kernel]
    return g.T @ g / len(g) + DAMPING * np.eye(g.shape[1])


def best_moves(h, w, keep):
    """The minimum of `1/2 d'Hd` with `d = -w` where nothing is kept."""
    d = np.where(keep, 0.0, -w)
    d[keep] = -np.linalg.solve(h[np.ix_(keep, keep)], h[np.ix_(keep, ~keep)] @ d[~keep])
    return d


def pruned_by(name):
    def law(draw):
        net = Net(draw)
        if net.near_a_kink:
            return
        n = net.leaves[0].size + net.leaves[2].size
        sparsity = draw.number(0, max(n - 2, 0)) / n
        prune = made(name, net.kind)
        found = prune(net.tree, net.batch, sparsity=sparsity)
        assert jax.tree.structure(found.params) == jax.tree.structure(net.tree)
        leaves, masks = (jax.tree.leaves(t) for t in (found.params, found.mask))
        for i in (1, 3):
            assert masks[i].all()
            np.testing.assert_array_equal(leaves[i], jax.tree.leaves(net.tree)[i])
        w, keep = matrices(leaves), matrices(masks).astype(bool)
        assert np.isfinite(w).all()
        np.testing.assert_array_equal(w[~keep], 0)
        if name in ("exact_obs", "sparse_gpt"):
            goes = sum(round(sparsity * net.leaves[i].size) for i in (0, 2))
            for error in found.info["output_error"].values():
                assert error["updated"] <= error["removed"] * (1 + 1e-4) + 1e-6
        else:
            goes = round(sparsity * n)
        assert (~keep).sum() == goes
        if name == "woodfisher":
            h, old = fisher(net), matrices(net.leaves)
            moves = best_moves(h, old, keep)
            np.testing.assert_allclose(w - old, moves, atol=1e-3 * np.abs(old).max())
            inverse = np.diag(np.linalg.inv(h))
            worth = old**2 / (2 * inverse)
            again = doubles.one_ranking(
                [worth[: net.leaves[0].size], worth[net.leaves[0].size :]], sparsity
            )
            edge = np.sort(worth)
            if np.diff(edge).min(initial=1) > 1e-3 * edge.max():  # no two that rounding may swap
                np.testing.assert_array_equal(keep, np.concatenate(again))
        bad = (net.batch[0] * jnp.nan, net.batch[1])
        with pytest.raises(ValueError, match=r"NaN|finite"):
            prune(net.tree, bad, sparsity=sparsity)
        with pytest.raises(ValueError, match="must lie in"):
            prune(net.tree, net.batch, sparsity=1.0)

    return law


@cache
def woodfisher_scores(kind):
    return jax.jit(surgeon.woodfisher_scores(local_model(kind), prunable=is_matrix))


def inverse_scores(draw):
    """`w^2 / 2 (F + damping I)^-1`, NaN for what is not prunable."""
    net = Net(draw)
    if net.near_a_kink:
        return
    leaves = jax.tree.leaves(woodfisher_scores(net.kind)(net.tree, net.batch))
    close(matrices(leaves), matrices(net.leaves) ** 2 / (2 * np.diag(np.linalg.inv(fisher(net)))),
          1e-3)  # fmt: skip
    assert np.isnan(leaves[1]).all()
    assert np.isnan(leaves[3]).all()


def second_moments(draw):
    net = Net(draw)
    found = surgeon.input_hessians(net.apply, net.tree, net.batch, prunable=is_matrix)
    assert list(found) == [net.names[0], net.names[2]]
    for name, met in ((net.names[0], net.truth["x"]), (net.names[2], net.truth["h"])):
        (h,) = found[name]
        close(h[0], met.T @ met / len(met), 1e-3)
    with pytest.raises(ValueError, match="other than a layer"):
        surgeon.input_hessians(net.apply, net.tree, net.batch, prunable=lambda *_: True)


LAWS = {f"surgeon.{name}": Row(pruned_by(name), int(name in FAST), 25) for name in MAKES} | {
    "surgeon.woodfisher_scores": Row(inverse_scores, fast=1, slow=60),
    "surgeon.input_hessians": Row(second_moments, fast=1, slow=60),
}


@each(LAWS)
def test_surgeons_prune_what_was_asked_and_move_the_rest_as_least_squares_says(row):
    holds(row)


@pytest.mark.slow
@each(LAWS, wide=True)
def test_surgeons_prune_what_was_asked_on_networks_of_other_shapes(row):
    holds(row, wide=True)
