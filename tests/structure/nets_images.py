"""Networks that give images: autoencoders, U-Nets, generators, recurrent convolutions."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.structure.nets_kit import Parts, conv, flat, floats, linen, net, norm, relu


def up(width: int) -> nn.Module:
    return nn.ConvTranspose(width, (3, 3), strides=(2, 2))


@net("conv_autoencoder", 5, 6, 4, 7, 8)  # flattened and unflattened around a code of 4
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = relu(nn.Conv(5, (3, 3), strides=2)(x))
            x = relu(nn.Conv(6, (3, 3), strides=2)(x))
            code = nn.tanh(nn.Dense(4)(flat(x)))
            x = relu(nn.Dense(2 * 2 * 7)(code)).reshape(-1, 2, 2, 7)
            return nn.sigmoid(up(3)(relu(up(8)(x))))

    return linen(Model(), floats(2, 8, 8, 3))


@net("gan_generator", 8, 7, 5)  # a unit of the dense layer: one channel at all 4 places
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, z: Any) -> Any:
            x = relu(norm()(nn.Dense(2 * 2 * 8)(z).reshape(-1, 2, 2, 8)))
            x = relu(norm()(up(7)(x)))
            x = relu(norm()(nn.ConvTranspose(5, (4, 4), (2, 2), transpose_kernel=False)(x)))
            return nn.tanh(up(3)(x))

    return linen(Model(), floats(2, 6))


@net("gan_generator_dense_norm", 6, 9)  # a BatchNorm over places and channels, before reshaping
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, z: Any) -> Any:
            x = nn.Dense(3 * 3 * 6)(relu(nn.Dense(9)(z)))
            x = relu(norm()(x)).reshape(-1, 3, 3, 6)
            return nn.tanh(nn.Conv(2, (3, 3))(x))

    return linen(Model(), floats(2, 5))


@net("unet", *(5, 6, 7, 8), 9, *(10, 11, 4, 3))
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            unit = lambda width, x: relu(norm()(conv(width)(x)))
            wide = unit(6, unit(5, x))
            deep = unit(8, unit(7, nn.max_pool(wide, (2, 2), (2, 2))))
            x = unit(9, nn.max_pool(deep, (2, 2), (2, 2)))
            x = unit(11, jnp.concatenate([up(10)(x), deep], -1))
            x = unit(3, jnp.concatenate([wide, up(4)(x)], -1))
            return nn.Conv(2, (1, 1))(x)

    return linen(Model(), floats(2, 8, 8, 3))


@net("unet_resized", 5, 6, 7, 8, 9)  # no parameters on the way up
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            wide = relu(nn.Conv(5, (3, 3))(x))
            deep = relu(nn.Conv(6, (3, 3), strides=2)(wide))
            x = relu(nn.Conv(7, (3, 3), strides=2)(deep))
            x = jax.image.resize(x, (*deep.shape[:3], 7), "nearest")
            x = relu(nn.Conv(8, (3, 3))(jnp.concatenate([x, deep], -1)))
            x = jax.image.resize(x, (*wide.shape[:3], 8), "bilinear")
            x = relu(nn.Conv(9, (3, 3))(jnp.concatenate([x, wide], -1)))
            return nn.Conv(2, (1, 1))(x)

    return linen(Model(), floats(2, 8, 8, 3))


@net("feature_pyramid", 5, 6, 7, 8, 9)  # laterals of 8 are added on the way down
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            levels = []
            for width in (5, 6, 7):
                x = relu(nn.Conv(width, (3, 3), strides=2)(x))
                levels.append(x)
            out, top = [], None
            head, mixed = nn.Conv(3, (1, 1)), nn.Conv(9, (3, 3))
            for level in reversed(levels):
                lateral = nn.Conv(8, (1, 1))(level)
                top = lateral if top is None else lateral + top.repeat(2, 1).repeat(2, 2)
                out.append(head(relu(mixed(top))))
            return out

    return linen(Model(), floats(2, 8, 8, 3))


@net("pixel_shuffle", 5, 6, 7)  # 24 outputs are 6 channels at 2 x 2 places, channels last
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            n, h, w, _ = x.shape
            x = nn.Conv(4 * 6, (3, 3))(relu(nn.Conv(5, (3, 3))(x)))
            x = x.reshape(n, h, w, 2, 2, 6).transpose(0, 1, 3, 2, 4, 5)
            x = relu(nn.Conv(7, (3, 3))(relu(x.reshape(n, 2 * h, 2 * w, 6))))
            return nn.Conv(3, (1, 1))(x)

    return linen(Model(), floats(2, 4, 4, 3))


@net("space_to_depth", 5, 7)  # 2 x 2 places of the 5 become 20 channels
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            n, h, w, _ = x.shape
            x = relu(nn.Conv(5, (3, 3))(x)).reshape(n, h // 2, 2, w // 2, 2, 5)
            x = x.transpose(0, 1, 3, 2, 4, 5).reshape(n, h // 2, w // 2, 20)
            return nn.Conv(3, (1, 1))(relu(nn.Conv(7, (3, 3))(x)))

    return linen(Model(), floats(2, 6, 6, 2))


@net("conv_lstm", 5, 6)  # [N, T, H, W, C]; one convolution for the four gates
def _() -> Parts:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = relu(nn.Conv(6, (3, 3))(x))
            state = jnp.zeros((x.shape[0], *x.shape[2:4], 5), x.dtype)
            x = nn.RNN(nn.ConvLSTMCell(5, (3, 3)))(x, initial_carry=(state, state))
            return nn.Dense(2)(x[:, -1])

    return linen(Model(), floats(2, 3, 4, 4, 2))
