"""Memory of pruning a big bfloat16 tree that is cut over eight devices, jitted whole and donated.

    python benchmarks/size.py                 # 2e8 parameters, needs about 3 GiB
    python benchmarks/size.py 2e8 1e9 --save  # about 9 GiB

Every row runs in a process of its own. "program" is what XLA says the compiled program holds at
its peak (arguments, outputs, temporaries), "process" by how much the process really grew. Both are
told in sizes of what has to be there: the tree and its mask, 3 bytes a parameter.

Bounds to keep: 1.2 for magnitude, 3 for scores of gradients.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measuring  # isort: skip  # sets XLA's threads: before jax

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp

DEVICES, LEAVES, EXAMPLES = 8, 4, 16
BOUNDS = {"magnitude": 1.2, "taylor": 3.0, "fisher": 3.0}


def apply(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    for kernel in params.values():
        x = jax.nn.relu(x @ kernel)
    return x


def loss(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(outputs.astype(jnp.float32) - targets), axis=1)


def saliency(name: str) -> jp.Saliency:
    if name == "magnitude":
        return jp.saliency.magnitude()
    if name == "taylor":
        return jp.saliency.taylor(apply, loss)
    return jp.saliency.fisher(jp.curvature.fisher_diagonal(apply, loss))


def shapes(parameters: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Square kernels, cut along outputs and inputs in turns: no layer need be gathered."""
    mesh = jax.make_mesh((DEVICES,), ("x",), axis_types=(AxisType.Auto,))
    side = max(round((parameters / LEAVES) ** 0.5 / DEVICES), 1) * DEVICES
    cuts = [P(None, "x"), P("x", None)]
    return {
        f"layer_{i}": jax.ShapeDtypeStruct(
            (side, side), jnp.bfloat16, sharding=NamedSharding(mesh, cuts[i % 2])
        )
        for i in range(LEAVES)
    }


def resident(field: str) -> int:
    """VmRSS, or VmHWM, its peak, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise ValueError(f"This system does not tell {field}.")


def measure(name: str, parameters: int) -> dict[str, float]:
    """Compile, make the parameters, prune them once."""
    tree = shapes(parameters)
    side = next(iter(tree.values())).shape[0]
    prune = jp.one_shot(saliency(name), jp.select.lowest())
    run = jax.jit(lambda params, batch: prune(params, batch, sparsity=0.9)[:2], donate_argnums=0)
    x = jnp.ones((EXAMPLES, side), jnp.bfloat16)
    batch = (x, jnp.ones((EXAMPLES, side)))
    start = time.perf_counter()
    compiled = run.lower(tree, batch).compile()
    compiling = time.perf_counter() - start
    makers = {
        key: jax.jit(
            lambda i, s=leaf: jax.random.normal(jax.random.key(i), s.shape, s.dtype) / side**0.5,
            out_shardings=leaf.sharding,
        ).lower(jnp.int32(0)).compile()
        for key, leaf in tree.items()
    }  # fmt: skip
    before = resident("VmRSS")
    params = {key: make(jnp.int32(i)) for i, (key, make) in enumerate(makers.items())}
    jax.block_until_ready(params)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    start = measuring.clock()
    found = jax.block_until_ready(compiled(params, batch))
    taken = measuring.clock() - start
    peak = resident("VmHWM") - before
    count = jp.trees.count(tree)
    assert jp.trees.drop(found[1]) == round(0.9 * count)
    memory: Any = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    held += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    needed = 3 * count
    return {
        "parameters": count,
        "program": held * DEVICES / needed,
        "process": peak / needed,
        "GB": peak / 1e9,
        "seconds": taken,
        "compiling": compiling,
    }


def run(name: str, parameters: int) -> list[str]:
    """One row, measured in a process of its own."""
    command = [sys.executable, __file__, "--only", name, str(parameters)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found = json.loads(done.stdout.splitlines()[-1])
    return [
        f"{found['parameters']:.2g}",
        name,
        f"{found['program']:.2f}",
        f"{found['process']:.2f}",
        f"{BOUNDS[name]:g}",
        f"{found['GB']:.2f}",
        f"{found['seconds']:.1f}",
        f"{found['compiling']:.0f}",
    ]


if __name__ == "__main__":
    given = [word for word in sys.argv[1:] if not word.startswith("-")]
    if "--only" in sys.argv:
        jax.config.update("jax_num_cpu_devices", DEVICES)
        print(json.dumps(measure(given[0], int(given[1]))))
        raise SystemExit
    sizes = [round(float(size)) for size in given] or [2 * 10**8]
    header = [
        "parameters",
        "scores",
        "program",
        "process",
        "bound",
        "peak GB",
        "CPU s",
        "compile s",
    ]
    words = " ".join(f"{size:.0e}" for size in sizes)
    command = f"python benchmarks/size.py {words}"
    rows = [run(name, size) for size in sizes for name in BOUNDS]
    measuring.publish("size", command, header, rows)
