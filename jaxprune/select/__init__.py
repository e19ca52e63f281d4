"""Stage two: which parameters stay, given their scores."""

from jaxprune.select.pattern import blocks, n_of_m
from jaxprune.select.ranking import lowest
from jaxprune.select.units import Budget, lowest_units

__all__ = ["Budget", "blocks", "lowest", "lowest_units", "n_of_m"]
