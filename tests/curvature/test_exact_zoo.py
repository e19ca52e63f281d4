"""exact_diagonal against jax.hessian on smooth networks: each way a leaf can take."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import MultiHeadDotProductAttention
from jax import lax

import jaxprune as jp
from jaxprune.curvature.residual import residual_bends, watched
from jaxprune.jaxpr.pullback import pull_back
from tests.curvature.model_zoo import Net
from tests.curvature.test_zoo import of_vector, quickly
from tests.dense import flat
from tests.near import assert_near
from tests.problems import softmax_loss

N = 3


class Perceptron(nn.Module):
    hidden: tuple[int, ...]
    act: object = jnp.tanh
    norm: bool = False

    @nn.compact
    def __call__(self, x):
        for width in self.hidden:
            x = nn.Dense(width)(x)
            x = self.act(nn.LayerNorm()(x) if self.norm else x)
        return nn.Dense(3)(x)


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4)(x)
        x = x + nn.Dense(4)(nn.gelu(nn.Dense(3)(x)))
        return nn.Dense(3)(nn.silu(x))


class Convolutional(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Conv(2, (3, 3), padding="VALID")(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = jnp.tanh(nn.Conv(3, (2, 2))(x))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


class Normed(nn.Module):
    """A BatchNorm in evaluation: its statistics are leaves, and the variance bends the model."""

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x))
        return nn.Dense(3)(jnp.tanh(x))


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + MultiHeadDotProductAttention(2, qkv_features=4)(x, x)
        return nn.Dense(3)(jnp.tanh(x).mean(axis=1))


class Gated(nn.Module):
    """A product of two branches that both depend on the data."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.Dense(4)(x) * nn.sigmoid(nn.Dense(4)(x)))


FLAT, TOKENS, IMAGES = (N, 3), (N, 3, 4), (N, 6, 5, 2)
NETS = {  # model, inputs, leaves that take a product a parameter
    "tanh, one hidden layer": (Perceptron((4,)), FLAT),
    "tanh, two hidden layers": (Perceptron((4, 3)), FLAT),
    "tanh, four hidden layers": (Perceptron((4, 3, 3, 2)), FLAT),
    "gelu": (Perceptron((4, 3), nn.gelu), FLAT),
    "silu": (Perceptron((4, 3, 3), nn.silu), FLAT),
    "softplus": (Perceptron((4, 3), nn.softplus), FLAT),
    "elu": (Perceptron((4, 3), nn.elu), FLAT),
    "square": (Perceptron((4, 3), jnp.square), FLAT),
    "mixed with relu": (Perceptron((4, 3), lambda x: nn.relu(x) + 0.1 * jnp.sin(x)), FLAT),
    "tanh on tokens": (nn.Sequential([Perceptron((4,)), lambda x: x.mean(1)]), TOKENS),
    "layer norm": (Perceptron((4, 3), norm=True), FLAT),
    "residual": (Residual(), FLAT),
    "convolutions": (Convolutional(), IMAGES),
    "batch norm": (Normed(), FLAT),
    "attention": (Attention(), TOKENS),
    "gated": (Gated(), FLAT),
}


@functools.cache
def case(name):
    """(net, [n, p] diagonals by jax.hessian)."""
    model, shape = NETS[name]
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=shape))
        params = model.init(jax.random.key(0), x)
        draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.6)
        params = jax.tree.map(
            lambda leaf: abs(draw(leaf)) + 0.5 if leaf.ndim < 2 else draw(leaf), params
        )
        net = Net(params, model.apply, (x, jnp.array([0, 2, 1])))
        vector, logits = of_vector(net)
        losses = lambda v: softmax_loss(logits(v), net.batch[1])
        hessians = quickly(jax.jacfwd(jax.jacrev(losses)))(vector)
        return net, np.einsum("npp->np", np.asarray(hessians))


LONG = ("attention", "convolutions", "layer norm", "tanh, four hidden layers")


@pytest.mark.every(5)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in LONG[:2] else []) for n in NETS]
)
def test_it_is_the_diagonal_of_the_hessian(name, x64):
    net, truth = case(name)
    exact = jp.curvature.exact_diagonal(net.apply, softmax_loss, root=jp.curvature.softmax_root)
    found = quickly(exact)(net.params, net.batch)
    assert_near(flat(net.params, found.mean), truth.mean(0), jnp.float64, 1e4)
    assert_near(flat(net.params, found.second_moment), (truth**2).mean(0), jnp.float64, 1e4)
    assert found.is_hessian
    assert found.fallback_paths == ()


