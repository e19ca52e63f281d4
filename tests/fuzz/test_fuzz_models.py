"""Random networks in random trees: saliencies, curvatures and surgeons against closed forms."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.fuzz.drawing import Row, each, holds
from tests.fuzz.random_net import Net, close, flat, loss, model

saliency, curvature, surgeon = jp.saliency, jp.curvature, jp.surgeon
KEY = jax.random.key(0)
ROOT = curvature.squared_error_root


def lamp(net):
    scores = []
    for w in net.leaves:
        flat_w = np.abs(w.ravel())
        order = np.argsort(flat_w, kind="stable")
        total = np.cumsum(flat_w[order][::-1] ** 2)[::-1]
        leaf = np.zeros_like(flat_w)
        leaf[order] = np.where(total > 0, flat_w[order] ** 2 / np.where(total > 0, total, 1), 0)
        scores.append(leaf)
    return np.concatenate(scores)


def damage(net, diagonals, spread=0.0):
    d = diagonals * net.vector**2 / 2
    return d.mean(0) + spread * d.std(0)


def share_of_gradient(net):
    size = np.abs(net.vector * net.truth["gradient"].mean(0))
    return size / max(size.sum(), 1e-300)


OF = {
    "magnitude": (lambda a: saliency.magnitude(), lambda n: np.abs(n.vector)),
    "lamp": (lambda a: saliency.lamp(), lamp),
    "taylor": (
        lambda a: saliency.taylor(a, loss),
        lambda n: (n.vector * n.truth["gradient"].mean(0)) ** 2,
    ),
    "snip": (lambda a: saliency.snip(a, loss), share_of_gradient),
    "fisher": (
        lambda a: saliency.fisher(curvature.fisher_diagonal(a, loss)),
        lambda n: damage(n, n.truth["gradient"] ** 2),
    ),
    "optimal_brain_damage": (
        lambda a: saliency.optimal_brain_damage(curvature.exact_diagonal(a, loss, root=ROOT)),
        lambda n: damage(n, n.truth["diagonal"]),
    ),
    "optimal_brain_damage_sd": (
        lambda a: saliency.optimal_brain_damage_sd(curvature.exact_diagonal(a, loss, root=ROOT)),
        lambda n: damage(n, n.truth["diagonal"], 1.0),
    ),
}


@cache
def scorer(name, kind):
    """One saliency for all cases, so that a network's shapes are compiled once."""
    made = OF[name][0](model(kind))
    return made, jax.jit(made)


def scores_of(name):
    # Of the spread half the digits cancel in `mean(x^2) - mean(x)^2`.
    tolerance = 1e-3 if name == "optimal_brain_damage_sd" else 1e-4

    def law(draw):
        net = Net(draw)
        if net.near_a_kink:
            return
        made, jitted = scorer(name, net.kind)
        found = jitted(net.tree, net.batch)
        assert jax.tree.structure(found) == jax.tree.structure(net.tree)
        close(flat(found), OF[name][1](net), tolerance)
        n = len(net.batch[0])
        if draw.wide and n > 1 and OF[name][0] is not OF["lamp"][0]:
            cut = draw.number(1, n - 1)
            parts = [jax.tree.map(lambda a, s=s: a[s], net.batch)
                     for s in (slice(0, cut), slice(cut, n))]  # fmt: skip
            close(flat(saliency.over_batches(made)(net.tree, parts)), OF[name][1](net), 1e-3)

    return law


def added(draw):
    """Stats of two parts are the stats of the whole, and a generator is read once."""
    net = Net(draw)
    if net.near_a_kink:
        return
    made, _ = scorer("taylor", net.kind)
    halves = [net.batch, jax.tree.map(lambda a: 2 * a, net.batch)]
    one, two = (made.measure(net.tree, part) for part in halves)
    total = saliency.add(one, two)
    assert int(total.count) == 2 * len(net.batch[0])
    both = saliency.over_batches(made).measure(net.tree, (part for part in halves))
    close(flat(both.sums), flat(total.sums))
    close(flat(total.sums), flat(one.sums) + flat(two.sums))
    with pytest.raises(ValueError, match="empty"):
        saliency.over_batches(made)(net.tree, [])
    with pytest.raises(TypeError, match="cannot be accumulated"):
        saliency.over_batches(lambda params, batch: params)


def at_random(draw):
    net, key = Net(draw), jax.random.key(draw.number(0, 99))
    found = saliency.random(key)(net.tree)
    drawn = flat(found)
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert len(np.unique(drawn)) == len(drawn)
    np.testing.assert_array_equal(drawn, flat(saliency.random(key)(net.tree)))


@cache
def wanda_of(kind):
    return saliency.wanda(model(kind))


