"""The widths that Flax's own layers keep beside their variables, and how to tell the new ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Flags = dict[str, tuple[np.ndarray, ...]]
"""By name of a variable below a module: which slices of each axis are kept."""

Rule = Callable[[Any, Flags], dict[str, Any]]
"""`(module, kept slices) -> its attributes`; with everything kept, those that it has."""


class NoRule(Exception):
    """A module that cannot have the widths that are left, and why."""


def shapes_of(kept: Flags) -> dict[str, tuple[int, ...]]:
    """The shapes that are left of the variables."""
    return {name: tuple(int(np.count_nonzero(k)) for k in axes) for name, axes in kept.items()}


def _parts(keep: np.ndarray, groups: int) -> int:
    """How many of the equal groups that an axis is divided into are left."""
    left = keep.reshape(groups, -1).sum(axis=1)
    sizes = np.unique(left[left > 0])
    if len(sizes) > 1:
        raise NoRule(f"would have groups of {sizes.tolist()} features, and needs equal ones")
    return int(np.count_nonzero(left))


def _linear_general(module: Any, kept: Flags) -> dict[str, Any]:
    shape = shapes_of(kept)["kernel"]
    ends = np.cumsum([len(module.out_features), len(module.in_features), len(module.batch_axis)])
    outs, ins, batch = (len(shape) - int(end) for end in ends)
    sizes = zip(module.batch_axis, shape[batch:ins], strict=True)
    return {
        "in_features": shape[ins:outs],
        "out_features": shape[outs:],
        "batch_axis": type(module.batch_axis)(sizes),
    }


def _einsum(module: Any, kept: Flags) -> dict[str, Any]:
    shapes = shapes_of(kept)
    tail = lambda name, old: old if old is None else shapes[name][-len(old) :]
    return {
        "kernel_shape": tail("kernel", module.kernel_shape),
        "bias_shape": tail("bias", module.bias_shape),
    }


def _conv(module: Any, kept: Flags) -> dict[str, Any]:
    shape = shapes_of(kept)["kernel"][-len(module.kernel_shape) :]
    groups = _parts(kept["kernel"][-1], module.feature_group_count)
    return {
        "in_features": shape[-2] * groups,
        "out_features": shape[-1],
        "kernel_shape": shape,
        "feature_group_count": groups,
    }


def _conv_transpose(module: Any, kept: Flags) -> dict[str, Any]:
    shape = shapes_of(kept)["kernel"][-len(module.kernel_shape) :]
    ins, outs = shape[-2:][:: -1 if module.transpose_kernel else 1]
    return {"in_features": ins, "out_features": outs, "kernel_shape": shape}


def _norm(module: Any, kept: Flags) -> dict[str, Any]:
    shapes = shapes_of(kept)
    found = [shapes[name][-1] for name in ("mean", "scale", "bias") if name in shapes]
    return {"num_features": found[0]} if found else {}


def _group_norm(module: Any, kept: Flags) -> dict[str, Any]:
    found = [kept[name][-1] for name in ("scale", "bias") if name in kept]
    if not found:
        return {}
    groups = _parts(found[0], module.num_groups)
    return {"num_groups": groups, "group_size": int(found[0].sum()) // groups}


def _attention(module: Any, kept: Flags) -> dict[str, Any]:
    from flax import nnx

    shapes = shapes_of(kept)
    *_, ins, heads, width = shapes["query/kernel"]
    values = shapes["value/kernel"][-1]
    if module.attention_fn is nnx.dot_product_attention:
        if width != module.head_dim:
            raise NoRule(
                "divides by the root of its query and key width, `head_dim`, which would go from "
                f"{module.head_dim} to {width}, so it would compute something else (a selection "
                "can protect that group)"
            )
        if values != width and module.dropout_rate == 0:
            raise NoRule(
                f"takes only values that are as wide as its queries, `head_dim` = {width}, and "
                f"they would be {values} wide (a selection can protect that group)"
            )
    return {
        "in_features": ins,
        "in_kv_features": shapes["key/kernel"][-3],
        "num_heads": heads,
        "num_kv_heads": shapes["key/kernel"][-2],
        "head_dim": width,
        "qkv_features": heads * width,
        "out_features": shapes["out/kernel"][-1],
    }


def _sizes(name: str, **attributes: int) -> Rule:
    """A rule for attributes that are lengths of axes of one variable."""
    return lambda module, kept: {key: shapes_of(kept)[name][a] for key, a in attributes.items()}


def _cell(into: str, again: str) -> Rule:
    """A recurrent cell: its kernels of the input and of its state."""
    first, second = _sizes(into, in_features=-2), _sizes(again, hidden_features=-2)
    return lambda module, kept: first(module, kept) | second(module, kept)


def rules() -> dict[type, Rule]:
    """New attributes of Flax's layers, from the kept slices of the variables below them."""
    from flax import nnx

    fused = _cell("dense_i/kernel", "dense_h/kernel")
    return {
        nnx.Linear: _sizes("kernel", in_features=-2, out_features=-1),
        nnx.LinearGeneral: _linear_general,
        nnx.Einsum: _einsum,
        nnx.Conv: _conv,
        nnx.ConvTranspose: _conv_transpose,
        nnx.Embed: _sizes("embedding", num_embeddings=-2, features=-1),
        nnx.LoRA: lambda module, kept: {
            **_sizes("lora_a", in_features=-2)(module, kept),
            **_sizes("lora_b", out_features=-1)(module, kept),
        },
        **dict.fromkeys((nnx.BatchNorm, nnx.LayerNorm, nnx.RMSNorm, nnx.InstanceNorm), _norm),
        nnx.GroupNorm: _group_norm,
        nnx.MultiHeadAttention: _attention,
        nnx.LSTMCell: _cell("ii/kernel", "hi/kernel"),
        **dict.fromkeys((nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell), fused),
    }
