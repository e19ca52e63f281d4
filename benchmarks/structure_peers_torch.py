"""Torch-Pruning's side of the structure benchmark, as its documentation says to use it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np
import torch
import torch_pruning

Options = Callable[[Any], dict[str, Any]]


def made(make: Callable[[], Any]) -> Any:
    """A network with random parameters and statistics in eval mode; no bias is zero."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith("running_var") or (name.endswith("weight") and value.ndim == 1):
                value.uniform_(0.5, 1.5)
            elif value.ndim == 1:
                value.normal_(0, 0.3)
            elif "embed" in name:
                value.normal_()
            elif value.ndim > 1:
                value.normal_(0, 1.4 / value[0].numel() ** 0.5)
    return model


def tagged(model: Any) -> Any:
    """A copy whose gradients number the entries: Torch-Pruning slices both alike."""
    model = copy.deepcopy(model)
    for value in model.parameters():
        value.grad = torch.arange(value.numel(), dtype=value.dtype).reshape(value.shape)
    return model


def traced(model: Any, inputs: Any, options: Options) -> Any:
    """Its pruner, whose constructor traces the model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given: dict[str, Any] = {"num_heads": {}, "out_channel_groups": {}, "in_channel_groups": {}}
        return torch_pruning.pruner.BasePruner(
            model,
            (inputs[:1],),
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.5,
            global_pruning=False,
            **given | options(model),
        )


def pruned(pruner: Any) -> Any:
    """The model after a step, numbers in its code set anew."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner.step()
    for module in pruner.model.modules():
        if hasattr(module, "tidy"):
            module.tidy()
    return pruner.model


def masked(model: Any, small: Any) -> Any:
    """The model with exactly those entries zero that are not in the small one."""
    model = copy.deepcopy(model)
    values = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, value in small.named_parameters(remove_duplicate=False):
            keep = torch.zeros(values[name].numel())
            keep[value.grad.reshape(-1).long()] = 1
            values[name].mul_(keep.reshape(values[name].shape))
    return model


def outcome(model: Any, inputs: Any, options: Options) -> tuple[str, str]:
    """What became of a network: how far the pruned is from the masked; the parameters left."""
    step = "tracing"
    try:
        pruner = traced(tagged(model), inputs, options)
        step = "pruning"
        small = pruned(pruner)
        before, after = (sum(p.numel() for p in m.parameters()) for m in (model, small))
        if before == after:
            return "pruned nothing", "100.0%"
        step = "masking"
        expected = masked(model, small)(inputs).detach().numpy()
        step = "running it"
        found = small(inputs).detach().numpy()
    except Exception as error:  # whatever a peer raises is its outcome
        first = (str(error).strip().splitlines() or [""])[0].replace("|", "/")
        return f"failed in {step}: {type(error).__name__}: {first}", "-"
    apart = np.max(np.abs(found - expected)) / np.max(np.abs(expected))
    same = len(list(model.parameters())) == len(list(small.parameters()))
    return worded(apart) + ("" if same else "; the tied weights are no longer tied"), (
        f"{after / before:.1%}"
    )


def worded(apart: float) -> str:
    """A relative difference in words."""
    return f"exact ({apart:.0e})" if apart < 1e-5 else f"changed by {apart:.2g}"


def as_torch(inputs: np.ndarray) -> Any:
    """Images with their channels in front."""
    if inputs.ndim == 4:
        inputs = np.ascontiguousarray(inputs.transpose(0, 3, 1, 2))
    return torch.from_numpy(inputs)


def version() -> str:
    return f"Torch-Pruning {metadata.version('torch-pruning')}, torch {torch.__version__}"
