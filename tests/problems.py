"""Small models of several kinds, on which every second derivative can be written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxprune as jp

N = 5  # examples


class Problem(NamedTuple):
    """A model, a loss and data.

    Attributes:
      root: the closed-form root of the loss, or None where there is none.
      gauss_newton: name -> is the Hessian's diagonal the Gauss-Newton diagonal on that leaf?
    """

    params: Any
    apply: Any
    loss: Any
    batch: Any
    root: Any
    gauss_newton: Callable[[str], bool]


def softmax_loss(logits: Any, labels: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]


def sigmoid_loss(logits: Any, targets: Any) -> Any:
    losses = jax.nn.softplus(logits) - targets * logits
    return jnp.sum(losses.reshape(losses.shape[0], -1), axis=1)


def squared_loss(outputs: Any, targets: Any) -> Any:
    return jnp.sum(jnp.square(outputs - targets).reshape(outputs.shape[0], -1), axis=1)


def wavy_loss(outputs: Any, targets: Any) -> Any:
    """Not convex in its outputs, which are a dict."""
    mean, spread = outputs["mean"], outputs["spread"]
    return jnp.sum(jnp.sin(2 * mean - targets), axis=1) * jnp.cos(spread) - spread**2


class _Draw:
    def __init__(self, seed: int, dtype: Any):
        self.rng, self.dtype = np.random.default_rng(seed), dtype

    def __call__(self, *shape: int) -> Any:
        return jnp.asarray(self.rng.normal(size=shape) * 0.7, self.dtype)

    def labels(self, classes: int) -> Any:
        return jnp.asarray(self.rng.integers(0, classes, N), jnp.int32)


def _mlp(activation: Any) -> Any:
    def apply(params: Any, x: Any) -> Any:
        hidden = activation(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        return hidden @ params["head"]["kernel"] + params["head"]["bias"]

    return apply


def _mlp_params(draw: _Draw, sizes: tuple[int, int, int]) -> Any:
    i, h, o = sizes
    return {
        "hidden": {"kernel": draw(i, h), "bias": draw(h)},
        "head": {"kernel": draw(h, o), "bias": draw(o)},
    }


def tanh_mlp(dtype: Any = jnp.float32) -> Problem:
    draw = _Draw(0, dtype)
    params, batch = _mlp_params(draw, (3, 4, 3)), (draw(N, 3), draw.labels(3))
    return Problem(params, _mlp(jnp.tanh), softmax_loss, batch, jp.curvature.softmax_root, _no)


def relu_mlp(dtype: Any = jnp.float32) -> Problem:
    draw = _Draw(1, dtype)
    params, batch = _mlp_params(draw, (3, 5, 2)), (draw(N, 3), draw(N, 2))
    root = jp.curvature.squared_error_root
    return Problem(params, _mlp(jax.nn.relu), squared_loss, batch, root, _yes)


def conv_net(dtype: Any = jnp.float32) -> Problem:
    """A strided, padded convolution, then a dense layer."""
    draw = _Draw(2, dtype)
    params = {"conv": draw(3, 3, 2, 2), "bias": draw(2), "dense": draw(18, 2)}

    def apply(params: Any, x: Any) -> Any:
        maps = lax.conv_general_dilated(
            x, params["conv"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        hidden = jax.nn.relu(maps + params["bias"])
        return hidden.reshape(x.shape[0], -1) @ params["dense"]

    batch = (draw(N, 5, 5, 2), jnp.asarray(draw.rng.integers(0, 2, (N, 2)), dtype))
    return Problem(params, apply, sigmoid_loss, batch, jp.curvature.sigmoid_root, _yes)


def scan_rnn(dtype: Any = jnp.float32) -> Problem:
    draw = _Draw(3, dtype)
    params = [draw(2, 3), draw(3, 3), draw(3, 2)]

    def apply(params: Any, x: Any) -> Any:
        step = lambda h, x_t: (jnp.tanh(x_t @ params[0] + h @ params[1]), None)
        start = jnp.zeros((x.shape[0], 3), x.dtype)
        return lax.scan(step, start, jnp.swapaxes(x, 0, 1))[0] @ params[2]

    batch = (draw(N, 4, 2), draw.labels(2))
    return Problem(params, apply, softmax_loss, batch, jp.curvature.softmax_root, _no)


def batch_norm_net(dtype: Any = jnp.float32) -> Problem:
    """Statistics are leaves like any other, and a counter is an integer leaf."""
    draw = _Draw(4, dtype)
    variables = {
        "params": {"kernel": draw(3, 4), "scale": draw(4), "bias": draw(4), "head": draw(4, 2)},
        "batch_stats": {"mean": draw(4), "var": draw(4) ** 2 + 0.5, "count": jnp.int32(7)},
    }

    def apply(variables: Any, x: Any) -> Any:
        p, stats = variables["params"], variables["batch_stats"]
        normal = (x @ p["kernel"] - stats["mean"]) / jnp.sqrt(stats["var"] + 1e-3)
        return jax.nn.relu(normal * p["scale"] + p["bias"]) @ p["head"]

    batch = (draw(N, 3), draw.labels(2))
    root = jp.curvature.softmax_root
    linear = lambda name: not name.endswith("var")
    return Problem(variables, apply, softmax_loss, batch, root, linear)


def tied_net(dtype: Any = jnp.float32) -> Problem:
    """One matrix is the first layer and, transposed, the last."""
    draw = _Draw(5, dtype)
    params = {"shared": draw(4, 3), "middle": draw(3, 3)}

    def apply(params: Any, x: Any) -> Any:
        return jnp.tanh(x @ params["shared"] @ params["middle"]) @ params["shared"].T

    root = jp.curvature.squared_error_root
    return Problem(params, apply, squared_loss, (draw(N, 4), draw(N, 4)), root, _no)


def wavy_net(dtype: Any = jnp.float32) -> Problem:
    """Two outputs in a dict, and a loss that is not convex in them: no root exists."""
    draw = _Draw(6, dtype)
    params = (draw(3, 4), {"mean": draw(4, 2), "spread": draw(4, 1)})

    def apply(params: Any, x: Any) -> Any:
        hidden = jax.nn.relu(x @ params[0])
        return {"mean": hidden @ params[1]["mean"], "spread": (hidden @ params[1]["spread"])[:, 0]}

    return Problem(params, apply, wavy_loss, (draw(N, 3), draw(N, 2)), None, _yes)


def cluttered(dtype: Any = jnp.float32) -> Problem:
    """A tanh MLP whose tree carries what real states carry: counters, keys, flags, empty arrays."""
    net = tanh_mlp(dtype)
    clutter = {
        "empty": jnp.zeros((0, 3), dtype),
        "flag": jnp.array(True),
        "key": jax.random.key(0),
        "net": net.params,
        "scalar": jnp.asarray(1.5, dtype),
        "step": jnp.arange(4, dtype=jnp.int32).reshape(2, 2),
    }
    apply = lambda params, x: params["scalar"] * net.apply(params["net"], x)
    return net._replace(params=clutter, apply=apply)


def _yes(name: str) -> bool:
    return True


def _no(name: str) -> bool:
    return False


PROBLEMS: dict[str, Callable[..., Problem]] = {
    "tanh_mlp": tanh_mlp,
    "relu_mlp": relu_mlp,
    "conv_net": conv_net,
    "scan_rnn": scan_rnn,
    "batch_norm_net": batch_norm_net,
    "tied_net": tied_net,
    "wavy_net": wavy_net,
    "cluttered": cluttered,
}
