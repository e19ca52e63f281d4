"""Stage two: which parameters stay, given their scores."""

from jaxprune.select.pattern import blocks, n_of_m
from jaxprune.select.ranking import lowest

__all__ = ["blocks", "lowest", "n_of_m"]
