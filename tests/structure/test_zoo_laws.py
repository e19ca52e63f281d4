"""What removal promises, on a zoo of networks: masked == shrunk, and the rest that follows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune import trees
from jaxprune.jaxpr.flops import flops
from tests.structure.zoo import FULL, NETS

# One of each kind; the others are in the slow set.
FAST = (
    "activations", "bfloat16_mlp", "bidirectional_lstm", "cond", "conv_autoencoder", "convnext",
    "custom_derivatives", "densenet_bc", "dilated_strided_conv", "efficientnet", "gan_generator",
    "glu", "gqa_transformer", "group_norm", "gru", "inception", "lenet5", "lstm_fused",
    "mlp_dataclass", "mlp_mixer", "mobilenet_v2", "multi_task", "nnx_transformer",
    "resnet18", "resnet_option_a", "resnext", "scan_over_layers", "seq2seq_dot_attention",
    "shuffled_groups", "siamese_conv", "stacked_qkv_gated_heads", "text_cnn", "tied_autoencoder",
    "transformer_translator", "unet_resized", "unused_and_integers", "vgg_bn", "vit",
    "wide_resnet", "while_loop",
)  # fmt: skip
SLOW = [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in NETS]


def subset(coupling, seed, share=0.5):
    """Random units of every group, at least one of each."""
    rng = np.random.default_rng(seed)
    kept = {}
    for name, group in coupling.groups.items():
        keep = rng.random(group.units) >= share
        keep[rng.integers(group.units)] = True
        kept[name] = keep
    return kept


def largest(tree):
    return max(float(jnp.max(jnp.abs(x.astype(jnp.float32)))) for x in jax.tree.leaves(tree))


def difference(a, b):
    """The largest difference, relative to the largest entry."""
    apart = jax.tree.map(lambda x, y: x.astype(jnp.float32) - y.astype(jnp.float32), a, b)
    return largest(apart) / largest(a)


def objective(apply):
    """A scalar with a gradient in every output."""

    def value(floats, rest, inputs):
        leaves = [rest[i] if x is None else x for i, x in enumerate(floats)]
        outs = jax.tree.leaves(apply(leaves, *inputs))
        parts = [jnp.sum(jnp.sin(o.astype(jnp.float32) + 0.3)) for o in outs]
        return sum(parts), outs

    return jax.jit(jax.value_and_grad(value, has_aux=True))


def run(apply, tree, inputs):
    """Outputs, and gradients of the floating leaves."""
    leaves, structure = jax.tree.flatten(tree)
    floats = [x if trees.is_float(x) else None for x in leaves]
    rest = [None if trees.is_float(x) else x for x in leaves]
    flat = lambda leaves, *inputs: apply(jax.tree.unflatten(structure, leaves), *inputs)
    (_, outs), grads = objective(flat)(floats, rest, inputs)
    return outs, grads


@pytest.mark.parametrize("name", NETS)
def test_the_groups_are_those_worked_out_by_hand(name):
    net = NETS[name]()
    coupling = jp.couple(net.apply, net.variables, *net.inputs)
    assert tuple(sorted(g.units for g in coupling.groups.values())) == net.groups
    assert not coupling.unknown
    assert coupling.flops() == flops(net.apply, net.variables, *net.inputs)
    for leaf, shape in zip(coupling.labels, coupling.shapes, strict=True):
        assert tuple(map(len, leaf)) == shape


@pytest.mark.parametrize("name", SLOW)
def test_shrunk_equals_masked_in_values_gradients_counts_and_once_more(name):
    net = NETS[name]()
    coupling = jp.couple(net.apply, net.variables, *net.inputs)
    kept = subset(coupling, seed=len(name))
    mask = coupling.mask(kept, net.variables)
    masked = trees.apply_mask(net.variables, mask)
    small = jp.shrink(net.variables, mask, coupling)
    apply = jp.shrunk_apply(coupling, kept)
    tolerance = 2e-2 if "bfloat16" in name else 1e-5
    outs, grads = run(net.apply, masked, net.inputs)
    small_outs, small_grads = run(apply, small, net.inputs)
    assert difference(outs, small_outs) < tolerance
    flags = coupling.vector(kept)
    for axes, whole, part in zip(coupling.labels, grads, small_grads, strict=True):
        if whole is not None:
            sliced = np.asarray(whole)[np.ix_(*[flags[ids] for ids in axes])] if axes else whole
            assert float(jnp.max(jnp.abs(sliced - part), initial=0)) <= 10 * tolerance * (
                largest(grads)
            )
    assert coupling.parameters(kept) == trees.count(small)
    assert coupling.flops(kept) == flops(apply, small, *net.inputs)
    gates = {group: jnp.asarray(k, jnp.float32) for group, k in kept.items()}
    gated = jax.jit(jp.coupling.gated(coupling, net.variables))(gates, *net.inputs)
    assert difference(outs, jax.tree.leaves(gated)) < tolerance

    again = jp.couple(apply, small, *net.inputs)  # the shrunk model is a JAX function too
    assert {n: g.units for n, g in again.groups.items() if g.units > 1} == {
        n: int(k.sum()) for n, k in kept.items() if k.sum() > 1
    }
    if not again.groups:
        return
    fewer = subset(again, seed=1)
    smaller = jp.shrink(small, again.mask(fewer, small), again)
    twice = trees.apply_mask(small, again.mask(fewer, small))
    assert (
        difference(apply(twice, *net.inputs), jp.shrunk_apply(again, fewer)(smaller, *net.inputs))
        < tolerance
    )


@pytest.mark.parametrize(
    "name", ["lenet5", "resnet18", "efficientnet", "einsum_attention", "gqa_transformer"]
)
def test_in_float64_to_the_last_digits(name, x64):
    net = NETS[name]()
    wide = lambda x: x.astype(jnp.float64) if trees.is_float(x) else x
    variables, inputs = jax.tree.map(wide, (net.variables, net.inputs))
    coupling = jp.couple(net.apply, variables, *inputs)
    kept = subset(coupling, seed=3)
    mask = coupling.mask(kept, variables)
    outs = jax.jit(net.apply)(trees.apply_mask(variables, mask), *inputs)
    small = jp.shrink(variables, mask, coupling)
    found = jax.jit(jp.shrunk_apply(coupling, kept))(small, *inputs)
    for a, b in zip(jax.tree.leaves(outs), jax.tree.leaves(found), strict=True):
        assert a.dtype == jnp.float64
        assert float(jnp.max(jnp.abs(a - b))) < 1e-12 * float(jnp.max(jnp.abs(a)))


@pytest.mark.parametrize("name", FULL)
def test_published_networks_are_coupled_whole(name):
    net = FULL[name]()
    coupling = jp.couple(net.apply, net.variables, *net.inputs)
    assert tuple(sorted(g.units for g in coupling.groups.values())) == net.groups
    kept = subset(coupling, seed=0)
    small = jp.structure.shrink_units(net.variables, kept, coupling)
    assert coupling.parameters(kept) == trees.count(small)
    assert coupling.flops(kept) < coupling.flops() == flops(net.apply, net.variables, *net.inputs)
    shapes = jax.eval_shape(jp.shrunk_apply(coupling, kept), small, *net.inputs)
    outs = jax.eval_shape(net.apply, net.variables, *net.inputs)
    assert [x.shape for x in jax.tree.leaves(shapes)] == [x.shape for x in jax.tree.leaves(outs)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "wrn_16_4", "mobilenet_v2", "vit_s16"])
def test_published_networks_shrink_exactly_at_full_size(name):
    net = FULL[name]()
    keys = iter(jax.random.split(jax.random.key(0), 1000))

    def draw(x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.ones(x.shape, x.dtype)
        if len(x.shape) < 2:
            return jax.random.uniform(next(keys), x.shape, x.dtype, 0.5, 1.5)
        return jax.random.normal(next(keys), x.shape, x.dtype) / np.sqrt(np.prod(x.shape[:-1]))

    variables = jax.tree.map(draw, net.variables)
    inputs = jax.tree.map(draw, net.inputs)
    coupling = jp.couple(net.apply, variables, *inputs)
    kept = subset(coupling, seed=0)
    mask = coupling.mask(kept, variables)
    outs = jax.jit(net.apply)(trees.apply_mask(variables, mask), *inputs)
    small = jp.shrink(variables, mask, coupling)
    found = jax.jit(jp.shrunk_apply(coupling, kept))(small, *inputs)
    assert difference(outs, found) < 1e-5
