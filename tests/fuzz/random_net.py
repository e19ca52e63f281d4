"""A dense network in a random tree, and every derivative of it in closed form, in float64."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.fuzz.drawing import Draw, nested

FORWARD = {"tanh": jnp.tanh, "relu": jax.nn.relu}


def model(kind: str) -> Any:
    """`apply(tree, x)` of the four leaves, whatever holds them; one function a kind."""
    return {"tanh": _tanh, "relu": _relu}[kind]


def _tanh(tree: Any, x: Any) -> Any:
    return _forward(tree, x, jnp.tanh)


def _relu(tree: Any, x: Any) -> Any:
    return _forward(tree, x, jax.nn.relu)


def _forward(tree: Any, x: Any, activation: Any) -> Any:
    w, b, v, c = jax.tree.leaves(tree)
    return activation(x @ w + b) @ v + c


def loss(y: Any, t: Any) -> Any:
    return jnp.sum((y - t) ** 2, axis=1)


class Net:
    """i inputs, h hidden units, k outputs, n examples; d parameters in flattening order.

    Letters of the shapes: x [n, i], w [i, h], v [h, k].
    """

    def __init__(self, draw: Draw, kind: str | None = None) -> None:
        self.kind = kind or (draw.one(["tanh", "relu"]) if draw.wide else "tanh")
        sizes = [draw.number(1, 5) for _ in range(4)] if draw.wide else (3, 4, 2, 5)
        i, h, k, n = sizes
        rng = draw.rng()
        scale = draw.one([1.0, 0.1, 3.0])
        some = lambda *shape: jnp.asarray(rng.normal(size=shape) * scale, jnp.float32)
        leaves = [some(i, h), some(h), some(h, k), some(k)]
        if draw.yes():  # ties, and a weight of 0
            leaves[0] = jnp.round(leaves[0])
        if draw.wide:
            self.tree, self.names = nested(draw, leaves)
        else:
            self.tree = {"a": leaves[:2], "b": {"w": leaves[2], "x": leaves[3]}}
            self.names = ["a/0", "a/1", "b/w", "b/x"]
        self.batch = (some(n, i), some(n, k))
        self.apply = model(self.kind)

    @property
    def leaves(self) -> list[np.ndarray]:
        return [np.asarray(x, np.float64) for x in jax.tree.leaves(self.tree)]

    def like(self, vector: Any) -> Any:
        """A vector [d] as a tree."""
        cuts = np.cumsum([x.size for x in self.leaves])[:-1]
        parts = np.split(np.asarray(vector), cuts)
        shaped = [p.reshape(x.shape) for p, x in zip(parts, self.leaves, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(self.tree), shaped)

    @property
    def vector(self) -> np.ndarray:
        return flat(self.tree)

    def at(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs, per-example gradients [n, d], Jacobians [n, k, d], diagonals [n, d]."""
        w, b, v, c = jax.tree.leaves(self.like(vector))
        x, t = (np.asarray(a, np.float64) for a in self.batch)
        z = x @ w + b
        tanh = self.kind == "tanh"
        h = np.tanh(z) if tanh else np.maximum(z, 0)
        first = 1 - h**2 if tanh else (z > 0).astype(float)
        second = -2 * h * first if tanh else np.zeros_like(z)
        y = h @ v + c
        n, k = y.shape
        through = first[:, None, :] * v.T[None]  # [n, k, h]
        eye = np.eye(k)
        jacobian = np.concatenate([
            np.einsum("ni,nkh->nkih", x, through).reshape(n, k, -1),
            through,
            np.einsum("nh,kl->nkhl", h, eye).reshape(n, k, -1),
            np.broadcast_to(eye, (n, k, k)),
        ], axis=2)  # fmt: skip
        residual = 2 * (y - t)
        bend = second * (residual @ v.T)  # [n, h]
        extra = np.concatenate([
            np.einsum("ni,nh->nih", x**2, bend).reshape(n, -1), bend,
            np.zeros((n, v.size + c.size)),
        ], axis=1)  # fmt: skip
        gauss_newton = 2 * (jacobian**2).sum(1)
        return {
            "x": x, "z": z, "h": h, "y": y, "slopes": first,
            "losses": ((y - t) ** 2).sum(1),
            "jacobian": jacobian,
            "gradient": np.einsum("nk,nkd->nd", residual, jacobian),
            "gauss_newton": gauss_newton,
            "diagonal": gauss_newton + extra,
            "gates": np.einsum("nk,nh,hk->nh", residual, h, v),
        }  # fmt: skip

    @cached_property
    def truth(self) -> dict[str, np.ndarray]:
        return self.at(self.vector)

    @property
    def near_a_kink(self) -> bool:
        """Is a rectifier so near 0 that rounding decides on which side it is?"""
        scale = np.abs(self.truth["z"]).max(initial=1)
        return self.kind == "relu" and bool((np.abs(self.truth["z"]) < 1e-5 * scale).any())


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


def close(found: Any, truth: Any, tolerance: float = 1e-4) -> None:
    """Within a tolerance of the largest entry; both are vectors."""
    found, truth = np.asarray(found, np.float64), np.asarray(truth, np.float64)
    assert found.shape == truth.shape
    assert np.isfinite(found).all()
    worst, scale = np.abs(found - truth).max(initial=0), np.abs(truth).max(initial=0)
    assert worst <= tolerance * scale + 1e-30, f"off by {worst:.3g} at scale {scale:.3g}"
