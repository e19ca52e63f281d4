"""Tiny models of every kind that users bring: what the tap engine must get right, one row each."""

from tests.curvature import zoo_layers, zoo_maps, zoo_sequences, zoo_wrapped
from tests.curvature.zoo_rows import ZOO, Net

__all__ = ["ZOO", "Net", "zoo_layers", "zoo_maps", "zoo_sequences", "zoo_wrapped"]
