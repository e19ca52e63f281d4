"""Networks of every kind that users prune: small ones to compute, published ones to trace.

`NETS[name]()` builds a small network with random variables, `FULL[name]()` a published one whose
variables and inputs are `jax.ShapeDtypeStruct`. Nothing is built at import. What the `groups` of
each are, and why, is said in `nets_kit`.
"""

from tests.structure import (
    nets_attention,
    nets_control,
    nets_conv,
    nets_grouped_queries,
    nets_images,
    nets_mlp,
    nets_mobile,
    nets_nnx,
    nets_patches,
    nets_recurrent,
    nets_residual,
)
from tests.structure.nets_kit import FULL, NETS, Net

__all__ = [
    "FULL",
    "NETS",
    "Net",
    "nets_attention",
    "nets_control",
    "nets_conv",
    "nets_grouped_queries",
    "nets_images",
    "nets_mlp",
    "nets_mobile",
    "nets_nnx",
    "nets_patches",
    "nets_recurrent",
    "nets_residual",
]
