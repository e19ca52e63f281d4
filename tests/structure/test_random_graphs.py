"""Random graphs of operations: whatever `couple` calls removable is removed exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxprune as jp
from jaxprune import trees

WIDTH = 6
BATCH = 3
STEPS = (
    "dense", "add", "mul", "concat", "split", "relu", "sigmoid", "exp", "sum", "mean", "max",
    "softmax", "norm", "reshape", "swap", "slice", "reverse", "pad", "scan", "cond", "gather",
    "bias", "tile", "where", "outer", "cumsum",
)  # fmt: skip


@st.composite
def graphs(draw):
    """A list of steps: (name, which value, which other value, a small number)."""
    n = draw(st.integers(2, 9))
    number = st.integers(0, 50)
    return [
        (draw(st.sampled_from(STEPS)), draw(number), draw(number), draw(number)) for _ in range(n)
    ]


def fit(v, x, width, name):
    """A product to a given width, with its own weights, where widths differ."""
    if x.shape[-1] == width:
        return x
    return x @ v(f"{name}_fit", (x.shape[-1], width))


def step(v, name, values, i, j, k, tag):
    """One step: returns a new value [batch, width]."""
    x, y = values[i % len(values)], values[j % len(values)]
    width = x.shape[-1]
    if name == "dense":
        return x @ v(f"{tag}_w", (width, WIDTH - k % 3))
    if name == "bias":
        return x + v(f"{tag}_b", (width,))
    if name in ("add", "mul"):
        y = fit(v, y, width, tag)
        return x + y if name == "add" else x * y
    if name == "concat":
        return jnp.concatenate([x, y], -1)
    if name == "split":
        a, b = jnp.split(x, [max(1, width // 2)], -1)
        return a if k % 2 or not b.shape[-1] else b
    if name in ("relu", "sigmoid", "softmax"):
        return getattr(jax.nn, name)(x)
    if name == "exp":
        return jnp.exp(-jnp.square(x))
    if name == "norm":
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(1 + x.var(-1, keepdims=True))
    if name in ("sum", "mean", "max"):
        return y * getattr(jnp, name)(x, -1, keepdims=True)
    if name == "reshape":
        x = fit(v, x, 6, tag)
        return jnp.tanh(x.reshape(BATCH, 2, 3)).swapaxes(1, 2)[:, k % 3]
    if name == "swap":
        return fit(v, x, 6, tag).reshape(BATCH, 3, 2).sum(1 + k % 2)
    if name == "slice":
        return x[:, k % width :: 1 + k % 2]
    if name == "reverse":
        return x[:, ::-1]
    if name == "pad":
        return jnp.pad(x, ((0, 0), (k % 3, 1)))
    if name == "tile":
        return jnp.tile(x, (1, 2))
    if name == "gather":
        return x[:, np.arange(k, k + 4) % width]
    if name == "where":
        return jnp.where(x > 0.1, x, fit(v, y, width, tag))
    if name == "outer":
        return jnp.einsum("bi,bj->bij", x, y).reshape(BATCH, -1)[:, :24]
    if name == "cumsum":
        return jnp.cumsum(x, -1)
    if name == "scan":
        w = v(f"{tag}_h", (width, width))
        return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), x, None, 2)[0]
    w = v(f"{tag}_c", (width, width))
    return jax.lax.cond(jnp.sum(x) > 0, lambda x: jnp.tanh(x @ w), lambda x: jnp.tanh(x), x)


def model(graph):
    """`apply(variables, x)`, and the variables that it asks for."""
    shapes = {}

    def apply(variables, x, weights=None):
        v = weights or (lambda name, shape: variables[name])
        values = [x @ v("start", (4, WIDTH))]
        for number, (name, i, j, k) in enumerate(graph):
            values.append(jnp.tanh(step(v, name, values, i, j, k, f"{number}_{name}")))
        return values[-1] @ v("end", (values[-1].shape[-1], 2))

    def ask(name, shape):
        shapes[name] = shape
        return jnp.zeros(shape)

    apply(None, jnp.zeros((BATCH, 4)), ask)
    rng = np.random.default_rng(len(shapes))
    variables = {n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in shapes.items()}
    return apply, variables


def check(graph, seed):
    apply, variables = model(graph)
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(BATCH, 4)), jnp.float32)
    coupling = jp.couple(apply, variables, x)
    assert not coupling.unknown
    kept = {}
    for name, group in coupling.groups.items():
        kept[name] = rng.random(group.units) < 0.5
        kept[name][rng.integers(group.units)] = True
    mask = coupling.mask(kept, variables)
    masked = jax.jit(apply)(trees.apply_mask(variables, mask), x)
    small = jp.structure.shrink_units(variables, kept, coupling)
    assert coupling.parameters(kept) == trees.count(small)
    found = jax.jit(jp.shrunk_apply(coupling, kept))(small, x)
    np.testing.assert_allclose(found, masked, rtol=1e-4, atol=1e-4 * (1 + np.abs(masked).max()))
    gates = {name: jnp.asarray(keep, jnp.float32) for name, keep in kept.items()}
    gated = jax.jit(jp.coupling.gated(coupling, variables))(gates, x)
    np.testing.assert_allclose(gated, masked, rtol=1e-4, atol=1e-4 * (1 + np.abs(masked).max()))
    return coupling


@settings(max_examples=12)
@given(graphs(), st.integers(0, 100))
def test_what_is_called_removable_is_removed_exactly(graph, seed):
    check(graph, seed)


@pytest.mark.slow
@settings(max_examples=250)
@given(graphs(), st.integers(0, 100))
def test_many_more_graphs(graph, seed):
    check(graph, seed)


def test_the_graphs_have_units_to_remove():
    rng = np.random.default_rng(0)
    units = []
    for _ in range(30):
        graph = [(rng.choice(STEPS), *rng.integers(0, 50, 3)) for _ in range(4)]
        apply, variables = model(graph)
        units.append(jp.couple(apply, variables, jnp.ones((BATCH, 4))).units)
    assert np.mean(np.array(units) > 0) > 0.4
