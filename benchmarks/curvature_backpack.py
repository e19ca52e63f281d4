"""Table 2 of the curvature benchmark: beside BackPACK, the same weights in both."""

import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from functools import partial
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measuring  # isort: skip  # sets XLA's threads: before jax

import numpy as np

from benchmarks.curvature_cases import (
    COMMAND,
    INTERVAL,
    Case,
    Function,
    Problem,
    TanhMLP,
    compared,
    exact,
    fisher,
    gauss_newton,
    problem,
    waiting,
)
from experiments.models import MLP, LeNet5


def torch_residual(torch: Any, before: int, width: int, stride: int) -> Any:
    """A `Block` of the ResNet from modules that BackPACK knows."""
    from backpack.custom_module.branching import Parallel
    from backpack.custom_module.pad import Pad
    from backpack.custom_module.slicing import Slicing

    conv = partial(torch.nn.Conv2d, kernel_size=3, bias=False)
    norm, relu = torch.nn.BatchNorm2d, torch.nn.ReLU
    # Flax pads a stride of two at the end only.
    enter = [conv(before, width, padding=1)] if stride == 1 else [
        torch.nn.ZeroPad2d((0, 1, 0, 1)), conv(before, width, stride=stride)
    ]  # fmt: skip
    main = [*enter, norm(width), relu(), conv(width, width, padding=1), norm(width)]
    shortcut: list[Any] = []
    if stride > 1:
        skip = slice(None, None, stride)
        shortcut.append(Slicing((slice(None), slice(None), skip, skip)))
    if width > before:
        shortcut.append(Pad((0, 0, 0, 0, 0, width - before)))
    around = torch.nn.Sequential(*shortcut) if shortcut else torch.nn.Identity()
    return torch.nn.Sequential(Parallel(torch.nn.Sequential(*main), around), relu())


def torch_model(torch: Any, case: Case) -> Any:
    """The same network in torch, its layers in the order of their use."""
    model, layers = case.model, torch.nn
    if isinstance(model, MLP | TanhMLP):
        act = layers.ReLU if isinstance(model, MLP) else layers.Tanh
        widths = [int(np.prod(case.shape)), *model.hidden]
        parts: list[Any] = [layers.Flatten()]
        for i, o in pairwise(widths):
            parts += [layers.Linear(i, o), act()]
        return layers.Sequential(*parts, layers.Linear(widths[-1], model.classes))
    if isinstance(model, LeNet5):
        pool = partial(layers.MaxPool2d, 2)
        parts = [layers.Conv2d(1, 20, 5), layers.ReLU(), pool()]
        parts += [layers.Conv2d(20, 50, 5), layers.ReLU(), pool(), layers.Flatten()]
        return layers.Sequential(
            *parts, layers.Linear(800, 500), layers.ReLU(), layers.Linear(500, model.classes)
        )
    parts = [layers.Conv2d(3, 16, 3, padding=1, bias=False), layers.BatchNorm2d(16), layers.ReLU()]
    before = 16
    for stage, width in enumerate((16, 32, 64)):
        for block in range((model.depth - 2) // 6):
            parts.append(torch_residual(torch, before, width, 2 if stage and not block else 1))
            before = width
    parts += [layers.AdaptiveAvgPool2d(1), layers.Flatten(), layers.Linear(64, model.classes)]
    return layers.Sequential(*parts)


def in_torch_order(tree: Any, lenet5: bool) -> list[np.ndarray]:
    """The leaves of a Flax tree as torch lists and lays out its parameters, or its buffers."""
    found: list[np.ndarray] = []

    def number(name: str) -> int:
        return int(name.rpartition("_")[2])

    def add(layer: Any) -> None:
        if "kernel" in layer:
            kernel = np.asarray(layer["kernel"])
            if lenet5 and kernel.shape[0] == 800:  # flattened from [4, 4, 50]; torch: [50, 4, 4]
                kernel = kernel.reshape(4, 4, 50, -1).transpose(2, 0, 1, 3).reshape(800, -1)
            found.append(kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T)
        found.extend(np.asarray(layer[k]) for k in ("scale", "bias", "mean", "var") if k in layer)

    def walk(tree: Any) -> None:
        names = sorted(tree, key=lambda n: (number(n), n.startswith("BatchNorm")))
        order = ("Conv", "BatchNorm", "Block", "Dense")
        if any(n.startswith(("Block", "Dense")) for n in names):  # else layers alternate
            names.sort(key=lambda n: order.index(n.partition("_")[0]))
        for name in names:
            walk(tree[name]) if name.startswith("Block") else add(tree[name])

    walk(tree)
    return found


def torch_twin(torch: Any, case: Case, ours: Problem) -> tuple[Any, Any, Any]:
    """The torch network at our weights, our inputs and our labels."""
    model = torch_model(torch, case).eval()
    lenet5 = isinstance(case.model, LeNet5)
    copy = lambda x: torch.from_numpy(np.array(x))
    with torch.no_grad():
        weights = in_torch_order(ours.params, lenet5)
        for parameter, value in zip(model.parameters(), weights, strict=True):
            assert parameter.shape == value.shape, (parameter.shape, value.shape)
            parameter.copy_(copy(value))
        statistics = in_torch_order(ours.fixed.get("batch_stats", {}), lenet5)
        buffers = [b for b in model.buffers() if b.ndim]  # not the counts of batches
        for buffer, value in zip(buffers, statistics, strict=True):
            buffer.copy_(copy(value))
    inputs, labels = (np.asarray(x) for x in ours.batch)
    model_inputs = copy(inputs.transpose(0, 3, 1, 2))
    outputs, expected = model(model_inputs).detach().numpy(), ours.apply(ours.params, inputs)
    np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-3)
    return model, model_inputs, copy(labels).long()


def difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """The largest difference in any leaf, over the largest value of that leaf."""
    pairs = zip(ours, theirs, strict=True)
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in pairs)


class Twin(NamedTuple):
    """A diagonal that both sides compute.

    Attributes:
      network, what: which.
      ours, theirs: calls that return when it is there.
      gap: how far they are apart, see `difference`.
      pairs: of measurements, at most.
    """

    network: str
    what: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    gap: float
    pairs: int


def twins(cases: dict[str, Case], chosen: Collection[str] | None = None) -> Iterator[Twin]:
    """The diagonals of both, at the same weights, of all networks or the chosen.

    Raises:
      ModuleNotFoundError: BackPACK or torch is not installed.
    """
    import backpack
    import torch
    from backpack.extensions import DiagGGNExact, DiagHessian, SumGradSquared

    torch.set_num_threads(1)
    for known in ("Full backward hook", "Using a non-tuple sequence"):
        warnings.filterwarnings("ignore", known)
    pairings: list[tuple[str, str, Function, Any, str]] = [
        ("LeNet-300-100", "Gauss-Newton", gauss_newton, DiagGGNExact, "diag_ggn_exact"),
        ("tanh MLP, 2 hidden", "Hessian", exact, DiagHessian, "diag_h"),
        ("tanh MLP, 4 hidden", "Hessian", exact, DiagHessian, "diag_h"),
        ("LeNet-5", "Gauss-Newton", gauss_newton, DiagGGNExact, "diag_ggn_exact"),
        ("LeNet-5", "squared gradients", fisher, SumGradSquared, "sum_grad_squared"),
        ("ResNet-20", "Gauss-Newton", gauss_newton, DiagGGNExact, "diag_ggn_exact"),
    ]
    for name, what, make, extension, field in pairings:
        if chosen is not None and name not in chosen:
            continue
        case = cases[name]
        ours = problem(case)
        curvature = make(ours.apply)
        model, inputs, labels = torch_twin(torch, case, ours)
        model = backpack.extend(model)
        mean_loss = backpack.extend(torch.nn.CrossEntropyLoss())

        def call(model=model, mean_loss=mean_loss, x=inputs, t=labels, new=extension) -> None:
            model.zero_grad()
            with backpack.backpack(new()):
                mean_loss(model(x), t).backward()

        call()
        # It squares gradients of the mean: each is one N-th of an example's.
        scale = case.batch if field == "sum_grad_squared" else 1
        theirs = [scale * getattr(p, field).numpy() for p in model.parameters()]
        found = curvature(ours.params, ours.batch).mean
        gap = difference(in_torch_order(found, isinstance(case.model, LeNet5)), theirs)
        yield Twin(name, what, waiting(curvature, ours.params, ours.batch), call, gap, case.pairs)


def versions() -> str:
    """BackPACK's and torch's."""
    number = metadata.version("backpack-for-pytorch")
    return f"BackPACK {number}, torch {metadata.version('torch')}"


def against_backpack(cases: dict[str, Case]) -> None:
    """Table 2: BackPACK's time over ours.

    In float32 a ReLU whose input is all but 0 may be open on one side and shut on the other: on
    ResNet-20 both sides are then some 1e-3 from float64, where they agree to 1e-15.
    """
    rows = []
    try:
        for twin in twins(cases):
            ratio = compared(twin.ours, twin.theirs, twin.pairs)
            rows.append([twin.network, twin.what, *measuring.ratio_cells(ratio), f"{twin.gap:.0e}"])
    except ModuleNotFoundError as error:
        print(f"Rows against BackPACK are skipped: {error}.")
        return
    header = ["network", "diagonal", "x ours", *INTERVAL, f"{versions()} ms", "ours ms"]
    measuring.publish("curvature_backpack", f"{COMMAND} --only backpack", [*header, "difference"],
                      rows)  # fmt: skip
