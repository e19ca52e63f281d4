"""Every stage on an accelerator, against what the device can do.

    python benchmarks/gpu.py [--save]     # on a GPU or TPU; on a CPU too, with JAX_PLATFORMS=cpu
    python benchmarks/gpu.py --quick      # small, seconds

The ceilings are measured: bytes a second of a copy, FLOPs a second of a large matrix product in the
same dtype. The bytes and FLOPs of a stage are the least it must do by its definition, not what it
does: the threshold of n float32 scores reads them once and writes a mask; a masked step reads
parameters, gradients, momentum and mask and writes parameters and momentum; shares of a ceiling are
therefore honest, and low where a stage goes over its data more than once.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "")  # whatever device there is
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measuring  # isort: skip  # sets XLA's threads: before jax

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from experiments.models import WideResNet, lenet_300_100
from experiments.training import cross_entropy


class Sizes(NamedTuple):
    """How large the cases are.

    Attributes:
      entries: of the trees that are masked.
      side: of the square matrices of the ceiling.
      examples: of the batches.
      depth, width: of the wide ResNet.
      repeats: timed calls.
    """

    entries: int
    side: int
    examples: int
    depth: int
    width: int
    repeats: int


FULL = Sizes(100_000_000, 8192, 256, 16, 4, 20)
ON_CPU = Sizes(20_000_000, 2048, 64, 10, 1, 5)
QUICK = Sizes(100_000, 128, 8, 10, 1, 2)


class Stage(NamedTuple):
    """A stage of the flow.

    Attributes:
      name: what, and on what.
      call: a jitted function.
      arguments: of it.
      moved: bytes that it must read and write.
      flops: that it must do.
    """

    name: str
    call: Callable[..., Any]
    arguments: tuple[Any, ...]
    moved: float
    flops: float = 0.0


def ceilings(sizes: Sizes) -> Iterator[Stage]:
    """A copy, and a matrix product."""
    array = jnp.ones(sizes.entries, jnp.float32)
    yield Stage("ceiling: copy", jax.jit(lambda x: x + 1), (array,), 8 * array.size)
    square = jnp.ones((sizes.side, sizes.side), jnp.float32)
    product = jax.jit(lambda a, b: a @ b)
    moved = 12 * square.size
    yield Stage("ceiling: product", product, (square, square), moved, 2 * sizes.side**3)


def masks(sizes: Sizes) -> Iterator[Stage]:
    """The threshold, and a step that holds a mask."""
    keys = jax.random.split(jax.random.key(0), 4)
    params = [jax.random.normal(key, (sizes.entries // 400, 100)) for key in keys]
    n = 4 * params[0].size
    prune = jp.one_shot(jp.saliency.magnitude(), jp.select.lowest())
    draw = jax.jit(lambda params: prune(params, sparsity=0.9).mask)
    yield Stage(f"global threshold and mask, {n:,} weights", draw, (params,), 5 * n)
    mask = draw(params)
    tx = optax.chain(optax.sgd(0.1, momentum=0.9), jp.freeze_pruned(mask))

    @jax.jit
    def step(params: Any, state: Any, gradient: Any) -> Any:
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = (params, tx.init(params), params)
    yield Stage(f"masked momentum step, {n:,} weights", step, state, (12 + 1 + 8) * n)


def curvatures(sizes: Sizes) -> Iterator[Stage]:
    """Diagonals of a wide ResNet, and the Gram matrix of the Fisher of LeNet-300-100."""
    images = jax.random.normal(jax.random.key(1), (sizes.examples, 32, 32, 3))
    labels = jnp.arange(sizes.examples) % 10
    model = WideResNet(sizes.depth, sizes.width, 10)
    variables = model.init(jax.random.key(2), images[:1])
    rest = {"batch_stats": variables["batch_stats"]}
    apply: Callable[..., Any] = lambda params, x: model.apply({"params": params, **rest}, x)
    forward = jp.couple(apply, variables["params"], images[:1]).flops() * sizes.examples
    name = f"WRN-{sizes.depth}-{sizes.width}, {sizes.examples} images"
    arguments, size = (variables["params"], (images, labels)), 4 * images.size
    gradient = jax.jit(jax.grad(lambda p, b: cross_entropy(apply(p, b[0]), b[1]).mean()))
    yield Stage(f"gradient, {name}", gradient, arguments, size, 3 * forward)
    fisher = jp.curvature.fisher_diagonal(apply, cross_entropy)
    yield Stage(f"Fisher diagonal, {name}", fisher, arguments, size, 3 * forward)
    newton = jp.curvature.gauss_newton_diagonal(apply, cross_entropy)
    yield Stage(f"Gauss-Newton diagonal, {name}", newton, arguments, size, 12 * forward)

    dense = lenet_300_100()
    digits = jax.random.normal(jax.random.key(3), (4 * sizes.examples, 28, 28, 1))
    targets = jnp.arange(len(digits)) % 10
    params = dense.init(jax.random.key(4), digits[:1])["params"]
    own = lambda params, x: dense.apply({"params": params}, x)
    factored = jp.curvature.factored_fisher(own, cross_entropy)
    gram = lambda params, batch: factored(params, batch).gram()
    widths = (784 + 300, 300 + 100, 100 + 10)
    flops = 2 * len(digits) ** 2 * sum(widths)
    yield Stage(f"Fisher Gram, LeNet-300-100, {len(digits)} examples", gram,
                (params, (digits, targets)), 4 * digits.size, flops)  # fmt: skip
    local = jp.surgeon.LocalModel(own, cross_entropy, damping=1e-4)
    solver = jp.surgeon.woodfisher(local)
    solve = lambda params, batch: solver(params, batch, sparsity=0.9).params
    yield Stage(f"WoodFisher, LeNet-300-100, {len(digits)} examples", solve,
                (params, (digits, targets)), 4 * digits.size, flops)  # fmt: skip


def smaller(sizes: Sizes) -> Iterator[Stage]:
    """A forward pass of a wide ResNet, dense and without half of the units of every group."""
    images = jnp.ones((sizes.examples, 32, 32, 3))
    model = WideResNet(sizes.depth, sizes.width, 10)
    variables = model.init(jax.random.key(0), images[:1])
    coupling = jp.couple(model.apply, variables, images[:1])
    kept = {name: np.arange(group.units) % 2 == 0 for name, group in coupling.groups.items()}
    small = jp.structure.shrink_units(variables, kept, coupling)
    for name, call, tree, flops in (
        ("dense", model.apply, variables, coupling.flops()),
        ("half of all units", jp.shrunk_apply(coupling, kept), small, coupling.flops(kept)),
    ):
        yield Stage(f"forward, WRN-{sizes.depth}-{sizes.width}, {name}", jax.jit(call),
                    (tree, images), 4 * images.size, flops * sizes.examples)  # fmt: skip


def milliseconds(stage: Stage, repeats: int) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile of calls after two that are not counted."""
    times = []
    for _ in range(2 + repeats):
        start = time.perf_counter()
        jax.block_until_ready(stage.call(*stage.arguments))
        times.append(1e3 * (time.perf_counter() - start))
    low, median, high = np.percentile(times[2:], (25, 50, 75))
    return float(low), float(median), float(high)


def main() -> None:
    """Measure the ceilings, then every stage."""
    quick = measuring.is_quick(__doc__)
    sizes = QUICK if quick else ON_CPU if jax.default_backend() == "cpu" else FULL
    rows, best = [], {"moved": 0.0, "flops": 0.0}
    for group in (ceilings, masks, curvatures, smaller):
        for stage in group(sizes):
            low, median, high = milliseconds(stage, sizes.repeats)
            speeds = {"moved": stage.moved, "flops": stage.flops}
            rates = {what: amount / median / 1e6 for what, amount in speeds.items()}
            if group is ceilings:
                best = {what: max(best[what], rate) for what, rate in rates.items()}
            share = max(rates[what] / best[what] for what in rates if best[what])
            rows.append(
                [
                    stage.name, f"{median:.2f}",
                    f"{low:.2f} .. {high:.2f}",
                    f"{rates['moved']:.1f}", f"{rates['flops']:.1f}", f"{share:.0%}",
                ]
            )  # fmt: skip
    head = ["stage", "ms", "quartiles", "GB/s", "GFLOP/s", "of the nearer ceiling"]
    measuring.publish("gpu", "python benchmarks/gpu.py", head, rows)


if __name__ == "__main__":
    main()