@pytest.mark.parametrize(
    "name",
    ["tanh, one hidden layer", *(pytest.param(n, marks=pytest.mark.slow) for n in LONG[1:])],
)
def test_without_a_root_and_in_microbatches_it_is_the_same(name, x64):
    net, truth = case(name)
    exact = jp.curvature.exact_diagonal(net.apply, softmax_loss, microbatch=2, chunk=3)
    found = exact(net.params, net.batch)
    assert_near(flat(net.params, found.mean), truth.mean(0), jnp.float64, 1e4)


def test_more_outputs_than_autodiff_takes_are_no_obstacle(x64):
    net = Perceptron((3,))
    wide = lambda params, x: jnp.repeat(net.apply(params, x), 30, axis=1)
    x = jax.random.normal(jax.random.key(0), FLAT, jnp.float64)
    params = jax.tree.map(lambda p: p.astype(jnp.float64), net.init(jax.random.key(1), x))
    loss = lambda y, t: jnp.sum(jnp.sin(y), axis=1)
    found = jp.curvature.exact_diagonal(wide, loss)(params, (x, x))
    vector, logits = of_vector(Net(params, wide, (x, x)))
    total = lambda v: jnp.mean(loss(logits(v), None))
    truth = np.diag(jax.hessian(total)(vector))
    assert_near(flat(params, found.mean), truth, jnp.float64, 1e4)


def _image_of_weights(params, x):
    """Convolutions of a parameter, the data being the kernel: no layer that taps know."""
    numbers = ("NHC", "HIO", "NHC")
    one = lambda k: lax.conv_general_dilated(
        params["w"], k, (1,), "SAME", dimension_numbers=numbers
    )
    return jnp.tanh(jax.vmap(one)(x)[:, 0]).sum(axis=1) @ params["head"]


def _low_rank(params, x):
    return jnp.tanh(x[:, 0] @ (params["a"] @ params["b"])) @ params["head"]


@pytest.mark.parametrize(
    ("apply", "shapes"),
    [
        (_image_of_weights, {"w": (1, 5, 2), "head": (2, 3)}),
        (_low_rank, {"a": (2, 2), "b": (2, 3), "head": (3, 3)}),
    ],
)
def test_parameters_that_no_layer_reads_alone_are_exact_too(apply, shapes, x64):
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    net = Net(params, apply, (jnp.asarray(rng.normal(size=(N, 3, 2, 2))), jnp.array([0, 2, 1])))
    if apply is _low_rank:
        net = net._replace(batch=(net.batch[0][:, :, 0], net.batch[1]))
    vector, logits = of_vector(net)
    losses = lambda v: softmax_loss(logits(v), net.batch[1])
    truth = np.einsum("npp->np", jax.jacfwd(jax.jacrev(losses))(vector))
    found = jp.curvature.exact_diagonal(apply, softmax_loss)(params, net.batch)
    assert_near(flat(params, found.mean), truth.mean(0), jnp.float64, 1e4)
    assert_near(flat(params, found.second_moment), (truth**2).mean(0), jnp.float64, 1e4)


READ_OFF = {  # leaves whose curvature is read off without a product a unit
    "tanh, two hidden layers": 6,
    "tanh, four hidden layers": 6,  # the upper two hidden layers, and the last
    "gelu": 6,
    "silu": 6,
    "batch norm": 8,
}


@pytest.mark.every(3)
@pytest.mark.parametrize("name", READ_OFF)
def test_the_cheap_way_is_taken_where_it_is_exact(name, x64):
    """By counting: the variables at which the bend could be carried."""
    net, _ = case(name)
    found = pull_back(net.apply, net.params, net.batch[0], watched)
    total = lambda y: jnp.sum(softmax_loss(y, net.batch[1]))
    slopes = found.pull(jax.grad(total)(found.outputs)[None]).variables
    bends = residual_bends(found, {v: s[0] for v, s in slopes.items()})
    tapped = found.tapped
    carried = 0
    for site in tapped.sites:
        (result,) = tapped.program.equations[site.key[0]].results
        carried += result not in bends or bends[result].diagonal is not None
    for leaf in tapped.direct:
        bend = bends.get(tapped.program.arguments[leaf])
        carried += bend is None or bend.diagonal is not None
    assert carried == READ_OFF[name]
