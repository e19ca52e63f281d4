"""What selection and update cost, and how good the sets are: every solver on the same quadratic.

    python benchmarks/surgeon.py [--save]    # MLPNet on MNIST is trained first, if it is not there
    python benchmarks/surgeon.py --weights FILE.npz [--save]  # outside weights of MLPNet as well
    python benchmarks/surgeon.py --quick     # small networks, seconds

Cost: LeNet-300-100 (266,200 weights) and the 18 convolutions inside the blocks of ResNet-20, 1,000
random examples, 95 %: exchanges without update until none pays (at most 12 blocks), then the joint
update, compiled as ONE function; bytes are temporaries plus outputs of its `memory_analysis()`. The
Fisher's seconds include its compilation.

Quality: the Fisher quadratic of the trained MLPNet of `experiments.dense_networks` on MNIST, 1,000
examples, at 95 %. The objective is that AFTER the optimal update, over that of magnitude with the
update. `damping / 2 |w_S|^2` is part of it and cannot be below what the smallest weights have: the
bound is this part for magnitude alone. "CHITA" is hard thresholding by gradient steps, then least
squares on the support (Benbaki et al. 2023), our own implementation of it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measuring  # isort: skip  # sets XLA's threads: before jax

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from experiments import data
from experiments.combinatorial_brain_surgeon import outside_weights
from experiments.dense_networks import dense_network
from experiments.image_batches import normalise
from experiments.models import ResNet, lenet_300_100
from experiments.surgeon_methods import three_by_three
from experiments.training import cross_entropy
from jaxprune.select.threshold import kth_smallest
from jaxprune.surgeon import exchange, updating
from jaxprune.surgeon.local_model import LocalModel, Site, quadratic_at
from jaxprune.surgeon.pursuit import Effort, pursue
from jaxprune.surgeon.quadratic import Quadratic, high, value

COMMAND = "python benchmarks/surgeon.py"
EXAMPLES, QUICK_EXAMPLES = 1000, 60
SPARSITY, BLOCKS = 0.95, 12
NETWORKS = ("LeNet-300-100", "ResNet-20")
State = tuple[jax.Array, jax.Array, jax.Array]


def around(network: str, examples: int) -> tuple[Quadratic, Site, float]:
    """The quadratic of a network with new weights on random images, and the seconds it took."""
    dense = network == "LeNet-300-100"
    model = lenet_300_100() if dense else ResNet(20)
    shape = (28, 28, 1) if dense else (32, 32, 3)
    images = jax.random.uniform(jax.random.key(0), (examples, *shape))
    params, *rest = _split(model.init(jax.random.key(1), images[:1]))
    apply = lambda p, x: model.apply({"params": p, **rest[0]}, x)
    local = LocalModel(apply, cross_entropy, damping=1e-3)
    select = jp.select.lowest() if dense else jp.select.lowest(prunable=three_by_three)
    site = Site(params, select, local.adjust, None)
    batch = (images, jnp.arange(examples) % 10)
    start = measuring.clock()
    quadratic = jax.block_until_ready(quadratic_at(local, site, params, batch)[0])
    return quadratic, site, measuring.clock() - start


def _split(variables: Any) -> tuple[Any, dict[str, Any]]:
    return variables["params"], {k: v for k, v in variables.items() if k != "params"}


def cost(network: str, examples: int) -> list[str]:
    """Seconds, bytes and compile seconds of selection and update together."""
    quadratic, site, measured = around(network, examples)
    parts = site.parts()
    assert parts is not None

    def operate(quadratic: Quadratic, start: jax.Array) -> tuple[jax.Array, jax.Array]:
        diagonal = quadratic.diagonal()

        def more(state: State) -> jax.Array:
            return (state[1] > 0) & (state[2] < BLOCKS)

        def step(state: State) -> State:
            found = exchange.exchange_selection(
                quadratic, state[0], parts, diagonal, jnp.float32(1e-9), block=128
            )
            return found.mask, found.swaps, state[2] + 1

        mask = jax.lax.while_loop(more, step, (start, jnp.int32(1), jnp.int32(0)))[0]
        solution = jnp.where(mask, updating.dual(quadratic, mask).proximal, 0)
        return mask, solution

    start = site.choose(jnp.abs(quadratic.weights), SPARSITY)
    begun = time.perf_counter()
    compiled = high(operate).lower(quadratic, start).compile()
    compiling = time.perf_counter() - begun
    memory = compiled.memory_analysis()
    taken = (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 1e6
    seconds = median_seconds(lambda: compiled(quadratic, start), 5 if network == NETWORKS[0] else 2)
    mask = compiled(quadratic, start)[0]
    changed = int(jnp.sum(mask & ~start))
    label = f"{network}, {quadratic.weights.size:,} weights"
    return [
        label,
        f"{measured:.1f}",
        f"{seconds:.2f}",
        f"{taken:.0f}",
        f"{compiling:.1f}",
        f"{changed}",
    ]


def median_seconds(call: Callable[[], object], times: int = 5) -> float:
    """CPU seconds of a call that was made before."""
    jax.block_until_ready(call())
    taken = []
    for _ in range(times):
        start = measuring.clock()
        jax.block_until_ready(call())
        taken.append(measuring.clock() - start)
    return float(np.median(taken))


def quality(damping: float, bent: bool, weights_from: Path | None, quick: bool) -> list[list[str]]:
    """Every solver's objective over that of magnitude with the update."""
    name = "digits" if quick else "mnist"
    if weights_from is None:
        model, variables, _ = dense_network("mlpnet", name, "smoke" if quick else "cpu")
        apply, params = lambda p, x: model.apply({"params": p}, x), variables["params"]
    else:
        apply, params, _ = outside_weights(weights_from)
    found = data.load(name)
    images = normalise(jnp.asarray(found.train.inputs[:6000]), name)
    batch = (images, jnp.asarray(found.train.targets[:6000]))
    fisher = None
    if bent:
        root = jp.curvature.softmax_root
        fisher = jp.curvature.sketched_gauss_newton(apply, cross_entropy, root=root)
    examples = QUICK_EXAMPLES if quick else EXAMPLES
    local = LocalModel(apply, cross_entropy, fisher, damping=damping, examples=examples)
    site = Site(params, jp.select.lowest(), local.adjust, None)
    quadratic = quadratic_at(local, site, site.params, batch)[0]
    weights = quadratic.weights
    plain = site.choose(jnp.abs(weights), SPARSITY)
    solved = lambda mask: float(updating.solve(quadratic, mask).objective)
    base = solved(plain)
    bound = damping / 2 * float(jnp.sum(jnp.where(plain, 0, weights) ** 2))
    little = Effort(rounds=4, pursuits=0, blocks=4, probes=64)
    solvers: dict[str, Callable[[], float]] = {
        "magnitude + update": lambda: base,
        "bound": lambda: bound,
        "CBS-S (exchange) + update": lambda: solved(by_exchange(quadratic, site, plain)),
        "CHITA": lambda: solved(by_thresholds(quadratic, plain)),
        "joint, quick": lambda: joint(quadratic, site, little),
        "joint": lambda: joint(quadratic, site, Effort(rounds=16, probes=64)),
    }
    rows = []
    place = "our own" if weights_from is None else "outside"
    kind = "Gauss-Newton" if bent else "empirical Fisher"
    for name, solve in solvers.items():
        start = measuring.clock()
        objective = solve()
        seconds = measuring.clock() - start
        above = (objective - bound) / (base - bound)
        cells = [f"{objective / base:.3f}", f"{above:.3f}", f"{seconds:.1f}"]
        rows.append([place, kind, f"{damping:g}", name, *cells])
    return rows


