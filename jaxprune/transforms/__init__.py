"""Optax transformations that keep, grow, move or redraw a mask inside the user's train step."""

from jaxprune.transforms.freezing import freeze_pruned, freeze_random
from jaxprune.transforms.gradual import prune_gradually
from jaxprune.transforms.mask_state import MaskState, mask_of, with_mask
from jaxprune.transforms.moments import reset_moments
from jaxprune.transforms.regrowing import RegrowState, regrow
from jaxprune.transforms.removing import RemovalState, remove_units
from jaxprune.transforms.through import straight_through

__all__ = [
    "MaskState",
    "RegrowState",
    "RemovalState",
    "freeze_pruned",
    "freeze_random",
    "mask_of",
    "prune_gradually",
    "regrow",
    "remove_units",
    "reset_moments",
    "straight_through",
    "with_mask",
]
