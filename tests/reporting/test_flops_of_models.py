"""FLOPs of real models, Linen and NNX, against closed forms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxprune import trees
from jaxprune.jaxpr.flops import flops, flops_by_operation, flops_skipping_zeros

B, T, D, H = 2, 7, 8, 5


def initialised(model, x):
    return jax.eval_shape(model.init, jax.random.key(0), x)


def test_a_linen_mlp_costs_its_kernels_times_the_batch():
    model = nn.Sequential([nn.Dense(H), nn.relu, nn.Dense(3)])
    x = jax.ShapeDtypeStruct((B, D), jnp.float32)
    assert flops(model.apply, initialised(model, x), x) == 2 * B * (D * H + H * 3)


def test_a_linen_lstm_costs_its_gates_at_every_step():
    model = nn.RNN(nn.LSTMCell(H))
    x = jax.ShapeDtypeStruct((B, T, D), jnp.float32)
    assert flops(model.apply, initialised(model, x), x) == 2 * B * T * (D + H) * 4 * H


def test_attention_costs_four_projections_and_two_products_of_tokens():
    model = nn.MultiHeadDotProductAttention(num_heads=4, qkv_features=16)
    x = jax.ShapeDtypeStruct((B, T, D), jnp.float32)
    projections = 3 * B * T * D * 16 + B * T * 16 * D
    tokens = 2 * B * T * T * 16
    assert flops(model.apply, initialised(model, x), x) == 2 * (projections + tokens)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.depthwise = nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs)
        self.head = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.relu(self.depthwise(self.norm(self.conv(x))))
        return self.head(x.mean((1, 2)))


def nnx_net():
    graph, state = nnx.split(nnx.eval_shape(lambda: Net(nnx.Rngs(0))))
    return state, lambda state, x: nnx.merge(graph, state)(x)


def test_an_nnx_net_costs_its_layers():
    state, apply = nnx_net()
    x = jnp.ones((B, 8, 8, 3))
    layers = 4 * 4 * 9 * 3 * 8 + 4 * 4 * 9 * 8 + 8 * 10
    assert flops(apply, state, x) == 2 * B * layers


def test_every_kernel_of_an_nnx_net_is_recognised_and_its_zeros_are_skipped():
    state, apply = nnx_net()
    rng = np.random.default_rng(0)
    mask = jax.tree.map(lambda leaf: rng.random(np.shape(leaf)) < 0.4, state)
    kept = {name: np.count_nonzero(leaf) for name, leaf in trees.named_leaves(mask)}
    positions = {"conv/kernel": 16, "depthwise/kernel": 16, "head/kernel": 1}
    count = flops_by_operation(apply, state, jnp.ones((B, 8, 8, 3)))
    names = trees.paths(state)
    assert [names[op.leaf] for op in count.operations] == list(positions)
    by_hand = sum(2 * B * p * kept[name] for name, p in positions.items())
    assert flops_skipping_zeros(count, mask) == by_hand


def test_the_zeros_of_a_recurrent_kernel_are_skipped_at_every_step():
    model = nn.RNN(nn.OptimizedLSTMCell(H))
    x = jax.ShapeDtypeStruct((B, T, D), jnp.float32)
    params = initialised(model, x)
    rng = np.random.default_rng(0)
    mask = jax.tree.map(lambda leaf: rng.random(leaf.shape) < 0.4, params)
    count = flops_by_operation(model.apply, params, x)
    sparse = flops_skipping_zeros(count, mask)
    # This cell concatenates its gates' kernels: no operation reads one leaf, so none is skipped.
    assert sparse == count.total == 2 * B * T * (D + H) * 4 * H
    plain = nn.RNN(nn.LSTMCell(H))
    kept = sum(np.count_nonzero(m) for m in jax.tree.leaves(mask) if m.ndim == 2)
    assert (
        flops_skipping_zeros(flops_by_operation(plain.apply, params, x), mask) == 2 * B * T * kept
    )


def test_a_tied_embedding_counts_where_it_multiplies():
    class Tied(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            embed = nn.Embed(11, D)
            return embed.attend(embed(tokens))

    tokens = jnp.zeros((B, T), jnp.int32)
    params = Tied().init(jax.random.key(0), tokens)
    count = flops_by_operation(Tied().apply, params, tokens)
    assert count.total == 2 * B * T * D * 11
    assert (
        flops_skipping_zeros(count, jax.tree.map(lambda p: jnp.zeros(p.shape, bool), params)) == 0
    )
