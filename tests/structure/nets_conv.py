"""Networks of convolutions that stand in a row or side by side."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.structure.nets_kit import (
    Parts,
    abstract,
    bare,
    conv,
    flat,
    floats,
    full,
    linen,
    net,
    norm,
    pooled,
    relu,
    shape,
    tokens,
)


@net("lenet5", 6, 8, 10, 12)
def _() -> Parts:
    class LeNet(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.avg_pool(nn.tanh(nn.Conv(6, (5, 5), padding="VALID")(x)), (2, 2), (2, 2))
            x = nn.avg_pool(nn.tanh(nn.Conv(8, (3, 3), padding="VALID")(x)), (2, 2), (2, 2))
            x = nn.tanh(nn.Dense(10)(nn.tanh(nn.Dense(12)(flat(x)))))
            return nn.Dense(5)(x)

    return linen(LeNet(), floats(2, 16, 16, 1))


class VGG(nn.Module):
    """Convolutions, 0 for a max pool; then dense layers."""

    convs: tuple[int, ...]
    dense: tuple[int, ...]
    classes: int
    normed: bool = True

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for width in self.convs:
            if width == 0:
                x = nn.max_pool(x, (2, 2), (2, 2))
            else:
                x = nn.Conv(width, (3, 3))(x)
                x = relu(norm()(x) if self.normed else x)
        x = flat(x)
        for width in self.dense:
            x = relu(nn.Dense(width)(x))
        return nn.Dense(self.classes)(x)


@net("vgg_bn", 4, 6, 7, 8, 10, 11)
def _() -> Parts:
    return linen(VGG((4, 6, 0, 7, 8, 0), (11, 10), 5), floats(2, 8, 8, 3))


VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


@full("vgg16", *(width for width in VGG16 if width), 4096, 4096)
def _() -> Parts:
    return abstract(VGG(VGG16, (4096, 4096), 1000, normed=False), shape(2, 224, 224, 3))


@net("dilated_strided_conv", 5, 6, 7, 8, 9)
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = relu(nn.Conv(5, (3, 3), strides=2, padding="VALID")(x))
            x = relu(nn.Conv(6, (3, 2), kernel_dilation=2, padding="SAME")(x))
            x = relu(nn.Conv(7, (2, 3), strides=(1, 2), padding="SAME")(x))
            x = relu(nn.Conv(8, (3, 3), kernel_dilation=(2, 1), padding="VALID")(x))
            x = relu(nn.Conv(9, (2, 2), padding=((1, 0), (0, 2)))(x))
            return nn.Conv(3, (1, 1))(x)

    return linen(Model(), floats(2, 14, 13, 2))


@net("text_cnn", 5, 6, 7, 8)  # the columns of the table are units, its rows are words
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, words: Any) -> Any:
            x = nn.Embed(11, 6)(words)
            sizes = zip((5, 7, 8), (2, 3, 4), strict=True)
            kept = [relu(nn.Conv(n, (k,), padding="VALID")(x)).max(1) for n, k in sizes]
            return nn.Dense(3)(jnp.concatenate(kept, -1))

    return linen(Model(), tokens(11, 3, 6))


@net("causal_conv", 6, 7, 9)  # the residual stream of 7 has a projection of its own
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for inner, dilation in ((6, 1), (9, 2)):
                causal = {"padding": "CAUSAL", "kernel_dilation": dilation}
                h = relu(nn.Conv(inner, (2,), **causal)(x))
                h = nn.Conv(7, (2,), **causal)(h)
                x = relu(h + (x if x.shape[-1] == 7 else nn.Dense(7)(x)))
            return nn.Dense(4)(x)

    return linen(Model(), floats(2, 6, 3))


@net("gated_dilated_conv", 5, 6, 7, 8)  # WaveNet: tanh times sigmoid, and a sum of skips
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x, skips = nn.Conv(5, (1,))(x), 0
            for gated, dilation in ((6, 1), (7, 2)):
                h = nn.Conv(2 * gated, (2,), padding="CAUSAL", kernel_dilation=dilation)(x)
                a, b = jnp.split(h, 2, -1)
                h = nn.tanh(a) * nn.sigmoid(b)
                skips = skips + nn.Conv(8, (1,))(h)
                x = x + nn.Conv(5, (1,))(h)
            return nn.Conv(3, (1,))(relu(skips)) + nn.Dense(3)(x)

    return linen(Model(), floats(2, 6, 2))


@net("inception", 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = relu(norm()(conv(8)(x)))
            unit = lambda width, size, x: relu(norm()(conv(width, size)(x)))
            pool = nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)
            five = unit(5, 5, unit(2, 1, x))
            branches = [unit(4, 1, x), unit(6, 3, unit(3, 1, x)), five, unit(7, 1, pool)]
            x = jnp.concatenate(branches, -1)
            down = nn.max_pool(x, (3, 3), (2, 2), "SAME")
            x = jnp.concatenate([unit(9, 1, down), unit(10, 3, down)], -1)
            return nn.Dense(3)(relu(nn.Dense(11)(pooled(x))))

    return linen(Model(), floats(2, 8, 8, 3))


@net("channel_max", 8, 9)  # a max over the 10 channels of the second
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Conv(10, (3, 3))(relu(nn.Conv(8, (3, 3))(x)))
            x = x.max(-1, keepdims=True)
            return nn.Dense(4)(relu(nn.Dense(9)(flat(x))))

    return linen(Model(), floats(2, 5, 5, 2))


@net("group_norm", 3, 4, 5, 8)  # 6 in 3 groups, 8 in 4, 10 in 5: whole groups go
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for width, groups in ((6, 3), (8, 4), (10, 5)):
                x = relu(nn.GroupNorm(groups)(nn.Conv(width, (3, 3))(x)))
            return nn.Dense(3)(relu(nn.Dense(8)(pooled(x))))

    return linen(Model(), floats(2, 6, 6, 2))


@net("group_norms_that_overlap", 2, 4, 7)  # groups of 3 and of 2 on a stream of 12: sixes
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Conv(12, (3, 3))(x)
            h = nn.Conv(7, (3, 3))(relu(nn.GroupNorm(4)(x)))
            x = x + nn.Conv(12, (1, 1))(relu(h))
            x = nn.Conv(8, (3, 3))(relu(nn.GroupNorm(6)(x)))
            return nn.Dense(3)(pooled(relu(nn.GroupNorm(4)(x))))

    return linen(Model(), floats(2, 6, 6, 2))


@net("group_norm_bare", 4)  # [.., G, C / G]: 12 channels of both layers in 4 groups
def _() -> Parts:
    def grouped(x: Any) -> Any:
        g = x.reshape(*x.shape[:-1], 4, 3)
        g = g - g.mean((1, 2, 4), keepdims=True)
        g = g / jnp.sqrt(jnp.mean(g * g, (1, 2, 4), keepdims=True) + 1e-5)
        return g.reshape(x.shape)

    def apply(p: Any, x: Any) -> Any:
        axes = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, p["one"], (1, 1), "SAME", dimension_numbers=axes)
        x = grouped(x) * p["scale"] + p["b"]
        y = jax.lax.conv_general_dilated(x, p["two"], (1, 1), "SAME", dimension_numbers=axes)
        return pooled(relu(grouped(x + y))) @ p["out"]

    shapes = {"one": (3, 3, 2, 12), "scale": (12,), "b": (12,), "two": (3, 3, 12, 12)}
    return bare(shapes | {"out": (12, 3)}, apply, floats(2, 6, 6, 2))


@net("instance_norm", 5, 7)
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for width in (5, 7):
                x = nn.InstanceNorm()(nn.Conv(width, (3, 3))(x))
                x = nn.leaky_relu(x)
            return nn.Conv(3, (1, 1))(x)

    return linen(Model(), floats(2, 6, 6, 2))


@net("weight_standardised", 8, 9)  # the kernels' mean is over their inputs: 6 and 7 stay
def _() -> Parts:
    def apply(p: Any, x: Any) -> Any:
        for name in ("one", "two", "three"):
            kernel = p[name]
            kernel = kernel - kernel.mean((0, 1, 2))
            kernel = kernel / jnp.sqrt(jnp.mean(kernel**2, (0, 1, 2)) + 1e-4) / 3
            axes = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=axes)
            x = relu(x + p["bias"][name])
        return relu(pooled(x) @ p["w"]) @ p["out"]

    biases = {"one": (6,), "two": (7,), "three": (8,)}
    kernels = {"one": (3, 3, 2, 6), "two": (3, 3, 6, 7), "three": (3, 3, 7, 8)}
    return bare(kernels | {"bias": biases, "w": (8, 9), "out": (9, 3)}, apply, floats(2, 6, 6, 2))


@net("channel_and_place_attention", 3, 7)  # CBAM: its map of places has a max over the 8
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = relu(nn.Conv(8, (3, 3))(x))
            squeeze, excite = nn.Dense(3), nn.Dense(8)
            x = x * nn.sigmoid(
                excite(relu(squeeze(pooled(x)))) + excite(relu(squeeze(x.max((1, 2)))))
            ).reshape(-1, 1, 1, 8)
            both = jnp.stack([x.mean(-1), x.max(-1)], -1)
            x = x * nn.sigmoid(nn.Conv(1, (3, 3))(both))
            return nn.Dense(3)(pooled(relu(nn.Conv(7, (3, 3))(x))))

    return linen(Model(), floats(2, 6, 6, 2))


@net("siamese_conv", 5, 7, 9)
def _() -> Parts:
    class Model(nn.Module):
        def setup(self) -> None:
            self.one, self.two = nn.Conv(5, (3, 3)), nn.Conv(7, (3, 3), strides=2)
            self.embed, self.head = nn.Dense(9), nn.Dense(1)

        def __call__(self, a: Any, b: Any) -> Any:
            branch = lambda x: self.embed(flat(relu(self.two(relu(self.one(x))))))
            return self.head(jnp.abs(branch(a) - branch(b)))[:, 0]

    return linen(Model(), floats(2, 6, 6, 2), floats(2, 6, 6, 2, seed=1))


@net("film", 6, 8, 9)  # a second input scales and shifts the 6 channels
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any, given: Any) -> Any:
            x = nn.Conv(6, (3, 3))(x)
            film = nn.Dense(12)(relu(nn.Dense(9)(given)))[:, None, None]
            x = relu(x * (1 + film[..., :6]) + film[..., 6:])
            return nn.Dense(3)(pooled(relu(nn.Conv(8, (3, 3))(x))))

    return linen(Model(), floats(2, 6, 6, 2), floats(2, 4, seed=1))
