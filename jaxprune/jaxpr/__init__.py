"""Reading the jaxpr: taps at every layer, and the FLOPs of every operation."""
