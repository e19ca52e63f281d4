"""Gates inside functions with a custom derivative, on integers, and for single examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune import trees
from jaxprune.coupling import gated_apply, ones, shrunk_apply


def normal(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


def plain(x, w):
    """A product with the signs of what comes in, and which results are positive."""
    z = jnp.sign(x) @ w
    return z + z**2 / 9, (z > 0).astype(int)


@jax.custom_vjp
def pulled(x, w):
    return plain(x, w)


def pull(saved, cotangents):
    x, w = saved
    return cotangents[0] @ w.T, x.T @ cotangents[0]


pulled.defvjp(lambda x, w: (plain(x, w), (x, w)), pull)


@jax.custom_jvp
def pushed(x, w):
    return plain(x, w)


@pushed.defjvp
def _(primals, tangents):
    (x, w), (dx, dw) = primals, tangents
    z, positive = plain(x, w)
    return (z, positive), (dx @ w + x @ dw, np.zeros(positive.shape, jax.dtypes.float0))


def model(layer):
    """The units of the first two kernels end inside the layers."""

    def apply(w, x):
        h, _ = layer(jnp.tanh(x @ w[0]), w[1])
        h, positive = layer(jnp.tanh(h), w[2])
        return h * (1 + positive)

    return apply


LAYERS = {"vjp": pulled, "jvp": pushed}
SHAPES = (5, 6), (6, 7), (7, 3)


def made(layer):
    weights, [x] = normal(*SHAPES), normal((4, 5), seed=1)
    apply = model(layer)
    return apply, weights, x, jp.couple(apply, weights, x)


def slopes(apply, *args):
    return jax.grad(lambda *args: (apply(*args) ** 2).sum(), argnums=(0, 1))(*args)


def assert_close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), found, expected
    )


@pytest.mark.parametrize("name", LAYERS)
def test_gates_of_one_leave_the_authors_gradient(name, x64):
    apply, weights, x, coupling = made(LAYERS[name])
    assert [group.units for group in coupling.groups.values()] == [6, 7]
    run = gated_apply(coupling)
    gates = ones(coupling, jnp.float64)
    assert_close(run(weights, gates, x), apply(weights, x))
    expected = slopes(apply, weights, x)
    assert_close(slopes(lambda w, x: run(w, gates, x), weights, x), expected)
    assert_close(
        jax.jit(lambda w, x: slopes(lambda w, x: run(w, gates, x), w, x))(weights, x), expected
    )


@pytest.mark.parametrize("name", LAYERS)
def test_gates_of_zero_and_one_have_the_masked_models_gradient(name, x64):
    apply, weights, x, coupling = made(LAYERS[name])
    rng = np.random.default_rng(2)
    kept = {n: np.arange(g.units) != rng.integers(g.units) for n, g in coupling.groups.items()}
    mask = coupling.mask(kept, weights)
    masked = lambda w, x: apply(trees.apply_mask(w, mask), x)
    gates = {n: jnp.asarray(keep, jnp.float64) for n, keep in kept.items()}
    run = lambda w, x: gated_apply(coupling)(w, gates, x)
    assert_close(run(weights, x), masked(weights, x))
    assert_close(slopes(run, weights, x), slopes(masked, weights, x))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("examples", [None, 4])
def test_values_and_slopes_of_gates_are_those_of_the_function_as_it_is_written(name, examples, x64):
    _, weights, x, coupling = made(LAYERS[name])
    rng = np.random.default_rng(3)
    gates = jax.tree.map(
        lambda g: jnp.asarray(rng.uniform(0.2, 1.5, g.shape)),
        ones(coupling, jnp.float64, examples=examples),
    )
    last = list(gates)[-1]
    found, expected = (
        jax.value_and_grad(lambda g, run=run: (run(weights, {**gates, last: g}, x) ** 2).sum())
        for run in (gated_apply(coupling), gated_apply(coupling, model(plain)))
    )
    assert_close(found(gates[last]), expected(gates[last]))


def test_gates_of_examples_have_every_examples_slope(x64):
    _, weights, x, coupling = made(pulled)
    run = gated_apply(coupling)
    total = lambda gates, x: (run(weights, gates, x) ** 2).sum()
    found = jax.grad(total)(ones(coupling, jnp.float64, examples=4), x)
    single = [jax.grad(total)(ones(coupling, jnp.float64), x[i : i + 1]) for i in range(4)]
    assert_close(found, jax.tree.map(lambda *rows: jnp.stack(rows), *single))


def integers(w, x):
    small = lambda a: jnp.clip(a * 8, -127, 127).astype(jnp.int8)
    return jnp.matmul(small(jnp.tanh(x @ w[0]) @ w[1]), small(w[2]), preferred_element_type=int)


def test_units_that_are_read_as_integers_have_no_gates():
    weights, [x] = normal((5, 6), (6, 4), (4, 2)), normal((3, 5), seed=1)
    coupling = jp.couple(integers, weights, x)
    assert list(coupling.groups) == ["0", "1"]
    with pytest.raises(ValueError, match=r"\['1'\] are read as int8 at test_replay.py.*no gates"):
        gated_apply(coupling)(weights, ones(coupling), x)
    found = gated_apply(coupling)(weights, ones(coupling, groups=["0"]), x)
    np.testing.assert_array_equal(found, integers(weights, x))


def test_an_input_without_examples_that_is_as_long_as_the_batch_is_explained():
    apply = lambda w, x, place: jax.nn.relu((x + place) @ w[0]) @ w[1]
    weights, inputs = normal((5, 6), (6, 2)), normal((3, 3, 5), (3, 5))
    coupling = jp.couple(apply, weights, *inputs)
    with pytest.raises(
        ValueError, match=r"also read with 6, and fails.*Every input with 3 in front"
    ):
        gated_apply(coupling)(weights, ones(coupling, examples=3), *inputs)


def test_flags_are_lists_too_and_not_traced():
    weights, [x] = normal((5, 3), (3, 2)), normal((4, 5))
    coupling = jp.couple(lambda w, x: jnp.tanh(x @ w[0]) @ w[1], weights, x)
    kept = {"0": [True, False, True]}
    assert jp.structure.shrink_units(weights, kept, coupling)[0].shape == (5, 2)
    with pytest.raises(TypeError, match="'0' are bool"):
        jp.structure.shrink_units(weights, {"0": [1, 0, 1]}, coupling)
    flags = {"0": jnp.array(kept["0"])}
    for traced in (
        lambda kept: jp.structure.shrink_units(weights, kept, coupling),
        lambda kept: shrunk_apply(coupling, kept)(weights, x),
    ):
        with pytest.raises(TypeError, match=r"depend on the units kept.*Shrink outside"):
            jax.jit(traced)(flags)
