"""Tables 3 and 4 of the structure benchmark: beside Torch-Pruning, the same networks in both."""

from __future__ import annotations

import copy
import gc
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measuring  # isort: skip  # sets XLA's threads: before jax

import jax
import numpy as np

import jaxprune as jp
from benchmarks import structure_zoo_flax as zoo
from benchmarks.structure_nets import COMMAND, ResNet, count, filled, images, shapes_of
from benchmarks.structure_trace import in_turns, interval
from experiments.models import LeNet5, lenet_300_100


class Case(NamedTuple):
    """A network in both.

    Attributes:
      ours: in Flax.
      inputs: a batch; images have their channels last.
      theirs: makes it in torch, from the module with torch's networks.
      options: for Torch-Pruning's pruner, from its network.
      pairs: of measurements.
    """

    ours: Any
    inputs: np.ndarray
    theirs: Callable[[Any], Any]
    options: Callable[[Any], dict[str, Any]]
    pairs: int = 9


def last(model: Any) -> dict[str, Any]:
    """The output layer is not to be pruned: the last of a Sequential, or `end`."""
    return {"ignored_layers": [model.end if hasattr(model, "end") else model[-1]]}


def heads_of_module(model: Any) -> dict[str, Any]:
    """Each head loses as much of its width; with `num_heads` it would prune no attention at all.

    torch scales the logits by the width that is left: put right by hand, the difference of the
    network without norms falls from 6e-2 to 1e-7.
    """
    return last(model) | {"out_channel_groups": {model.attend: 4}}


def stream_kept(model: Any) -> dict[str, Any]:
    """Nothing that writes to what LayerNorm reads is pruned, which leaves the dense layers."""
    return {"ignored_layers": [model.start, model.attend, model.main[2], model.end]}


def heads_of_layer(model: Any) -> dict[str, Any]:
    """As its example for timm: the width of heads is pruned."""
    return last(model) | {"num_heads": {model.qkv: 4}}


