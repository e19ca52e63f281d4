"""Stage one: how important every parameter, or every unit, is. Larger = more important."""

from jaxprune.saliency.ablation import damage_with_errors, dropout_damage, unit_ablation
from jaxprune.saliency.activation import output_axes, wanda
from jaxprune.saliency.gates import on_gates, unit_fisher, unit_taylor
from jaxprune.saliency.gradient import snip, taylor
from jaxprune.saliency.measured import add, over_batches
from jaxprune.saliency.second_order import fisher, optimal_brain_damage, optimal_brain_damage_sd
from jaxprune.saliency.units import (
    batch_norm_scale,
    on_units,
    per_cost,
    random_units,
    unit_magnitude,
)
from jaxprune.saliency.weights import lamp, magnitude, random

__all__ = [
    "add",
    "batch_norm_scale",
    "damage_with_errors",
    "dropout_damage",
    "fisher",
    "lamp",
    "magnitude",
    "on_gates",
    "on_units",
    "optimal_brain_damage",
    "optimal_brain_damage_sd",
    "output_axes",
    "over_batches",
    "per_cost",
    "random",
    "random_units",
    "snip",
    "taylor",
    "unit_ablation",
    "unit_fisher",
    "unit_magnitude",
    "unit_taylor",
    "wanda",
]
