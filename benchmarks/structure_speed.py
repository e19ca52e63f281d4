"""Table 2 of the structure benchmark: how much faster a network is without its units."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measuring  # isort: skip  # sets XLA's threads: before jax

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from benchmarks.curvature_cases import compared
from benchmarks.structure_nets import COMMAND, WideResNet, count, filled, images, shapes_of
from benchmarks.structure_profile import compiled, kinds, profile
from experiments.models import MLP, ResNet, lenet_300_100


class Case(NamedTuple):
    """What is shrunk.

    Attributes:
      model: in Flax.
      inputs: a batch.
      narrow: the same code at the widths that were kept, where it can be given them.
    """

    model: Any
    inputs: np.ndarray
    narrow: Callable[[list[int]], Any] | None = None


def narrow_mlp(widths: list[int]) -> MLP:
    return MLP(tuple(widths), 10)


def narrow_wide(widths: list[int]) -> WideResNet | None:
    """Each stage has one group for its stream and one a block, all of the same width.

    The code has a projection where the widths differ, so it is another network where the stem is as
    wide as the first stage.
    """
    stages = tuple(sorted(set(widths[1:])))
    return None if widths[0] in stages else WideResNet(stem=widths[0], widths=stages)


FULL = {
    "LeNet-300-100": Case(lenet_300_100(), images(256, 28, 1), narrow_mlp),
    "ResNet-20": Case(ResNet(depth=20), images(256, 32)),
    "WRN-16-4": Case(WideResNet(), images(256, 32), narrow_wide),
}
QUICK = {
    "LeNet-300-100": Case(MLP((12, 10), 10), images(4, 4, 1), narrow_mlp),
    "ResNet-20": Case(ResNet(depth=8), images(4, 8)),
}


def largest_difference(a: Any, b: Any) -> float:
    """Relative to the largest output."""
    return float(np.max(np.abs(np.asarray(a) - np.asarray(b))) / np.max(np.abs(np.asarray(a))))


def row_of(name: str, case: Case, sparsity: float, round_to: int, most: int) -> list[str]:
    """One network at one share of units removed."""
    variables, x = filled(shapes_of(case.model, case.inputs)), case.inputs
    coupling = jp.couple(case.model.apply, variables, x)
    select = jp.select.lowest_units(coupling, scope="group", round_to=round_to)
    mask = select(variables, jp.saliency.magnitude()(variables), sparsity=sparsity)
    kept = jp.structure.dead_units(variables, mask, coupling).kept
    masked, small = jp.apply_mask(variables, mask), jp.shrink(variables, mask, coupling)

    dense = compiled(case.model.apply, variables, x)
    shrunk = compiled(jp.shrunk_apply(coupling, kept), small, x)
    run = lambda function, tree: lambda: jax.block_until_ready(function(tree, x))
    times = compared(run(shrunk, small), run(dense, variables), most)
    against_masked = compared(run(dense, variables), run(dense, masked), most)
    flops = coupling.flops() / coupling.flops(kept)
    replay = ""
    widths = [int(np.count_nonzero(kept[group])) for group in coupling.groups]
    narrow = case.narrow and case.narrow(widths)
    if narrow:
        original = compiled(narrow.apply, small, x)
        assert largest_difference(original(small, x), shrunk(small, x)) < 1e-5
        replay = compared(run(original, small), run(shrunk, small), most).told(3)
    apart = largest_difference(dense(masked, x), shrunk(small, x))
    rates = [
        (coupling.flops(k) / ms / found.products / 1e6, found)
        for function, tree, k, ms in (
            (dense, variables, None, times.milliseconds),
            (shrunk, small, kept, times.baseline),
        )
        for found in [profile(function, tree, x)]
    ]
    return [
        name,
        f"{sparsity:.0%}" + (f", in {round_to}s" if round_to > 1 else ""),
        f"{count(small) / count(variables):.1%}",
        f"{flops:.2f}",
        times.told(2),
        f"{times.median / flops - 1:+.0%}",
        str(times.pairs),
        f"{times.milliseconds:.2f}",
        f"{times.baseline:.2f}",
        " / ".join(f"{rate:.1f}" for rate, _ in rates),
        " / ".join(f"{found.products:.0%}" for _, found in rates),
        " / ".join(f"{found.fused:.0%}" for _, found in rates),
        against_masked.told(3),
        replay,
        f"{apart:.0e}",
    ]


def speed(quick: bool) -> None:
    """Each group loses the same share of its units, those of the lowest magnitude.

    Rates are of the kernels with products in them; `fused` are those where XLA hands a product and
    what surrounds it to one kernel.
    """
    most = 3 if quick else 30
    cases = QUICK if quick else FULL
    settings = [(0.5, 1), (0.9, 1), (0.9, 8)]
    rows = [row_of(n, case, *setting, most) for n, case in cases.items() for setting in settings]
    header = ["network", "units removed", "parameters left", "x fewer FLOPs", "x faster (95 %)"]
    header += ["apart", "pairs", "dense ms", "shrunk ms", "GFLOP/s in products"]
    header += ["time in products", "of it fused", "masked / dense", "shrunk / written small"]
    header += ["difference"]
    measuring.publish("structure_speed", f"{COMMAND} --only speed", header, rows)
    products(quick)


def products(quick: bool) -> None:
    """One product at a time: what a width is worth, which no replay can change."""
    batch, side, pairs = (2, 8, 3) if quick else (64, 32, 15)
    square = lambda n: (np.ones((batch, side, side, n), np.float32), np.ones((3, 3, n, n), "f"))
    matrices = lambda n: (np.ones((4 * batch, 784), np.float32), np.ones((784, n), np.float32))
    same = ("NHWC", "HWIO", "NHWC")
    convolution = partial(
        jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=same
    )
    families: list[tuple[str, Any, Any, tuple[int, ...]]] = [
        (f"3 x 3, {side} x {side}, n to n", convolution, square, (64, 32, 24, 16, 13, 8, 4, 2)),
        (f"matrix {4 * batch} x 784 x n", jnp.matmul, matrices, (300, 150, 32, 30, 16, 8)),
    ]
    rows = []
    for name, function, arguments, widths in families:
        ready = {n: (compiled(function, *arguments(n)), arguments(n)) for n in widths}
        call = lambda n, ready=ready: lambda: jax.block_until_ready(ready[n][0](*ready[n][1]))
        for n in widths:
            ratio = measuring.paired(call(n), call(widths[0]), pairs)
            x, kernel = arguments(n)
            flops = 2 * kernel.size * x.size / x.shape[-1]
            fused = "fused" in kinds(ready[n][0].as_text()).values()
            rows.append(
                [
                    name,
                    str(n),
                    f"{widths[0] ** (kernel.ndim // 2) / n ** (kernel.ndim // 2):.1f}",
                    ratio.told(2),
                    f"{ratio.baseline:.3f}",
                    f"{flops / ratio.baseline / 1e6:.1f}",
                    "fused" if fused else "alone",
                ]
            )
    header = ["product", "n", "x fewer FLOPs", "x faster (95 %)", "ms", "GFLOP/s", "kernel"]
    measuring.publish("structure_products", f"{COMMAND} --only speed", header, rows)
