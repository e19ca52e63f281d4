"""Whole units removed: Torch-Pruning beside ours."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

import jax

import jaxprune as jp
from benchmarks.peers import Job
from benchmarks.structure_peers import QUICK, cases, ours_of

NETS = ("LeNet-300-100", "ResNet-18", "ResNet-50", "transformer, pre-norm", "LSTM")


def jobs(quick: bool) -> Iterator[Job]:
    """Trace a network and remove half of the units of every group; needs torch-pruning."""
    import torch

    from benchmarks import structure_peers_torch as peer
    from benchmarks import structure_zoo_torch

    torch.set_num_threads(1)
    known = cases()
    for name in QUICK[:1] if quick else NETS:
        case = known[name]
        ours, make = ours_of(case), partial(case.theirs, structure_zoo_torch)
        model, inputs = peer.made(make), peer.as_torch(case.inputs)
        check = jp.check_shrunk(ours.variables, ours.mask(), ours.coupling, case.inputs)
        said, _ = peer.outcome(model, inputs, case.options)

        def mine(case=case, ours=ours) -> None:
            jax.clear_caches()  # as when a network is pruned for the first time
            ours._replace(coupling=ours.traced(case.inputs)).pruned()

        def theirs(case=case, model=model, inputs=inputs) -> None:
            peer.pruned(peer.traced(copy.deepcopy(model), inputs, case.options))

        good, works = peer.worded(check.relative), not said.startswith("failed")
        yield Job(
            f"half of all units traced and removed, {name}", peer.version(), mine,
            theirs if works else None,
            "" if good.startswith("exact") else good, "" if said.startswith("exact") else said,
        )  # fmt: skip
