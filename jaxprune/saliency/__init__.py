"""Stage one: how important every parameter is. Larger = more important."""

from jaxprune.saliency.activation import output_axes, wanda
from jaxprune.saliency.gradient import snip, taylor
from jaxprune.saliency.measured import add, over_batches
from jaxprune.saliency.second_order import fisher, optimal_brain_damage, optimal_brain_damage_sd
from jaxprune.saliency.weights import lamp, magnitude, random

__all__ = [
    "add",
    "fisher",
    "lamp",
    "magnitude",
    "optimal_brain_damage",
    "optimal_brain_damage_sd",
    "output_axes",
    "over_batches",
    "random",
    "snip",
    "taylor",
    "wanda",
]
