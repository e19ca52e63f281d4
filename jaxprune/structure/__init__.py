"""Units removed for real."""

from jaxprune.structure.shrinking import shrink, shrink_units

__all__ = ["shrink", "shrink_units"]