def by_inputs(draw):
    """`|w|` times the norm of what the weight meets; biases, which meet nothing, are NaN."""
    net = Net(draw)
    w, b, v, c = jax.tree.leaves(wanda_of(net.kind)(net.tree, net.batch))
    for found, weights, met in ((w, net.leaves[0], net.truth["x"]), (v, net.leaves[2],
                                                                      net.truth["h"])):  # fmt: skip
        close(found, np.abs(weights) * np.sqrt((met**2).mean(0))[:, None])
    assert np.isnan(b).all()
    assert np.isnan(c).all()
    axes = saliency.output_axes(net.apply, net.tree, net.batch[0])
    assert axes == {net.names[0]: 1, net.names[2]: 1}
    # [out, in], where one output is along an axis that is not the last.
    w = jnp.ones((draw.number(1, 3), 4))
    assert saliency.output_axes(lambda w, x: x @ w.T, w, jnp.ones((1, 4))) == {"": 0}


SALIENCIES = {f"saliency.{name}": Row(scores_of(name), fast=2, slow=60) for name in OF} | {
    "saliency.random": Row(at_random, fast=1, slow=300),
    "saliency.add": Row(added, fast=2, slow=60),
    "saliency.over_batches": Row(added, fast=2, slow=60),
    "saliency.wanda": Row(by_inputs, fast=2, slow=60),
    "saliency.output_axes": Row(by_inputs, fast=2, slow=60),
}


@cache
def measure(name, kind):
    apply, of = model(kind), curvature
    makes = {
        "exact_diagonal": lambda: of.exact_diagonal(apply, loss),
        "gauss_newton_diagonal": lambda: of.gauss_newton_diagonal(apply, loss, root=ROOT),
        "fisher_diagonal": lambda: of.fisher_diagonal(apply, loss),
        "true_fisher_diagonal": lambda: of.true_fisher_diagonal(apply, of.normal),
        "gradient_moments": lambda: of.gradient_moments(apply, loss),
        "hvp": lambda: of.hvp(apply, loss),
        "gauss_newton_vp": lambda: of.gauss_newton_vp(apply, loss),
        "factored_fisher": lambda: of.factored_fisher(apply, loss),
        "sketched_gauss_newton": lambda: of.sketched_gauss_newton(apply, loss, root=ROOT),
        "layer_moments": lambda: of.layer_moments(apply, loss, root=ROOT),
    }
    return jax.jit(makes[name]())


DIAGONALS = {
    "exact_diagonal": lambda t: t["diagonal"],
    "gauss_newton_diagonal": lambda t: t["gauss_newton"],
    "fisher_diagonal": lambda t: t["gradient"] ** 2,
    "true_fisher_diagonal": lambda t: t["gauss_newton"] / 2,  # its loss is half the squares
}


def diagonal(name):
    def law(draw):
        net = Net(draw)
        if net.near_a_kink:
            return
        found = measure(name, net.kind)(net.tree, net.batch)
        rows = DIAGONALS[name](net.truth)
        close(flat(found.mean), rows.mean(0))
        close(flat(found.second_moment), (rows**2).mean(0))
        assert found.is_hessian or name != "exact_diagonal"

    return law


def gradient_moments(draw):
    net = Net(draw)
    if net.near_a_kink:
        return
    found = measure("gradient_moments", net.kind)(net.tree, net.batch)
    close(flat(found.mean), net.truth["gradient"].mean(0), 1e-3)
    close(flat(found.second_moment), (net.truth["gradient"] ** 2).mean(0))


def products(draw):
    """Hessian and Gauss-Newton times a vector: differences of gradients, and `J' 2 J v`."""
    net = Net(draw)
    if net.near_a_kink:
        return
    v = draw.rng().normal(size=net.vector.size)
    vector = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), net.like(v))
    j = net.truth["jacobian"]
    close(
        flat(measure("gauss_newton_vp", net.kind)(net.tree, net.batch, vector)),
        2 * np.einsum("nkd,nk->d", j, j @ v) / len(j),
        1e-3,
    )
    step = 1e-5
    ahead, behind = (net.at(net.vector + s * step * v)["gradient"].mean(0) for s in (1, -1))
    if net.kind == "tanh":
        scale = np.abs(np.einsum("nkd,nkd->d", j, j)).max() * np.abs(v).max()
        found = flat(measure("hvp", net.kind)(net.tree, net.batch, vector))
        assert np.abs(found - (ahead - behind) / (2 * step)).max() <= 1e-3 * max(scale, 1e-6)


def factored(draw):
    """G in factors is the gradients: its products, its Gram matrix, its damped inverse."""
    net = Net(draw)
    if net.near_a_kink:
        return
    found, g = measure("factored_fisher", net.kind)(net.tree, net.batch), net.truth["gradient"]
    n, rng = len(g), draw.rng()
    v, q = rng.normal(size=g.shape[1]), rng.normal(size=n)
    vector = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), net.like(v))
    bound = np.linalg.norm(g) + 1e-6
    near = lambda a, b, size: np.testing.assert_allclose(a, b, atol=1e-4 * size, rtol=1e-3)
    near(found.times(vector), g @ v, bound * np.linalg.norm(v))
    near(flat(found.transposed(jnp.asarray(q, jnp.float32))), g.T @ q, bound * np.linalg.norm(q))
    near(found.gram(), g @ g.T, bound**2)
    close(flat(found.diagonal()), (g**2).mean(0), 1e-3)
    damping = float(np.mean(g**2)) + 0.1
    damped = g.T @ g / n + damping * np.eye(len(v))
    near(flat(found.fisher_vp(vector, damping)), damped @ v, bound**2 * np.linalg.norm(v))
    near(
        flat(found.inverse_vp(vector, damping)), np.linalg.solve(damped, v),
        np.linalg.norm(v) / damping,
    )  # fmt: skip


