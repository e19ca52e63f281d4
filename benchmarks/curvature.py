"""Curvature: its cost in gradients, beside BackPACK, and its accuracy on trained networks.

    python benchmarks/curvature.py                 # --save writes the committed tables
    python benchmarks/curvature.py --only speed    # or backpack, or accuracy
    python benchmarks/curvature.py --quick         # small networks, 3 pairs

One batch, float32, the same weights on both sides. The unit is one jitted gradient of the mean
loss of that batch. BackPACK's time is of a forward and a backward pass with its extension, and so
holds a gradient, which ours leaves out. Without torch or backpack that table is skipped.
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measuring  # isort: skip  # sets XLA's threads: before jax

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.flatten_util import ravel_pytree

import jaxprune as jp
from experiments import data
from experiments.models import MLP, LeNet5, ResNet, lenet_300_100

COMMAND = "python benchmarks/curvature.py"
INTERVAL = ["95 %", "pairs"]
Function = Callable[..., Any]

loss = optax.softmax_cross_entropy_with_integer_labels
mean_only: dict[str, Any] = {"second_moment": False}
root: dict[str, Any] = {"root": jp.curvature.softmax_root}


class TanhMLP(nn.Module):
    """Dense layers with tanh between them."""

    hidden: tuple[int, ...]
    classes: int = 10

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        x = inputs.reshape(inputs.shape[0], -1)
        for width in self.hidden:
            x = nn.tanh(nn.Dense(width)(x))
        return nn.Dense(self.classes)(x)


class Case(NamedTuple):
    """What is measured, and how often.

    Attributes:
      model: in Flax.
      shape: of one input.
      batch: number of examples.
      pairs: of measurements.
      per_example: gradients of all examples fit in memory, for `vmap(grad)`.
    """

    model: Any
    shape: tuple[int, ...]
    batch: int = 128
    pairs: int = 30
    per_example: bool = True


IMAGE = (28, 28, 1)
FULL = {
    "LeNet-300-100": Case(lenet_300_100(), IMAGE),
    "LeNet-5": Case(LeNet5(), IMAGE, pairs=15),
    "ResNet-20": Case(ResNet(depth=20), (32, 32, 3), pairs=9, per_example=False),
    "tanh MLP, 2 hidden": Case(TanhMLP((300, 100)), IMAGE),
    "tanh MLP, 4 hidden": Case(TanhMLP((100, 100, 100, 100)), IMAGE),
}
QUICK = {
    "LeNet-300-100": Case(MLP((12, 10), 10), (4, 4, 1), 16, 3),
    "LeNet-5": Case(LeNet5(), IMAGE, 4, 3),
    "ResNet-20": Case(ResNet(depth=8), (8, 8, 3), 4, 3, per_example=False),
    "tanh MLP, 2 hidden": Case(TanhMLP((12, 10)), (4, 4, 1), 16, 3),
    "tanh MLP, 4 hidden": Case(TanhMLP((8, 8, 8, 8)), (4, 4, 1), 16, 3),
}
QUICK_SPEED = ("LeNet-300-100", "tanh MLP, 2 hidden")  # the rest take long to compile


class Problem(NamedTuple):
    """A network at some weights, and a batch; `fixed` holds the statistics of BatchNorm."""

    apply: Function
    params: Any
    fixed: Any
    batch: tuple[jax.Array, jax.Array]


def problem(case: Case) -> Problem:
    """Fresh weights and random inputs; BatchNorm is frozen at the statistics of the batch."""
    inputs = jax.random.normal(jax.random.key(0), (case.batch, *case.shape))
    variables = jax.jit(case.model.init)(jax.random.key(1), inputs)
    params, fixed = variables["params"], {}
    if "batch_stats" in variables:
        step = partial(case.model.apply, train=True, mutable=["batch_stats"])
        moved = jax.jit(step)(variables, inputs)[1]["batch_stats"]
        undo = lambda new, old: (new - 0.9 * old) / 0.1  # the running average has a momentum of 0.9
        fixed = {"batch_stats": jax.tree.map(undo, moved, variables["batch_stats"])}
    apply = lambda params, inputs: case.model.apply({"params": params, **fixed}, inputs)
    return Problem(apply, params, fixed, (inputs, jnp.arange(case.batch) % 10))


def exact(apply: Function) -> Function:
    return jp.curvature.exact_diagonal(apply, loss, **root, **mean_only)


def gauss_newton(apply: Function) -> Function:
    return jp.curvature.gauss_newton_diagonal(apply, loss, **root, **mean_only)


def fisher(apply: Function) -> Function:
    return jp.curvature.fisher_diagonal(apply, loss, **mean_only)


def hutchinson(apply: Function, probes: int) -> Function:
    key = jax.random.key(2)
    return jp.curvature.hutchinson_diagonal(apply, loss, key=key, probes=probes)


def gradient(apply: Function) -> Function:
    """The unit: one jitted gradient of the mean loss."""
    mean_loss = lambda params, batch: jnp.mean(loss(apply(params, batch[0]), batch[1]))
    return jax.jit(jax.grad(mean_loss))


def squared_gradients(apply: Function) -> Function:
    """Squares of gradients as one writes them without a library."""
    alone = lambda params, x, t: loss(apply(params, x[None]), t[None])[0]
    each = jax.vmap(jax.grad(alone), (None, 0, 0))
    squares = lambda params, batch: each(params, *batch)
    return jax.jit(lambda p, b: jax.tree.map(lambda g: jnp.mean(g * g, axis=0), squares(p, b)))


def along_params(product: Function, params: Any, batch: Any) -> Any:
    return product(params, batch, params)


def waiting(function: Function, *args: Any) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(function(*args))


def compared(one: Callable[[], Any], other: Callable[[], Any], most: int) -> measuring.Ratio:
    """`most` pairs, or as many as fit 20 seconds; 3 at least."""
    times = []
    for call in (one, other):
        call()
        start = measuring.clock()
        call()
        times.append(max(measuring.clock() - start, 1e-6))
    fit = 20 / (max(1, 0.05 / times[0]) * sum(times))  # a measurement is of 0.05 s at least
    return measuring.paired(one, other, max(3, min(most, int(fit))))


def speed(cases: dict[str, Case]) -> None:
    """Table 1: in gradients of the same batch."""
    rows = []
    for name, case in cases.items():
        apply, params, _, batch = problem(case)
        measured: dict[str, Function] = {
            "exact diagonal": exact(apply),
            "Gauss-Newton diagonal": gauss_newton(apply),
            "empirical Fisher diagonal": fisher(apply),
            "moments of gradients": jp.curvature.gradient_moments(apply, loss),
            "Hutchinson, 1 probe": hutchinson(apply, 1),
            "Hessian-vector product": partial(along_params, jp.curvature.hvp(apply, loss)),
        }
        if case.per_example:
            measured["jit(vmap(grad) ** 2)"] = squared_gradients(apply)
        one = waiting(gradient(apply), params, batch)
        for what, function in measured.items():
            ratio = compared(one, waiting(function, params, batch), case.pairs)
            cells = measuring.ratio_cells(ratio)
            rows.append([name, f"{jp.trees.count(params):,}", what, *cells])
    header = ["network", "parameters", "what", "x gradient", *INTERVAL, "ms", "gradient ms"]
    measuring.publish("curvature", f"{COMMAND} --only speed", header, rows)


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


def against_backpack(cases: dict[str, Case]) -> None:
    """Table 2: BackPACK's time over ours.

    In float32 a ReLU whose input is all but 0 may be open on one side and shut on the other: on
    ResNet-20 both sides are then some 1e-3 from float64, where they agree to 1e-15.
    """
    try:
        import backpack
        import torch
        from backpack.extensions import DiagGGNExact, DiagHessian, SumGradSquared
    except ModuleNotFoundError as error:
        print(f"Rows against BackPACK are skipped: {error}.")
        return
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
    rows = []
    for name, what, make, extension, field in pairings:
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
        one = waiting(curvature, ours.params, ours.batch)
        ratio = compared(one, call, case.pairs)
        rows.append([name, what, *measuring.ratio_cells(ratio), f"{gap:.0e}"])
    number = metadata.version("backpack-for-pytorch")
    versions = f"BackPACK {number}, torch {torch.__version__} ms"
    header = ["network", "diagonal", "x ours", *INTERVAL, versions, "ours ms", "difference"]
    measuring.publish("curvature_backpack", f"{COMMAND} --only backpack", header, rows)


class Trained(NamedTuple):
    """A network that has learnt its training examples."""

    apply: Function
    params: Any
    batch: tuple[jax.Array, jax.Array]
    accuracy: float
    loss: float


def train(model: Any, steps: int, examples: int) -> Trained:
    """Adam on digits, in batches of 128; then measured on the first `examples` it learnt from."""
    inputs, targets = (jnp.asarray(x) for x in data.load("digits").train)
    apply = lambda params, inputs: model.apply({"params": params}, inputs)
    params = model.init(jax.random.key(1), inputs[:1])["params"]
    optimizer = optax.adam(1e-3)

    @jax.jit
    def run(params: Any) -> Any:
        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            params, state = carry
            drawn = jax.random.randint(key, (128,), 0, len(targets))
            grads = gradient(apply)(params, (inputs[drawn], targets[drawn]))
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(jax.random.key(3), steps)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    params = run(params)
    logits = apply(params, inputs)
    right = float(jnp.mean(jnp.argmax(logits, axis=-1) == targets))
    batch = (inputs[:examples], targets[:examples])
    return Trained(apply, params, batch, right, float(jnp.mean(loss(logits, targets))))


def flat(tree: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0], np.float64)


def columns(apply: Function, params: Any, batch: Any, chosen: np.ndarray) -> np.ndarray:
    """Diagonal entries read off columns of the Hessian, forward over reverse."""
    vector, back = ravel_pytree(params)
    grad = jax.grad(lambda v: jnp.mean(loss(apply(back(v), batch[0]), batch[1])))

    @jax.jit
    def entry(vector: jax.Array, i: jax.Array) -> jax.Array:
        return jax.jvp(grad, (vector,), (jnp.zeros_like(vector).at[i].set(1),))[1][i]

    return np.array([entry(vector, i) for i in chosen])


def against(truth: np.ndarray, found: np.ndarray) -> list[str]:
    """Errors as cells: of all in the L2 norm, and relative to each entry that is not 0."""
    some = truth != 0
    relative = np.abs(found[some] - truth[some]) / np.abs(truth[some])
    whole = np.linalg.norm(found - truth) / np.linalg.norm(truth)
    return [f"{whole:.1e}", f"{np.median(relative):.1e}", f"{np.max(relative):.1e}"]


def ranking(truth: np.ndarray, found: np.ndarray) -> list[str]:
    """Spearman's correlation, and the share of the largest tenth that is found, as cells."""
    from scipy import stats

    most = max(len(truth) // 10, 1)
    largest = lambda x: set(np.argsort(-x, kind="stable")[:most].tolist())
    overlap = len(largest(truth) & largest(found)) / most
    return [f"{stats.spearmanr(truth, found).statistic:.4f}", f"{100 * overlap:.1f} %"]


def accuracy(quick: bool) -> None:
    """Table 3: against the Hessian's diagonal in float64, on networks that are sure."""
    steps, examples, entries, pairs = (100, 32, 10, 3) if quick else (3000, 512, 300, 5)
    networks: dict[str, Any] = {"tanh MLP, 2 hidden": TanhMLP((8, 8) if quick else (64, 32))}
    if not quick:
        networks = {"LeNet-300-100": lenet_300_100(), **networks}
    rows = []
    for name, model in networks.items():
        trained = train(model, steps, examples)
        apply, params, batch = trained.apply, trained.params, trained.batch
        print(f"{name}: training accuracy {trained.accuracy:.4f}, loss {trained.loss:.1e}")
        count = jp.trees.count(params)
        chosen = np.random.default_rng(0).choice(count, entries, replace=False)
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), params)
            wide_batch = (jnp.asarray(np.asarray(batch[0]), jnp.float64), batch[1])
            truth = flat(exact(apply)(wide, wide_batch).mean)
            checked = columns(apply, wide, wide_batch, chosen)
        measured = {
            "exact, float32": exact(apply),
            "Gauss-Newton": gauss_newton(apply),
            "empirical Fisher": fisher(apply),
            "true Fisher, 1 sample": jp.curvature.true_fisher_diagonal(
                apply, jp.curvature.categorical, key=jax.random.key(4), **mean_only
            ),
            **{f"Hutchinson, {n} probe{'s' * (n > 1)}": hutchinson(apply, n) for n in (1, 32, 512)},
        }
        network = f"{name}: {count:,}"
        some = f"on {entries} hvp columns"
        rows.append(
            [network, f"exact, float64, {some}", "", *against(checked, truth[chosen]), "", ""]
        )
        one = waiting(gradient(apply), params, batch)
        for what, function in measured.items():
            found = flat(function(params, batch).mean)
            if what == "exact, float32":
                cells = against(checked, found[chosen])
                rows.append([network, f"{what}, {some}", "", *cells, "", ""])
            # Long calls are not repeated inside a measurement: the gradient is short.
            ratio = measuring.paired(one, waiting(function, params, batch), pairs, least=0)
            cells = [f"{ratio.median:.1f}", *against(truth, found), *ranking(truth, found)]
            rows.append([network, what, *cells])
    errors = ["error (L2)", "median relative", "largest relative"]
    header = ["network", "what", "x gradient", *errors, "Spearman", "top 10 %"]
    measuring.publish("curvature_accuracy", f"{COMMAND} --only accuracy", header, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("speed", "backpack", "accuracy"))
    parser.add_argument("--quick", action="store_true", help="small networks, few pairs")
    parser.add_argument("--save", action="store_true", help="keep the tables")
    asked = parser.parse_args()
    if asked.quick and asked.save:
        parser.error("--quick measures nothing worth saving")
    cases = QUICK if asked.quick else FULL
    if asked.only in (None, "speed"):
        speed({n: case for n, case in cases.items() if not asked.quick or n in QUICK_SPEED})
    if asked.only in (None, "backpack"):
        against_backpack(cases)
    if asked.only in (None, "accuracy"):
        accuracy(asked.quick)
