"""Units removed for real: smaller arrays that compute what the masked model computes."""

from jaxprune.structure.checking import Check, check_shrunk
from jaxprune.structure.dead import Dead, dead_units
from jaxprune.structure.merging import Merged, merge_pairs, merge_similar
from jaxprune.structure.profiles import (
    kept_of,
    reinitialise,
    scaled_profile,
    width_profile,
    width_shares,
)
from jaxprune.structure.recalibration import recalibrate_batch_norm
from jaxprune.structure.reconstruction import Reconstructed, reconstruct
from jaxprune.structure.shrinking import shrink, shrink_units
from jaxprune.structure.ways import Ways, ways_in_and_out

__all__ = [
    "Check",
    "Dead",
    "Merged",
    "Reconstructed",
    "Ways",
    "check_shrunk",
    "dead_units",
    "kept_of",
    "merge_pairs",
    "merge_similar",
    "recalibrate_batch_norm",
    "reconstruct",
    "reinitialise",
    "scaled_profile",
    "shrink",
    "shrink_units",
    "ways_in_and_out",
    "width_profile",
    "width_shares",
]
