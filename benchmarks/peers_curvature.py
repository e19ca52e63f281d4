"""Diagonals of curvature: BackPACK beside ours."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import curvature_cases
from benchmarks.curvature_backpack import twins, versions
from benchmarks.peers import Job

FAR = 1e-2
"""Of the largest entry of a leaf; see `against_backpack` on ReLUs in float32."""


def jobs(quick: bool) -> Iterator[Job]:
    """Diagonals of three networks; needs BackPACK."""
    cases = curvature_cases.QUICK if quick else curvature_cases.FULL
    for twin in twins(cases, ("LeNet-300-100", "LeNet-5", "tanh MLP, 2 hidden")):
        wrong = "" if twin.gap < FAR else f"apart by {twin.gap:.0e}"
        name = f"{twin.what} diagonal, {twin.network}"
        yield Job(name, versions(), twin.ours, twin.theirs, wrong, wrong)
