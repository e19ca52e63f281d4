"""Masks of single weights: torch.nn.utils.prune beside ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from benchmarks.peers import Job

SHARE = 0.9
LENET = ((300, 784), (100, 300), (10, 100))
WIDE = ((512, 4608),) * 5


def layers(shapes: tuple[tuple[int, int], ...]) -> list[np.ndarray]:
    """Weights as a network's, outputs first."""
    draw = np.random.default_rng(0)
    return [draw.normal(size=s).astype(np.float32) / s[1] ** 0.5 for s in shapes]


def linear(torch: Any, weights: list[np.ndarray]) -> Any:
    """A chain of torch layers with those weights, without biases."""
    model = torch.nn.Sequential(*(torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
                                  for w in weights))  # fmt: skip
    with torch.no_grad():
        for layer, weight in zip(model, weights, strict=True):
            layer.weight.copy_(torch.from_numpy(weight))
    return model


def undone(model: Any) -> None:
    """Back to plain weights, those of before pruning."""
    for layer in model:
        hooks = [key for key, hook in layer._forward_pre_hooks.items() if hasattr(hook, "apply")]
        for key in hooks:
            del layer._forward_pre_hooks[key]
        layer.weight = layer._parameters.pop("weight_orig")
        layer._buffers.pop("weight_mask", None)


def same_masks(ours: list[Any], theirs: list[Any]) -> bool:
    """Do both sides keep the same weights?"""
    pairs = zip(ours, theirs, strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b) > 0) for a, b in pairs)


def pruning(torch: Any, name: str, shapes: tuple[tuple[int, int], ...], scope: Any) -> Job:
    """Magnitudes ranked over all layers, or in each; weights and masks out."""
    from torch.nn.utils import prune

    weights = layers(shapes)
    model, params = linear(torch, weights), [jnp.asarray(weight) for weight in weights]
    pruner = jp.one_shot(jp.saliency.magnitude(), jp.select.lowest(scope=scope))
    pruned = jax.jit(lambda params: pruner(params, sparsity=SHARE)[:2])

    def masked() -> None:
        if scope == "global":
            pairs = [(layer, "weight") for layer in model]
            prune.global_unstructured(pairs, prune.L1Unstructured, amount=SHARE)
        else:
            for layer in model:
                prune.l1_unstructured(layer, "weight", amount=SHARE)

    masked()
    theirs = [layer.weight_mask.numpy().copy() for layer in model]
    undone(model)
    mask = pruned(params)[1]
    assert same_masks(mask, theirs), "the two sides prune other weights"

    def call() -> None:
        masked()
        undone(model)

    words = "over all layers" if scope == "global" else "in every layer"
    return Job(
        f"{SHARE:.0%} of the smallest weights {words}, {name}", f"torch {torch.__version__}",
        lambda: jax.block_until_ready(pruned(params)), call,
    )  # fmt: skip


def training(torch: Any) -> tuple[Callable[[], None], Callable[[], None], str, str]:
    """A step of LeNet-300-100 with masks in both, and what the weights are after three steps."""
    from torch.nn.utils import prune

    weights = layers(LENET)
    draw = np.random.default_rng(1)
    x, y = draw.normal(size=(128, 784)).astype(np.float32), draw.integers(0, 10, 128)
    model = linear(torch, weights)
    pairs = [(layer, "weight") for layer in model]
    prune.global_unstructured(pairs, prune.L1Unstructured, amount=SHARE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)

    def forward(inputs: Any) -> Any:
        for layer in model[:-1]:
            inputs = torch.relu(layer(inputs))
        return model[-1](inputs)

    def theirs() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(forward(inputs), labels).backward()
        optimizer.step()

    params = [jnp.asarray(weight) for weight in weights]
    mask = jp.one_shot(jp.saliency.magnitude(), jp.select.lowest())(params, sparsity=SHARE).mask
    params = jp.apply_mask(params, mask)
    tx = optax.chain(optax.sgd(0.01, momentum=0.9), jp.freeze_pruned(mask))

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any) -> Any:
        def loss(params: Any) -> Any:
            hidden = jnp.asarray(x)
            for weight in params[:-1]:
                hidden = jax.nn.relu(hidden @ weight.T)
            logits = hidden @ params[-1].T
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    now = [(jax.tree.map(jnp.copy, params), tx.init(params))]

    def ours() -> None:
        now[0] = jax.block_until_ready(step(*now[0]))

    for _ in range(3):
        ours()
        theirs()
    zero = lambda tree: 1 - sum(int(np.count_nonzero(w)) for w in tree) / sum(w.size for w in tree)
    mine = zero([np.asarray(weight) for weight in now[0][0]])
    for layer in model:
        prune.remove(layer, "weight")
    before = zero([layer.weight.detach().numpy() for layer in model])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(3):
        theirs()
    after = zero([layer.weight.detach().numpy() for layer in model])
    prune.global_unstructured(pairs, prune.L1Unstructured, amount=SHARE)  # to be timed
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    wrong = "" if abs(mine - SHARE) < 1e-4 else f"{mine:.2f} pruned after three steps"
    other = f"`remove`, three more steps: {before:.2f} to {after:.2f} pruned"
    return ours, theirs, wrong, other if after < before else ""


def twice(torch: Any) -> str:
    """What two calls that ask for one half prune."""
    from torch.nn.utils import prune

    model = linear(torch, layers(LENET))
    for _ in range(2):
        for layer in model:
            prune.l1_unstructured(layer, "weight", amount=0.5)
    kept = sum(float(layer.weight_mask.sum()) for layer in model)
    gone = 1 - kept / sum(layer.weight_mask.numel() for layer in model)
    return f"50 % asked for twice prunes {gone:.0%}" if gone > 0.5001 else ""


def ours_twice() -> str:
    """The same of ours."""
    params = [jnp.asarray(weight) for weight in layers(LENET)]
    pruner = jp.one_shot(jp.saliency.magnitude(), jp.select.lowest(scope="layer"))
    once = pruner(params, sparsity=0.5)
    again = pruner(once.params, sparsity=0.5, mask=once.mask)
    gone = 1 - jp.trees.keep(again.mask) / jp.trees.count(params)
    return f"50 % asked for twice prunes {gone:.0%}" if gone > 0.5001 else ""


def jobs(quick: bool) -> Iterator[Job]:
    """All jobs; needs torch."""
    import torch

    torch.set_num_threads(1)
    nets = {"LeNet-300-100": LENET} if quick else {"LeNet-300-100": LENET, "11.8 M weights": WIDE}
    for name, shapes in nets.items():
        yield pruning(torch, name, shapes, "global")
        found = pruning(torch, name, shapes, "layer")
        yield found._replace(wrong_ours=ours_twice(), wrong_theirs=twice(torch))
    ours, theirs, wrong, other = training(torch)
    version = f"torch {torch.__version__}"
    yield Job("masked train step, LeNet-300-100, batch 128", version, ours, theirs, wrong, other)
