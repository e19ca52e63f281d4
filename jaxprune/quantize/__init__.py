"""Fewer bits a weight: post-training quantization, fine-tuning through it, and its honest bytes.

A quantizer is a function `(params, mask=None) -> Quantized`, made by a factory: `uniform`
(symmetric or affine, per tensor or per channel), `shared_values` (k-means, as Deep Compression
shares weights), `half_precision`, `unquantized`. It works on any pytree, inside jit and vmap.
`stored_bytes` counts what `pack` writes.

This is the baseline that pruning is combined with and compared to: weights only, and computed with
in floating point. For quantization that is deployed, with quantized activations and integer
arithmetic on the accelerator, use Qwix (https://github.com/google/qwix) or AQT
(https://github.com/google/aqt).

Example:
  >>> import jax.numpy as jnp
  >>> from jaxprune import quantize
  >>> params = {"kernel": jnp.linspace(-1, 1, 4096).reshape(64, 64), "bias": jnp.zeros(64)}
  >>> mask = {"kernel": jnp.abs(params["kernel"]) > 0.9, "bias": jnp.ones(64, bool)}
  >>> small = quantize.shared_values(4)(params, mask)  # Quantized(params, stored)
  >>> quantize.stored_bytes(small).leaves["kernel"].form
  'relative'
"""

from jaxprune.quantize.clustering import shared_values
from jaxprune.quantize.fake import fake_quantized, frozen
from jaxprune.quantize.forms import FORMS
from jaxprune.quantize.grids import uniform
from jaxprune.quantize.packing import LeafBytes, StoredBytes, pack, stored_bytes, unpack
from jaxprune.quantize.precision import half_precision, unquantized
from jaxprune.quantize.stored import (
    Codebook,
    Grid,
    Plain,
    Quantized,
    Quantizer,
    dequantize,
    tables_of,
    with_tables,
)

__all__ = [
    "FORMS",
    "Codebook",
    "Grid",
    "LeafBytes",
    "Plain",
    "Quantized",
    "Quantizer",
    "StoredBytes",
    "dequantize",
    "fake_quantized",
    "frozen",
    "half_precision",
    "pack",
    "shared_values",
    "stored_bytes",
    "tables_of",
    "uniform",
    "unpack",
    "unquantized",
    "with_tables",
]
