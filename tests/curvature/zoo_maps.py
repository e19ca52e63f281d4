"""Rows of the zoo: convolutions, pooling and normalisation."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from tests.curvature.zoo_rows import (
    NHWC,
    Net,
    flat,
    linen,
    plain,
    relu,
    row,
    smooth,
)


def conv(kernel: tuple[int, ...], inputs: tuple[int, ...], layout: Any, **options: Any) -> Net:
    """A convolution, ReLU and a dense readout."""
    strides = options.pop("strides", (1,) * (len(kernel) - 2))
    padding = options.pop("padding", "SAME")

    def maps(w: Any, x: Any) -> Any:
        return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=layout, **options)

    w, x = (jax.ShapeDtypeStruct(s, jnp.float64) for s in (kernel, (1, *inputs)))
    size = jax.eval_shape(maps, w, x).size
    apply = lambda p, x: flat(relu(maps(p["w"], x))) @ p["head"]
    return plain({"w": kernel, "head": (size, 3)}, inputs, apply)


NCHW = ("NCHW", "OIHW", "NCHW")
CONVOLUTIONS: dict[str, Any] = {
    "conv": ((3, 3, 2, 3), (5, 4, 2), NHWC, {}),
    "conv, VALID, strided": (
        (3, 2, 2, 3), (7, 6, 2), NHWC, {"strides": (2, 3), "padding": "VALID"}
    ),
    "conv, SAME, strided": ((3, 3, 2, 2), (7, 6, 2), NHWC, {"strides": (2, 2)}),
    "conv, dilated": ((2, 3, 2, 2), (7, 6, 2), NHWC, {"rhs_dilation": (2, 2)}),
    "conv, odd padding": (
        (2, 3, 2, 2), (4, 5, 2), NHWC, {"padding": ((0, 3), (4, 1)), "strides": (1, 2)}
    ),
    "conv, negative padding": ((2, 2, 2, 2), (6, 6, 2), NHWC, {"padding": ((-1, 1), (0, -2))}),
    "conv, grouped": ((3, 3, 2, 6), (4, 4, 4), NHWC, {"feature_group_count": 2}),
    "conv, depthwise": ((3, 3, 1, 4), (4, 4, 4), NHWC, {"feature_group_count": 4}),
    "conv, depthwise, two each": (
        (2, 2, 1, 6), (4, 4, 3), NHWC, {"feature_group_count": 3, "strides": (2, 1)}
    ),
    "conv, transposed": (
        (3, 3, 2, 2), (3, 3, 2), NHWC, {"lhs_dilation": (2, 2), "padding": ((1, 2), (2, 1))}
    ),
    "conv, channels first": ((3, 2, 3, 3), (2, 5, 4), NCHW, {"strides": (2, 1)}),
    "conv, grouped, channels first": ((4, 2, 2, 2), (4, 4, 3), NCHW, {"feature_group_count": 2}),
    "conv, 1 by 1": ((1, 1, 3, 2), (4, 3, 3), NHWC, {}),
    "conv, strange layout": ((3, 2, 2, 3), (5, 4, 2), ("NHWC", "HOIW", "NCWH"), {}),
    "conv, 1-D": ((3, 2, 3), (9, 2), ("NHC", "HIO", "NHC"), {"strides": (2,)}),
    "conv, 3-D": ((2, 2, 2, 1, 2), (4, 3, 3, 1), ("NDHWC", "DHWIO", "NDHWC"), {}),
    "conv, whole image": ((4, 4, 2, 3), (4, 4, 2), NHWC, {"padding": "VALID"}),
}  # fmt: skip
for _name, (_kernel, _inputs, _layout, _options) in CONVOLUTIONS.items():
    row(_name)(partial(conv, _kernel, _inputs, _layout, **_options))


@row("flax transposed convolution")
def _() -> Net:
    class Up(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.ConvTranspose(2, (3, 3), (2, 2), param_dtype=jnp.float64)(x)
            return nn.Dense(3, param_dtype=jnp.float64)(flat(nn.relu(x)))

    return linen(Up(), (3, 3, 2))


def pooled(pool: Any) -> Net:
    def apply(p: Any, x: Any) -> Any:
        x = relu(lax.conv_general_dilated(x, p["w"], (1, 1), "SAME", dimension_numbers=NHWC))
        return flat(pool(x)) @ p["head"]

    size = jax.eval_shape(pool, jax.ShapeDtypeStruct((1, 6, 6, 2), jnp.float64)).size
    return plain({"w": (3, 3, 2, 2), "head": (size, 3)}, (6, 6, 2), apply)


POOLS = {
    "max-pool": lambda x: nn.max_pool(x, (2, 2), (2, 2)),
    "max-pool, overlapping": lambda x: nn.max_pool(x, (3, 3), (2, 2)),
    "max-pool, SAME": lambda x: nn.max_pool(x, (3, 2), (2, 2), "SAME"),
    "avg-pool": lambda x: nn.avg_pool(x, (2, 2), (2, 2)),
    "avg-pool, overlapping, SAME": lambda x: nn.avg_pool(x, (3, 3), (2, 2), "SAME"),
    "global average": lambda x: jnp.mean(x, (1, 2)),
    "global maximum": lambda x: jnp.max(x, (1, 2)),
}
for _name, _pool in POOLS.items():
    row(_name)(partial(pooled, _pool))


# Norms. Flax modules compute in float64 because their parameters are.


class Normed(nn.Module):
    norm: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Conv(4, (2, 2), param_dtype=jnp.float64)(x)
        x = nn.relu(self.norm()(x))
        return nn.Dense(3, param_dtype=jnp.float64)(flat(x))


@row("batch norm, evaluated", **smooth)
def _() -> Net:
    norm = partial(nn.BatchNorm, use_running_average=True, param_dtype=jnp.float64)
    return linen(Normed(norm), (3, 3, 2))


@row("batch norm, frozen statistics")
def _() -> Net:
    norm = partial(nn.BatchNorm, use_running_average=True, param_dtype=jnp.float64)
    net = linen(Normed(norm), (3, 3, 2))
    stats = net.params["batch_stats"]
    apply = lambda params, x: net.apply({"params": params, "batch_stats": stats}, x)
    return Net(net.params["params"], apply, net.batch)


@row("batch norm, training", slow=None, **smooth)
def _() -> Net:
    norm = partial(nn.BatchNorm, use_running_average=False, param_dtype=jnp.float64)
    return linen(Normed(norm), (3, 3, 2), mutable=["batch_stats"])


@row("layer norm", **smooth)
def _() -> Net:
    return linen(Normed(partial(nn.LayerNorm, param_dtype=jnp.float64)), (3, 3, 2))


@row("group norm", **smooth)
def _() -> Net:
    return linen(Normed(partial(nn.GroupNorm, 2, param_dtype=jnp.float64)), (3, 3, 2))


# Attention, embeddings, recurrence.
