"""Optax transformations that keep, grow or redraw a mask inside the user's own train step."""

from jaxprune.transforms.freezing import freeze_pruned, freeze_random
from jaxprune.transforms.gradual import prune_gradually
from jaxprune.transforms.mask_state import MaskState, mask_of, with_mask
from jaxprune.transforms.through import straight_through

__all__ = [
    "MaskState",
    "freeze_pruned",
    "freeze_random",
    "mask_of",
    "prune_gradually",
    "straight_through",
    "with_mask",
]
