"""The saliencies that experiments compare, by name."""

from __future__ import annotations

import jax

import jaxprune as jp
from experiments import training
from jaxprune.curvature.roots import Root
from jaxprune.types import Apply, Loss, Saliency

METHODS = (
    "random",
    "magnitude",
    "lamp",
    "taylor",
    "snip",
    "fisher",
    "obd",
    "obd_sd_damage",
    "obd_sd_gradient",
    "obd_sd_input",
)


def build_saliency(
    method: str,
    apply: Apply,
    seed: int,
    loss: Loss = training.cross_entropy,
    root: Root = jp.curvature.softmax_root,
) -> Saliency:
    """The saliency of a method's name, for a loss and the root of its Hessian."""
    if method == "random":
        return jp.saliency.random(jax.random.key(1000 + seed))
    if method == "magnitude":
        return jp.saliency.magnitude()
    if method == "lamp":
        return jp.saliency.lamp()
    if method == "taylor":
        return jp.saliency.taylor(apply, loss)
    if method == "snip":
        return jp.saliency.snip(apply, loss)
    if method == "fisher":
        return jp.saliency.fisher(jp.curvature.fisher_diagonal(apply, loss))
    curvature = jp.curvature.gauss_newton_diagonal(apply, loss, root=root)
    if method == "obd":
        return jp.saliency.optimal_brain_damage(curvature)
    if method == "obd_sd_damage":
        return jp.saliency.optimal_brain_damage_sd(curvature)
    if method == "obd_sd_gradient":
        return jp.saliency.optimal_brain_damage_sd(
            jp.curvature.gradient_moments(apply, loss), reading="gradient_variance"
        )
    return jp.saliency.optimal_brain_damage_sd(
        jp.curvature.layer_moments(apply, loss, root=root), reading="input_spread"
    )
