"""Units removed for real: smaller arrays that compute what the masked model computes."""

from jaxprune.structure.checking import Check, check_shrunk
from jaxprune.structure.dead import Dead, dead_units
from jaxprune.structure.shrinking import shrink, shrink_units

__all__ = ["Check", "Dead", "check_shrunk", "dead_units", "shrink", "shrink_units"]