def joint(quadratic: Quadratic, site: Site, effort: Effort) -> float:
    """The joint solver's objective."""
    found = pursue(quadratic, site, SPARSITY, effort=effort, key=jax.random.key(0))
    return float(found.solved.objective)


def by_exchange(quadratic: Quadratic, site: Site, mask: jax.Array) -> jax.Array:
    """CBS-S: exchanges that lower the objective without an update."""
    parts = site.parts()
    assert parts is not None
    diagonal = quadratic.diagonal()
    for _ in range(40):
        found = exchange.exchange_selection(
            quadratic, mask, parts, diagonal, jnp.float32(1e-9), block=128
        )
        mask = found.mask
        if not int(found.swaps):
            break
    return mask


def by_thresholds(quadratic: Quadratic, start: jax.Array, steps: int = 100) -> jax.Array:
    """CHITA's iterative hard thresholding, each step of the length that lowers Q most."""
    kept = jnp.sum(start)

    def threshold(z: jax.Array) -> jax.Array:
        cut = kth_smallest(jnp.abs(z), z.size - kept)
        return jnp.where(jnp.abs(z) >= cut, z, 0)

    def step(quadratic: Quadratic, z: jax.Array) -> jax.Array:
        slope = quadratic.product(z - quadratic.weights)
        inside = jnp.where(z != 0, slope, 0)
        length = inside @ inside / (inside @ quadratic.product(inside))
        tried = jax.lax.map(
            lambda power: threshold(z - length * 2.0**power * slope), jnp.arange(-6.0, 4.0)
        )
        values = jax.lax.map(lambda each: value(quadratic, each), tried)
        best = jnp.argmin(values)
        return jnp.where(values[best] < value(quadratic, z), tried[best], z)

    z = jnp.where(start, quadratic.weights, 0)
    run = high(lambda q, z: jax.lax.fori_loop(0, steps, lambda _, z: step(q, z), z))
    return run(quadratic, z) != 0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("cost", "quality"))
    parser.add_argument("--weights", type=Path, metavar="FILE", help="outside weights of MLPNet")
    parser.add_argument("--quick", action="store_true", help="small networks, seconds")
    parser.add_argument("--save", action="store_true", help="keep the tables")
    asked = parser.parse_args()
    if asked.quick and asked.save:
        parser.error("--quick measures nothing worth saving")
    if asked.only in (None, "cost"):
        header = ["network", "Fisher s", "S + U s", "temp + output MB", "compile s", "exchanged"]
        networks, examples = (NETWORKS[:1], QUICK_EXAMPLES) if asked.quick else (NETWORKS, EXAMPLES)
        rows = [cost(network, examples) for network in networks]
        measuring.publish("surgeon_cost", COMMAND, header, rows)
    if asked.only in (None, "quality"):
        compare(asked.weights, asked.quick)


def compare(weights: Path | None, quick: bool) -> None:
    """The table of objectives."""
    grid = [(1e-3, False)] if quick else [(d, bent) for bent in (False, True) for d in (1e-3, 1e-5)]
    places = [None] if weights is None else [None, weights]
    rows = [
        row for at in places for damping, bent in grid for row in quality(damping, bent, at, quick)
    ]
    header = ["weights", "curvature", "damping", "solver", "objective", "above the bound", "s"]
    command = COMMAND + (" --weights FILE.npz" if len(places) > 1 else "")
    measuring.publish("surgeon_quality", command, header, rows)


if __name__ == "__main__":
    main()
