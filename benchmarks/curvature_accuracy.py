"""Table 3 of the curvature benchmark: against float64, on trained networks."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measuring  # isort: skip  # sets XLA's threads: before jax

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import jaxprune as jp
from benchmarks.curvature_cases import (
    COMMAND,
    Function,
    TanhMLP,
    exact,
    fisher,
    gauss_newton,
    gradient,
    hutchinson,
    loss,
    mean_only,
    waiting,
)
from experiments import data
from experiments.models import lenet_300_100


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
