"""Eight devices in a 4 x 2 mesh, four ways to lay a network on them, and the network."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from tests.problems import Problem, softmax_loss

BOTH = ("data", "model")
LAYOUTS = {
    # where kernels of rank 4, kernels of rank 2, vectors and examples are cut
    "data parallel": (P(), P(), P(), P(BOTH)),
    "tensor parallel": (P(None, None, None, "model"), P(None, "model"), P("model"), P("data")),
    "fully sharded": (P(None, None, None, BOTH), P(BOTH, None), P(BOTH), P(BOTH)),
    "data x model": (P(None, None, "data", "model"), P("data", "model"), P("model"), P("data")),
}


def mesh_of(kind=AxisType.Auto):
    return jax.make_mesh((4, 2), BOTH, axis_types=(kind, kind))


def spec_of(leaf, layout):
    four, two, one, _ = LAYOUTS[layout]
    return {4: four, 2: two, 1: one}.get(np.ndim(leaf), P())


def shardings(tree, layout, mesh):
    """Where the leaves of a tree of parameters lie."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, spec_of(leaf, layout)), tree)


def examples(tree, layout, mesh):
    """Where the leaves of a batch lie."""
    return jax.tree.map(lambda _: NamedSharding(mesh, LAYOUTS[layout][3]), tree)


def problem():
    """A convolution and two dense layers, whose axes eight devices divide; arrays on the host."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: (0.5 * rng.normal(size=shape)).astype(np.float32)
    params = {
        "conv": {"kernel": draw(3, 3, 4, 8), "bias": draw(8)},
        "dense": {"kernel": draw(32, 16), "bias": draw(16)},
        "head": {"kernel": draw(16, 8), "bias": draw(8)},
    }
    batch = (draw(16, 4, 4, 4), rng.integers(0, 8, 16).astype(np.int32))
    return Problem(params, apply, softmax_loss, batch, jp.curvature.softmax_root, lambda _: True)


def apply(params, x):
    maps = lax.conv_general_dilated(
        x, params["conv"]["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    maps = jax.nn.relu(maps + params["conv"]["bias"])
    hidden = maps.reshape(x.shape[0], -1) @ params["dense"]["kernel"] + params["dense"]["bias"]
    return jax.nn.relu(hidden) @ params["head"]["kernel"] + params["head"]["bias"]


def tied_scores(params):
    """Scores with many ties, for every leaf."""
    rng = np.random.default_rng(1)
    draw = lambda leaf: np.round(4 * np.abs(rng.normal(size=np.shape(leaf)))) / 4
    return jax.tree.map(lambda leaf: draw(leaf).astype(np.float32), params)


def lies_as(tree, like):
    """Does every leaf lie where the leaf of the other tree does?"""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(like), strict=True)
    return all(
        a.sharding.device_set == b.sharding.device_set
        and a.sharding.is_equivalent_to(b.sharding, jnp.ndim(b))
        for a, b in pairs
    )
