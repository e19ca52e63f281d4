"""What removal promises, on a zoo of networks: masked == shrunk, and the rest that follows."""

from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune import trees
from jaxprune.jaxpr.flops import flops
from tests.structure.net_zoo import FULL, NETS

# One of each kind; the others are in the slow set.
GRADIENTS = (
    "activations", "custom_derivatives", "gru", "lenet5",
    "resnext", "scan_over_layers", "stacked_qkv_gated_heads", "tied_autoencoder",
)  # fmt: skip
FAST = (
    *GRADIENTS, "multi_task", "gqa_transformer", "bfloat16_mlp", "cond", "densenet_bc",
    "gan_generator", "glu", "lstm_fused", "mlp_dataclass", "nnx_cnn", "seq2seq_dot_attention",
    "shuffled_groups", "unused_and_integers", "while_loop",
)  # fmt: skip


PUBLISHED = ("resnet50", "resnet_145_convs", "densenet_bc_100_12", "mobilenet_v2", "gpt2_small")


def some(fast, every=NETS):
    return [pytest.param(n, marks=() if n in fast else pytest.mark.slow) for n in every]


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
    return largest(apart) / (largest(a) + 1e-30)


class Case(NamedTuple):
    """A network with random units removed."""

    coupling: Any
    kept: Any
    masked: Any
    small: Any
    apply: Any


def case(net, seed, share=0.5):
    coupling = jp.couple(net.apply, net.variables, *net.inputs)
    kept = subset(coupling, seed, share)
    mask = coupling.mask(kept, net.variables)
    masked = trees.apply_mask(net.variables, mask)
    small = jp.shrink(net.variables, mask, coupling)
    return Case(coupling, kept, masked, small, jp.shrunk_apply(coupling, kept))


def gradients(apply, tree, inputs):
    """Of a scalar with a gradient in every output; None for leaves that have none."""
    leaves, structure = jax.tree.flatten(tree)
    places = [i for i, x in enumerate(leaves) if trees.is_float(x)]

    def value(floats):
        full = list(leaves)
        for place, leaf in zip(places, floats, strict=True):
            full[place] = leaf
        outs = jax.tree.leaves(apply(jax.tree.unflatten(structure, full), *inputs))
        return sum(jnp.sum(jnp.sin(o.astype(jnp.float32) + 0.3)) for o in outs)

    found = iter(jax.jit(jax.grad(value))([leaves[i] for i in places]))
    return [next(found) if i in places else None for i in range(len(leaves))]


@pytest.mark.parametrize("name", some(FAST))
def test_the_groups_are_those_worked_out_by_hand(name):
    net = NETS[name]()
    coupling = jp.couple(net.apply, net.variables, *net.inputs)
    assert tuple(sorted(g.units for g in coupling.groups.values())) == net.groups
    assert not coupling.unknown
    assert coupling.flops() == flops(net.apply, net.variables, *net.inputs)
    for leaf, shape in zip(coupling.labels, coupling.shapes, strict=True):
        assert tuple(map(len, leaf)) == shape


@pytest.mark.every(5)
@pytest.mark.parametrize("name", some(FAST))
def test_shrunk_and_gated_equal_masked(name):
    net = NETS[name]()
    found = case(net, seed=len(name))
    tolerance = 2e-2 if "bfloat16" in name else 1e-5
    outs = jax.jit(net.apply)(found.masked, *net.inputs)
    assert difference(outs, jax.jit(found.apply)(found.small, *net.inputs)) < tolerance
    assert found.coupling.parameters(found.kept) == trees.count(found.small)
    assert found.coupling.flops(found.kept) == flops(found.apply, found.small, *net.inputs)
    gates = {group: jnp.asarray(k, jnp.float32) for group, k in found.kept.items()}
    gated = jax.jit(jp.coupling.gated(found.coupling, net.variables))(gates, *net.inputs)
    assert difference(outs, gated) < tolerance


@pytest.mark.every(5)
@pytest.mark.parametrize("name", some(GRADIENTS))
def test_gradients_on_kept_slices_are_the_masked_ones(name):
    if "while_loop" in name:
        pytest.skip("a while loop has no reverse derivative")
    net = NETS[name]()
    found = case(net, seed=1)
    tolerance = 2e-2 if "bfloat16" in name else 1e-4
    whole = gradients(net.apply, found.masked, net.inputs)
    small = gradients(found.apply, found.small, net.inputs)
    flags = found.coupling.vector(found.kept)
    scale = max(largest(x) for x in whole if x is not None)
    for axes, a, b in zip(found.coupling.labels, whole, small, strict=True):
        if a is not None:
            sliced = np.asarray(a)[np.ix_(*[flags[ids] for ids in axes])] if axes else a
            assert float(jnp.max(jnp.abs(sliced - b), initial=0)) <= tolerance * scale


@pytest.mark.every(3)
@pytest.mark.parametrize("name", some(GRADIENTS))
def test_the_shrunk_model_can_be_coupled_and_shrunk_again(name):
    net = NETS[name]()
    found = case(net, seed=2, share=0.3)
    again = jp.couple(found.apply, found.small, *net.inputs)  # it is a JAX function too
    # A grouped convolution of which one group is left is an ordinary one, with units of its own.
    assert Counter(int(k.sum()) for k in found.kept.values() if k.sum() > 1) <= Counter(
        g.units for g in again.groups.values()
    )
    kept = subset(again, seed=1)
    mask = again.mask(kept, found.small)
    smaller = jp.shrink(found.small, mask, again)
    outs = jax.jit(found.apply)(trees.apply_mask(found.small, mask), *net.inputs)
    values = jax.jit(jp.shrunk_apply(again, kept))(smaller, *net.inputs)
    assert difference(outs, values) < (2e-2 if "bfloat16" in name else 1e-5)


@pytest.mark.every(3)
@pytest.mark.parametrize(
    "name",
    [
        "lenet5",
        "einsum_attention",
        "gqa_transformer",
        pytest.param("resnet18", marks=pytest.mark.slow),
        pytest.param("efficientnet", marks=pytest.mark.slow),
    ],
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


@pytest.mark.every(3)
@pytest.mark.parametrize("name", some(PUBLISHED, FULL))
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
