"""The fixtures of the data tests."""

from tiny_set import no_network, tiny

__all__ = ["no_network", "tiny"]
