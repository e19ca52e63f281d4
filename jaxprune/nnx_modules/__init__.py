"""Flax NNX modules shrunk in place."""

from jaxprune.nnx_modules.in_place import shrink_module

__all__ = ["shrink_module"]
