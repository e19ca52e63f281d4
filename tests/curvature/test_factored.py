"""The Fisher in factors is G'G / n, G written out by `jax.jacrev`."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune as jp
from jaxprune.curvature import factors
from jaxprune.curvature.factored import factored_fisher
from jaxprune.curvature.factors import Layer, Whole
from jaxprune.curvature.fisher_blocks import Blocks
from jaxprune.curvature.layout import Layout, Move
from tests.curvature.test_products import random_like
from tests.dense import flat, float_leaves, is_float
from tests.near import assert_near, no_compilation
from tests.problems import PROBLEMS, Problem, _Draw, _no, softmax_loss, squared_loss

_SOFTMAX = jp.curvature.softmax_root
_NHWC = ("NHWC", "HWIO", "NHWC")


def conv_with_bias(dtype=jnp.float32):
    """Few positions and many channels; then groups, padding, dilation, another memory order."""
    draw = _Draw(20, dtype)
    params = {"a": draw(3, 3, 3, 8), "b": draw(8), "c": draw(8, 4, 2, 2), "d": draw(8, 3)}

    def apply(p, x):
        x = lax.conv_general_dilated(x, p["a"], (2, 2), "SAME", dimension_numbers=_NHWC) + p["b"]
        x = jnp.transpose(jnp.tanh(x), (0, 3, 1, 2))
        numbers = ("NCHW", "OIHW", "NHWC")
        x = lax.conv_general_dilated(
            x, p["c"], (1, 1), ((1, 0), (0, 1)), (1, 1), (2, 1), numbers, feature_group_count=2
        )
        return jnp.mean(x, axis=(1, 2)) @ p["d"]

    batch = (draw(5, 4, 4, 3), draw.labels(3))
    return Problem(params, apply, softmax_loss, batch, _SOFTMAX, _no)


def tokens(dtype=jnp.float32):
    """A lookup, dense layers of tokens, one matrix a head, layers stacked for a scan."""
    draw = _Draw(21, dtype)
    params = {
        "embedding": draw(7, 8),
        "heads": draw(8, 2, 9),
        "mix": draw(18, 8),
        "stack": draw(2, 8, 8),
        "shift": draw(2, 8),
        "out": draw(8, 4),
    }

    def apply(p, ids):
        x = p["embedding"][ids]
        x = (
            x
            + jnp.tanh(jnp.einsum("nti,ihd->nthd", x, p["heads"])).reshape(*ids.shape, -1)
            @ p["mix"]
        )
        step = lambda x, layer: (x + jnp.tanh(x @ layer[0] + layer[1]), None)
        x = lax.scan(step, x, (p["stack"], p["shift"]))[0]
        return x[:, -1] @ p["out"]

    ids = jnp.asarray(draw.rng.integers(0, 7, (5, 3)), jnp.int32)
    return Problem(params, apply, softmax_loss, (ids, draw.labels(4)), _SOFTMAX, _no)


def moved(dtype=jnp.float32):
    """Weights turned, cut, reversed and reshaped on their way; one used twice; one never."""
    draw = _Draw(22, dtype)
    params = {
        "cut": draw(9, 13),
        "heads": draw(3, 8, 5),
        "kernel": draw(6, 8, 1),
        "never": draw(3, 4),
        "twice": draw(6, 6),
        "whole": draw(8, 5),
    }

    def apply(p, x):
        x = jnp.tanh(x @ lax.slice(p["cut"], (1, 2), (9, 12), (2, 2))[::-1, :].T.reshape(5, 4).T)
        x = jnp.tanh(jnp.concatenate([x, x[:, :1]], 1))
        x = jnp.tanh(jnp.tanh(x @ p["twice"]) @ p["twice"])
        x = x @ p["kernel"][..., 0]
        x = jnp.concatenate([x[:, None], jnp.sin(x)[:, None], jnp.cos(x)[:, None]], 1)
        x = jnp.einsum("nhi,hio->nho", x, p["heads"])
        return 0.1 * jnp.dot(p["whole"], x[:, 0].T).T

    batch = (draw(5, 4), draw(5, 8))
    return Problem(params, apply, squared_loss, batch, jp.curvature.squared_error_root, _no)


def batch_normed(dtype=jnp.float32):
    """Examples that depend on each other."""
    draw = _Draw(23, dtype)
    params = {"w": draw(3, 4), "head": draw(4, 3), "scale": draw(4)}

    def apply(p, x):
        z = x @ p["w"]
        z = p["scale"] * (z - z.mean(0)) / jnp.sqrt(z.var(0) + 0.1)
        return jnp.tanh(z) @ p["head"]

    return Problem(params, apply, softmax_loss, (draw(5, 3), draw.labels(3)), _SOFTMAX, _no)


ALL = {
    **PROBLEMS,
    "conv_with_bias": conv_with_bias,
    "tokens": tokens,
    "moved": moved,
    "batch_normed": batch_normed,
}
BLOCKED: list[tuple[str, Blocks]] = [
    *(("tanh_mlp", blocks) for blocks in (None, "leaf", 1, 3, 7, 1000)),
    *((name, blocks) for name in ("moved", "cluttered") for blocks in (None, "leaf", 7)),
    ("conv_with_bias", None),
    ("conv_with_bias", 7),
    ("tokens", "leaf"),
    ("tokens", 50),
]


@cache
def gradients(name):
    """[n, d], flattened float leaves side by side."""
    with jax.enable_x64(True):
        problem = ALL[name](jnp.float64)
        flags = [is_float(x) for x in jax.tree.leaves(problem.params)]
        inputs, targets = problem.batch

        def slopes(y):
            return jax.grad(lambda y: jnp.sum(problem.loss(y, targets)))(y)

        def merged(some):
            return jp.trees.replace_leaves(problem.params, flags, some)

        leaves = float_leaves(problem.params)
        if name != "batch_normed":
            losses = lambda some: problem.loss(problem.apply(merged(some), inputs), targets)
            rows = jax.jit(jax.jacrev(losses))(leaves)
        else:  # of its own outputs, as `fisher_diagonal` has it
            outputs, pull = jax.vjp(lambda some: problem.apply(merged(some), inputs), leaves)
            s = slopes(outputs)
            each = [pull(jnp.zeros_like(s).at[i].set(s[i]))[0] for i in range(5)]
            rows = jax.tree.map(lambda *x: jnp.stack(x), *each)
        return np.concatenate([np.asarray(r).reshape(5, -1) for r in rows], axis=1)


@cache
def fisher_of(name, dtype=jnp.float64, **options):
    """In float64 only where 64-bit types are on."""
    problem = ALL[name](dtype)
    measured = factored_fisher(problem.apply, problem.loss, **options)
    return problem, measured(problem.params, problem.batch)


def block_diagonal(params, matrix, blocks):
    """The matrix with only its blocks left."""
    sizes = [x.size for x in float_leaves(params)]
    keep = np.zeros(matrix.shape, bool) if blocks is not None else np.ones(matrix.shape, bool)
    start = 0
    for size in sizes:
        step = blocks if isinstance(blocks, int) else max(size, 1)
        for low in range(0, size, step):
            here = slice(start + low, start + min(low + step, size))
            keep[here, here] = True
        start += size
    return np.where(keep, matrix, 0)


@pytest.mark.every(5)
@pytest.mark.parametrize("name", ALL)
def test_products_gram_columns_and_diagonal(name, x64):
    problem, fisher = fisher_of(name)
    g, rng = gradients(name), np.random.default_rng(4)
    v, q = random_like(problem.params, 3), rng.normal(size=5)
    leaves = jax.tree.leaves(problem.params)
    at = [rng.integers(0, max(x.size, 1), 6 if x.size else 0) for x in leaves]
    columns = lambda f: [f.columns(i, some) for i, some in enumerate(at)]
    back, diagonal = jax.jit(lambda f, q: (f.transposed(q), f.diagonal()))(fisher, q)
    through, gram, grams, found = jax.jit(
        lambda f, v: (f.times(v), f.gram(), f.leaf_grams(), columns(f))
    )(fisher, v)

    assert_near(through, g @ flat(problem.params, v), jnp.float64)
    assert_near(flat(problem.params, back), g.T @ q, jnp.float64)
    assert_near(gram, g @ g.T, jnp.float64)
    assert_near(sum(grams), gram, jnp.float64)
    assert_near(flat(problem.params, diagonal), (g**2).mean(0), jnp.float64)
    measured = jp.curvature.fisher_diagonal(problem.apply, problem.loss, second_moment=False)
    other = measured(problem.params, problem.batch).mean
    assert_near(flat(problem.params, diagonal), flat(problem.params, other), jnp.float64)
    for tree in (back, diagonal):
        assert jax.tree.structure(tree) == jax.tree.structure(problem.params)
        for x, leaf in zip(jax.tree.leaves(tree), leaves, strict=True):
            assert x.shape == np.shape(leaf)
            assert is_float(leaf) or not np.any(x)
    start = 0
    for i, leaf in enumerate(leaves):
        own = g[:, start : start + leaf.size] if is_float(leaf) else np.zeros((5, leaf.size))
        assert_near(grams[i], own @ own.T, jnp.float64)
        assert_near(found[i], own[:, at[i]], jnp.float64)
        start += leaf.size * is_float(leaf)


@pytest.mark.every(5)
@pytest.mark.parametrize(("name", "blocks"), BLOCKED)
def test_products_and_solves_in_blocks(name, blocks, x64):
    problem, fisher = fisher_of(name)
    v, g = random_like(problem.params, 5), gradients(name)
    whole = block_diagonal(problem.params, g.T @ g / 5, blocks)
    damped, vector = whole + 0.3 * np.eye(len(whole)), flat(problem.params, v)
    turned = fisher.fisher_vp(v, blocks=blocks)
    assert_near(flat(problem.params, turned), whole @ vector, jnp.float64)
    found = fisher.inverse_vp(v, 0.3, blocks)
    roundings = 10 * np.linalg.cond(damped)
    truth = np.linalg.solve(damped, vector)
    assert_near(flat(problem.params, found), truth, jnp.float64, roundings)
    again = fisher.fisher_vp(found, 0.3, blocks)
    assert_near(flat(problem.params, again), vector, jnp.float64, roundings)


@pytest.mark.parametrize("blocks", ["leaf", 4])
def test_a_leaf_of_fewer_entries_than_examples_is_solved_itself(blocks):
    """By Woodbury float32 loses every digit of it at dampings that large leaves take well."""
    rng = np.random.default_rng(0)
    params = {"b": jnp.zeros(4), "w": jnp.asarray(rng.normal(size=(9, 4)), jnp.float32)}
    x, y = (jnp.asarray(rng.normal(size=(400, k)), jnp.float32) for k in (9, 4))
    apply = lambda p, x: x @ p["w"] + p["b"]
    loss = lambda y, t: jnp.sum((y - t) ** 2, axis=1)
    fisher = jp.curvature.factored_fisher(apply, loss)(params, (x, y))
    residual = np.asarray(apply(params, x) - y, np.float64)
    damped = 4 * residual.T @ residual / 400 + 1e-6 * np.eye(4)
    found = fisher.inverse_vp(jax.tree.map(jnp.ones_like, params), 1e-6, blocks)["b"]
    assert_near(found, np.linalg.solve(damped, np.ones(4)), jnp.float32)
    diagonal = fisher.inverse_diagonal(1e-6, blocks)["b"]
    assert_near(diagonal, np.diag(np.linalg.inv(damped)), jnp.float32)


def test_examples_that_depend_on_each_other_in_blocks(x64):
    problem, fisher = fisher_of("batch_normed", microbatch=2)
    g, v = gradients("batch_normed"), random_like(problem.params, 6)
    damped = block_diagonal(problem.params, g.T @ g / 5, 4) + 0.2 * np.eye(g.shape[1])
    found = fisher.inverse_vp(v, 0.2, 4)
    truth = np.linalg.solve(damped, flat(problem.params, v))
    assert_near(flat(problem.params, found), truth, jnp.float64, 1e4)


@pytest.mark.every(3)
@pytest.mark.parametrize("name", ["tanh_mlp", "conv_with_bias", "tokens", "moved"])
def test_in_float32(name):
    problem, fisher = fisher_of(name, jnp.float32)
    g, v = gradients(name), random_like(problem.params, 7)
    assert_near(fisher.gram(), g @ g.T, jnp.float32)
    damped = g.T @ g / 5 + 0.5 * np.eye(g.shape[1])
    truth = np.linalg.solve(damped, flat(problem.params, v))
    # (v - P v) / damping loses as many digits as F / damping has.
    roundings = 10 * np.linalg.cond(damped)
    for found in (fisher.inverse_vp(v, 0.5), jax.jit(lambda f, v: f.inverse_vp(v, 0.5))(fisher, v)):
        assert_near(flat(problem.params, found), truth, jnp.float32, roundings)


def test_which_leaves_are_held_in_factors(x64):
    _, fisher = fisher_of("conv_with_bias")
    assert [type(f) for f in fisher.factors] == [Layer, Whole, Layer, Layer]
    assert fisher.factors[0].positions == 4
    _, fisher = fisher_of("tokens")
    kinds = dict(zip(sorted(tokens().params), fisher.factors, strict=True))
    assert {k for k, f in kinds.items() if isinstance(f, Layer)} == {"heads", "mix", "out", "stack"}
    assert kinds["stack"].layout.layer == (2, 8, 8)
    _, fisher = fisher_of("moved")
    kinds = dict(zip(sorted(moved().params), fisher.factors, strict=True))
    assert all(isinstance(f, Layer) for f in kinds.values())
    assert kinds["twice"].positions == 2
    assert kinds["never"].inputs.size == 0


@pytest.mark.parametrize("microbatch", [1, 2, 100])
@pytest.mark.parametrize("name", ["tokens", "moved"])
def test_the_microbatch_changes_nothing_but_memory(name, microbatch, x64):
    _, whole = fisher_of(name)
    _, fisher = fisher_of(name, microbatch=microbatch)
    assert jax.tree.structure(fisher) == jax.tree.structure(whole)
    for a, b in zip(jax.tree.leaves(fisher), jax.tree.leaves(whole), strict=True):
        assert_near(a, b, jnp.float64)


def test_inside_jit_and_out_of_it(x64):
    problem, fisher = fisher_of("tanh_mlp")
    measured = jax.jit(factored_fisher(problem.apply, problem.loss, microbatch=3))
    solve = jax.jit(lambda fisher, v, damping: fisher.inverse_vp(v, damping, 9))
    made, v = measured(problem.params, problem.batch), random_like(problem.params, 8)
    found, truth = solve(made, v, 0.1), fisher.inverse_vp(v, 0.1, 9)
    assert_near(flat(problem.params, found), flat(problem.params, truth), jnp.float64, 1e4)
    with no_compilation():  # another Fisher of the same model is the same kind of pytree
        solve(measured(v, problem.batch), v, 0.2)


def layer(rng, n, p, b, i, o):
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))
    shape = (i, b, o)
    turn = Move("transpose", shape, (b, i, o), (1, 0, 2))
    return Layer(draw(n, p, b, i), draw(n, p, b, o), Layout(shape, (turn,), (b, i, o)))


@pytest.mark.every(5)
@pytest.mark.parametrize("entries", [1, 40, 1 << 20])
@pytest.mark.parametrize(
    "shape", [(6, 1, 1, 5, 4), (4, 3, 2, 5, 3), (3, 2, 1, 9, 11), (7, 9, 1, 2, 3)]
)
def test_whatever_fits_at_once(shape, entries, x64, monkeypatch):
    monkeypatch.setattr(factors, "budget", lambda dtype: entries)
    rng = np.random.default_rng(0)
    held = layer(rng, *shape)
    g = np.einsum("npbi,npbo->nibo", held.inputs, held.deltas)
    rows = g.reshape(shape[0], -1)
    for gram in (held.gram(), held._gram_of_pairs(), held._gram_of_gradients()):
        assert_near(gram, rows @ rows.T, jnp.float64)
    assert_near(held.squares(), (g**2).sum(0), jnp.float64)
    projections = jnp.asarray(rng.normal(size=(shape[0], 3)))
    wanted = ((np.asarray(projections).T @ rows) ** 2).sum(0).reshape(g.shape[1:])
    for factor in (held, factors.Whole(jnp.asarray(g))):
        assert_near(factor.projected_squares(projections), wanted, jnp.float64, 64)
    at = rng.integers(0, rows.shape[1], 10)
    assert_near(held.columns(jnp.asarray(at)), rows[:, at], jnp.float64)
