"""magika 1.0.3: the content type of a file from its bytes, 214 types (Google, Apache-2.0).

The model is `standard_v3_3`, 784,214 parameters: the first and the last 1,024 bytes of a file, each
a row of a 257 x 64 table, four bytes side by side a step; a LayerNorm over the 512 steps, a
convolution over 5 steps into 512 channels, their maximum over the steps, a LayerNorm over the
channels, a dense layer. It was exported from JAX through ONNX; the names here are those of the
layers in the export, and kernels have the layouts that Flax gives them: `[..., in, out]`.

`apply` gives logits; magika's scores are their softmax. Compared on the 764 files of `typed_files`
with onnxruntime on the published file: the same likeliest type for all, scores within 3.3e-4. On 64
of them scores in float32 are within 1.5e-6 of those in float64, the published graph's within
6.2e-5: it takes variances as differences of means.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.packages import PipPackage
from experiments.pretrained import onnx_weights, typed_files
from experiments.pretrained.model import Pretrained
from experiments.pretrained.published import published
from experiments.pretrained.typed_files import TypedFile
from jaxprune.types import Params

PACKAGE = PipPackage("magika", "1.0.3", folder="magika/models/standard_v3_3", seconds=60)
FILES = {
    "model.onnx": "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
    "config.min.json": "ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db",
}

BLOCK, EACH = 4096, 1024
"""Bytes at each end of a file that are looked at, and those of them that are read."""
PADDING = 256
TOGETHER = 4  # bytes of a step
EPSILON = 1e-6
BATCH = 32  # test files at once: the convolution's outputs are 1 MB a file

# The arrays of the export by layer: its name there and the shape that it has in Flax. What the
# export computed ahead, it named anew.
_GRAPH = "jax2tf_get_logits_/pjit_get_logits_/MagikaV2/"
_EXPORTED = {
    "Dense_0": {"kernel": "jax2tf_get_logits_/Const:0", "bias": f"{_GRAPH}Dense_0/Reshape:0"},
    "LayerNorm_0": {
        "scale": f"{_GRAPH}LayerNorm_0/Reshape_2:0",
        "bias": f"{_GRAPH}LayerNorm_0/Reshape_3:0",
    },
    "Conv_0": {"kernel": f"{_GRAPH}Conv_0/transpose_3:0", "bias": "const_fold_opt__209"},
    "LayerNorm_1": {
        "scale": f"{_GRAPH}LayerNorm_1/Reshape_2:0",
        "bias": f"{_GRAPH}LayerNorm_1/Reshape_3:0",
    },
    "Dense_1": {"kernel": "jax2tf_get_logits_/Const_24:0", "bias": f"{_GRAPH}Dense_1/Reshape:0"},
}


def weights(model: bytes) -> dict[str, dict[str, np.ndarray]]:
    """The parameters in an ONNX file of the model, by layer.

    Raises:
      ValueError: it is not such a file.
    """
    stored = onnx_weights.arrays(model)
    missing = [
        name for layer in _EXPORTED.values() for name in layer.values() if name not in stored
    ]
    if missing:
        raise ValueError(
            f"The model must be standard_v3_3 of magika 1.0.3; it has no {missing[0]}."
        )
    found = {
        layer: {kind: np.squeeze(stored[name]) for kind, name in names.items()}
        for layer, names in _EXPORTED.items()
    }
    # ONNX has (out, in, width), Flax (width, in, out).
    found["Conv_0"]["kernel"] = np.ascontiguousarray(found["Conv_0"]["kernel"].transpose(2, 1, 0))
    return found


def features(content: bytes) -> np.ndarray:
    """What the network sees of a file: int32 [2048].

    Of the first 4,096 bytes, white space before them taken off, the first 1,024; of the last 4,096
    bytes, white space behind them taken off, the last 1,024. Padding stands behind the former and
    before the latter.

    Examples:
      >>> [int(i) for i in features(b" ab ")[[0, 1, 2, 3, 2045, 2046, 2047]]]
      [97, 98, 32, 256, 32, 97, 98]
    """
    first = content[:BLOCK].lstrip()[:EACH]
    last = content[-BLOCK:].rstrip()[-EACH:]
    row = np.full(2 * EACH, PADDING, np.int32)
    row[: len(first)] = np.frombuffer(first, np.uint8)
    row[len(row) - len(last) :] = np.frombuffer(last, np.uint8)
    return row


def apply(params: Params, tokens: jax.Array) -> jax.Array:
    """Logits [N, 214] of the content types of files that are given as `features`, int [N, 2048]."""
    embedded = params["Dense_0"]["kernel"][tokens] + params["Dense_0"]["bias"]
    embedded = jax.nn.gelu(embedded)
    steps = embedded.reshape(len(tokens), -1, TOGETHER * embedded.shape[-1])
    # The scale is of the step, not of the channel: so it is published.
    steps = _normalized(steps, params["LayerNorm_0"], 1)
    windows = jax.lax.conv_general_dilated(
        steps,
        params["Conv_0"]["kernel"],
        window_strides=(1,),
        padding="VALID",
        dimension_numbers=("NWC", "WIO", "NWC"),
    )
    windows = jax.nn.gelu(windows + params["Conv_0"]["bias"])
    read = _normalized(jnp.max(windows, 1), params["LayerNorm_1"], 1)
    return read @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]


def _normalized(values: jax.Array, layer: Params, axis: int) -> jax.Array:
    """Mean 0 and variance 1 along an axis, then scaled and shifted along it."""
    centred = values - jnp.mean(values, axis, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis, keepdims=True)
    shape = [-1 if i == axis else 1 for i in range(values.ndim)]
    scale, bias = layer["scale"].reshape(shape), layer["bias"].reshape(shape)
    return centred * (scale / jnp.sqrt(variance + EPSILON)) + bias


def loss(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Cross-entropy [N] of one content type."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], 1)[:, 0]


def distill(logits: jax.Array, dense: jax.Array) -> jax.Array:
    """KL(dense | pruned) [N] of the content types."""
    wanted = jax.nn.log_softmax(dense)
    return jnp.sum(jnp.exp(wanted) * (wanted - jax.nn.log_softmax(logits)), -1)


def prunable(name: str, leaf: jax.Array) -> bool:
    """The kernels of the convolution and of the last layer; the first one is a table of bytes."""
    return name in ("Conv_0/kernel", "Dense_1/kernel")


@jax.jit
def _logits(params: Params, tokens: jax.Array) -> jax.Array:
    return apply(params, tokens)


def said(params: Params, tokens: np.ndarray) -> np.ndarray:
    """The likeliest content type of each file, int [N], a batch at a time."""
    count, size = len(tokens), min(BATCH, len(tokens))
    # The last batch is filled up: one size, one compilation.
    whole = np.concatenate([tokens, np.repeat(tokens[:1], -count % size, 0)])
    parts = [_logits(params, whole[i : i + size]) for i in range(0, len(whole), size)]
    return np.argmax(np.concatenate([np.asarray(part) for part in parts]), 1)[:count]


class Test:
    """Files that a network is measured on: `test(params) -> {"accuracy": %, "agreement": %}`.

    Percentages of the files with a label whose likeliest content type is that label, and of all
    files whose likeliest content type is the dense network's.

    Args:
      files: some of them with labels.
      types: the names of the content types, in the order of the outputs.
      dense: the parameters of the dense network.
    """

    def __init__(self, files: Sequence[TypedFile], types: Sequence[str], dense: Params):
        self.tokens = np.stack([features(file.content) for file in files])
        # A file without a label has one that no output has.
        self.labels = np.array([types.index(f.label) if f.label else -1 for f in files])
        self.dense = said(dense, self.tokens)

    def __call__(self, params: Params) -> dict[str, float]:
        found, known = said(params, self.tokens), self.labels >= 0
        return {
            "accuracy": 100 * float(np.mean(found[known] == self.labels[known])),
            "agreement": 100 * float(np.mean(found == self.dense)),
        }


def load(calibration: int, test: int, seed: int, data_dir: Path | None) -> Pretrained:
    """The network, calibration files drawn by the seed, and test files, the same for every seed.

    Where there are not so many files, all of them. Of the test files half have a label, or all that
    there are. What `loss` is told of a calibration file is the content type that the dense network
    says: labels are not needed.
    """
    stored = published("magika-1.0.3", PACKAGE, FILES, data_dir)
    types = json.loads(stored["config.min.json"])["target_labels_space"]
    params = jax.tree.map(jnp.asarray, weights(stored["model.onnx"]))
    files = typed_files.read(data_dir)
    order = np.random.default_rng(seed).permutation(len(files.calibration))[:calibration]
    drawn = np.stack([features(files.calibration[i].content) for i in order])
    return Pretrained(
        name="magika",
        source="magika 1.0.3 (Apache-2.0), standard_v3_3; files of pygments 2.19.2 and "
        "react-native 0.72.0",
        params=params,
        apply=apply,
        inputs=jnp.asarray(drawn),
        targets=jnp.asarray(said(params, drawn)),
        loss=loss,
        distill=distill,
        prunable=prunable,
        quality=Test(_balanced(files.test, test), types, params),
    )


def _balanced(files: Sequence[TypedFile], count: int) -> list[TypedFile]:
    """So many files, half of them with a label as far as there are."""
    named = [file for file in files if file.label]
    others = [file for file in files if not file.label]
    first = named[: max(count - count // 2, count - len(others))]
    return first + others[: count - len(first)]