def sketched(draw):
    """Each example's column is `J' R z` for signs z: one of the sums of its columns."""
    net = Net(draw)
    if net.near_a_kink:
        return
    found, j = (
        measure("sketched_gauss_newton", net.kind)(net.tree, net.batch),
        net.truth["jacobian"],
    )
    n, k, _ = j.shape
    signs = np.array(np.meshgrid(*[[-1, 1]] * k)).reshape(k, -1)
    for e in range(n):
        row = flat(found.transposed(jnp.eye(n, dtype=jnp.float32)[e]))
        options = np.sqrt(2) * np.einsum("kd,ks->sd", j[e], signs)
        assert np.abs(options - row).max(1).min() <= 1e-4 * np.abs(options).max()


def layers(draw):
    net = Net(draw)
    if net.near_a_kink:
        return
    found, t = measure("layer_moments", net.kind)(net.tree, net.batch), net.truth
    v = net.leaves[2]
    bends = ((2 * (t["slopes"][:, :, None] * v[None]) ** 2).sum(2).mean(0), np.full(v.shape[1], 2))
    for leaf, met, bend in ((0, t["x"], bends[0]), (2, t["h"], bends[1])):
        shape = net.leaves[leaf].shape
        for part, truth in (("input_mean", met.mean(0)[:, None]),
                            ("input_second_moment", (met**2).mean(0)[:, None]),
                            ("output_curvature", bend[None])):  # fmt: skip
            close(jax.tree.leaves(getattr(found, part))[leaf], np.broadcast_to(truth, shape), 1e-3)


def probed(draw):
    """Where the Hessian is diagonal one probe is exact, whichever it is."""
    n, d = draw.number(1, 4), draw.number(1, 6) if draw.wide else 4
    x = jnp.asarray(draw.rng().normal(size=(n, d)), jnp.float32)
    found = curvature.hutchinson_diagonal(
        lambda w, x: jnp.sin(w) * x, loss, key=jax.random.key(draw.number(0, 9)), probes=1
    )(jnp.full(d, 0.3), (x, jnp.zeros((n, d))))
    expected = np.mean(2 * np.cos(0.6) * np.asarray(x, np.float64) ** 2, axis=0)
    close(found.mean, expected)


def roots(draw):
    """`R R'` is the Hessian of the loss in the outputs."""
    n, k = (draw.number(1, 4), draw.number(1, 5)) if draw.wide else (3, 3)
    y = jnp.asarray(draw.rng().normal(size=(n, k)) * draw.one([0.1, 1, 30]), jnp.float32)
    p = np.exp(np.asarray(y, np.float64))
    p /= p.sum(1, keepdims=True)
    s = 1 / (1 + np.exp(-np.asarray(y, np.float64)))
    diag = lambda rows: np.einsum("nk,kl->nkl", rows, np.eye(k))
    for root, truth in (
        (curvature.softmax_root, diag(p) - np.einsum("nk,nl->nkl", p, p)),
        (curvature.sigmoid_root, diag(s * (1 - s))),
        (curvature.squared_error_root, diag(np.full((n, k), 2.0))),
    ):
        r = np.asarray(jax.jit(root)(y, jnp.zeros(n, jnp.int32)), np.float64)
        np.testing.assert_allclose(np.einsum("nkc,nlc->nkl", r, r), truth, atol=1e-5)


CURVATURES = {f"curvature.{name}": Row(diagonal(name), fast=2, slow=60) for name in DIAGONALS} | {
    "curvature.gradient_moments": Row(gradient_moments, fast=2, slow=60),
    "curvature.hvp": Row(products, fast=2, slow=60),
    "curvature.gauss_newton_vp": Row(products, fast=2, slow=60),
    "curvature.factored_fisher": Row(factored, fast=0, slow=60),
    "curvature.sketched_gauss_newton": Row(sketched, fast=0, slow=60),
    "curvature.layer_moments": Row(layers, fast=2, slow=60),
    "curvature.hutchinson_diagonal": Row(probed, fast=1, slow=60),
    "curvature.softmax_root": Row(roots, fast=2, slow=300),
    "curvature.sigmoid_root": Row(roots, fast=2, slow=300),
    "curvature.squared_error_root": Row(roots, fast=2, slow=300),
}
LAWS = {**SALIENCIES, **CURVATURES}


@each(LAWS)
def test_networks_are_scored_and_measured_as_the_closed_forms_say(row):
    holds(row)


@pytest.mark.slow
@each(LAWS, wide=True)
def test_networks_are_scored_and_measured_as_the_closed_forms_say_in_other_shapes(row):
    holds(row, wide=True)