def grouped_heads(model: Any) -> dict[str, Any]:
    """As its example for language models: whole heads are pruned, and hidden widths."""
    heads = {"num_heads": {model.q: 8, model.k: 2, model.v: 2}}
    whole = {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": 0.5}
    return last(model) | heads | whole


def halves(model: Any) -> dict[str, Any]:
    """As its example for language models."""
    return last(model) | {"out_channel_groups": {model.both: 2}}


def cases() -> dict[str, Case]:
    random = np.random.default_rng(0)
    small, large = images(2, 16), partial(images, 1, 224)
    sequence = random.normal(size=(2, zoo.PLACES, 12)).astype(np.float32)
    words = random.integers(0, zoo.WORDS, (2, zoo.PLACES))
    vectors = random.normal(size=(2, 64)).astype(np.float32)
    r18, r50 = (2, 2, 2, 2), (3, 4, 6, 3)
    bias = lambda m: {"ignored_layers": [m.bias]}
    return {
        "LeNet-300-100": Case(lenet_300_100(), images(2, 28, 1), lambda z: z.mlp(), last),
        "ResNet-18": Case(ResNet(r18), large(), lambda z: z.resnet(r18, False), last, 5),
        "ResNet-50": Case(ResNet(r50, True), large(), lambda z: z.resnet(r50, True), last, 5),
        "DenseNet": Case(zoo.Dense(), small, lambda z: z.Dense(), last),
        "ResNeXt": Case(zoo.ResNeXt(), small, lambda z: z.resnext(), last),
        "MobileNetV2": Case(zoo.MobileNet(), small, lambda z: z.mobilenet(), last),
        "squeeze-excite": Case(zoo.SqueezeExcite(), small, lambda z: z.squeeze_excite(), last),
        "U-Net": Case(zoo.UNet(), small, lambda z: z.UNet(), last),
        "LeNet-5": Case(LeNet5(), images(2, 28, 1), lambda z: z.lenet5(), last),
        "tied autoencoder": Case(
            zoo.TiedAutoencoder(), vectors, lambda z: z.TiedAutoencoder(), bias
        ),
        "tied embeddings": Case(zoo.TiedLM(), words, lambda z: z.TiedLM(), last),
        "attention, the library's": Case(
            zoo.Attention(), sequence, lambda z: z.Attention(), heads_of_module
        ),
        "attention, fused": Case(
            zoo.FusedAttention(), sequence, lambda z: z.FusedAttention(), heads_of_layer
        ),
        "grouped queries": Case(
            zoo.GroupedQueries(), sequence, lambda z: z.GroupedQueries(), grouped_heads
        ),
        "transformer, pre-norm": Case(
            zoo.PreNorm(), sequence, lambda z: z.PreNorm(), heads_of_module
        ),
        "the same, stream ignored": Case(
            zoo.PreNorm(), sequence, lambda z: z.PreNorm(), stream_kept
        ),
        "LSTM": Case(zoo.LSTM(), sequence, lambda z: z.LSTM(), last),
        "GLU, two layers": Case(zoo.GLU(), sequence, lambda z: z.GLU(), last),
        "GLU, one layer": Case(zoo.GLU(True), sequence, lambda z: z.GLU(True), halves),
    }


QUICK = ("LeNet-300-100", "GLU, two layers")


class Ours(NamedTuple):
    """Our side of a case."""

    apply: Any
    variables: Any
    coupling: Any
    score: Any  # made once: a new one is compiled anew

    def traced(self, inputs: Any) -> Any:
        return jp.couple(partial(self.apply), self.variables, inputs[:1])

    def mask(self) -> Any:
        select = jp.select.lowest_units(self.coupling, scope="group")
        return select(self.variables, self.score(self.variables), sparsity=0.5)

    def pruned(self) -> Any:
        return jax.block_until_ready(jp.shrink(self.variables, self.mask(), self.coupling))


def ours_of(case: Case) -> Ours:
    variables = filled(shapes_of(case.ours, case.inputs))
    coupling = jp.couple(case.ours.apply, variables, case.inputs)
    return Ours(case.ours.apply, variables, coupling, jp.saliency.magnitude())


def against_torch_pruning(quick: bool) -> None:
    """Each group loses half of its units, those of the lowest magnitude; both in eval mode.

    Masked are exactly the entries that were removed. JAX's caches are emptied before each of our
    calls, as they are when a network is pruned for the first time; `warm` leaves them.
    """
    try:
        import torch

        from benchmarks import structure_peers_torch as peer
        from benchmarks import structure_zoo_torch
    except ModuleNotFoundError as error:
        print(f"Rows against Torch-Pruning are skipped: {error}.")
        return
    torch.set_num_threads(1)
    outcomes, times = [], []
    chosen = {n: c._replace(pairs=3) for n, c in cases().items() if n in QUICK}
    for name, case in (chosen if quick else cases()).items():
        ours, make = ours_of(case), partial(case.theirs, structure_zoo_torch)
        theirs, inputs = peer.made(make), peer.as_torch(case.inputs)
        check = jp.check_shrunk(ours.variables, ours.mask(), ours.coupling, case.inputs)
        left = f"{count(ours.pruned()['params']) / count(ours.variables['params']):.1%}"
        found = peer.outcome(theirs, inputs, case.options)
        outcomes.append([name, peer.worded(check.relative), left, *found])
        times.append(
            [name, f"{count(ours.variables['params']):,}", *timed(peer, case, ours, theirs, inputs)]
        )
    header = ["network", "ours", "parameters left", peer.version(), "parameters left"]
    measuring.publish("structure_peers", f"{COMMAND} --only peers", header, outcomes)
    header = ["network", "parameters", "trace: ours s", "theirs s", "ours / theirs (95 %)"]
    header += ["prune: ours s", "theirs s", "ours / theirs (95 %)", "pairs", "both of ours, warm"]
    measuring.publish("structure_peers_speed", f"{COMMAND} --only peers", header, times)


def timed(peer: Any, case: Case, ours: Ours, theirs: Any, inputs: Any) -> list[str]:
    """Cells: tracing, pruning, and both of ours with warm caches."""

    def empty() -> None:
        jax.clear_caches()
        gc.collect()

    def fresh() -> Any:
        gc.collect()
        return peer.traced(copy.deepcopy(theirs), inputs, case.options)

    our_trace = lambda _: ours.traced(case.inputs)
    our_prune = lambda _: ours.pruned()
    their_trace = lambda _: peer.traced(theirs, inputs, case.options)
    cells = []
    for mine, other in (
        (our_trace, (gc.collect, their_trace)),
        (our_prune, (fresh, peer.pruned)),
    ):
        try:
            times = in_turns([(empty, mine), other], case.pairs)
        except Exception:  # the outcome says what a peer raised
            times = in_turns([(empty, mine)], case.pairs)
            cells += [f"{np.median(times):.3f}", "-", "-"]
        else:
            middle = [f"{number:.3f}" for number in np.median(times, axis=0)]
            cells += [*middle, interval(times[:, 0] / times[:, 1])]
    warm = np.median(
        in_turns([(gc.collect, our_trace), (gc.collect, our_prune)], case.pairs), axis=0
    )
    return [*cells, str(case.pairs), " / ".join(f"{number:.3f}" for number in warm)]
