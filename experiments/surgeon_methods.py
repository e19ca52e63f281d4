"""The methods and the published numbers of the Combinatorial Brain Surgeon's comparison."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax

import jaxprune as jp
from experiments.training import cross_entropy
from jaxprune.types import Apply, Params, Pruner, Selection

METHODS = {
    "MP": "magnitude",
    "WF-S": "WoodFisher's scores, no update",
    "CBS-S": "random partitions and the paper's local search, no update",
    "WF": "WoodFisher with its own update",
    "CBS": "CBS-S, then the joint update",
    "CBS fast": "random partitions, block exchanges, the update's scale by training loss",
    "joint": "joint selection and update, one quadratic",
    "multi-stage": "the same with a new quadratic in every stage",
    "ExactOBS": "layer by layer, exact",
    "SparseGPT": "layer by layer, one sweep",
}

PUBLISHED = {
    "MLPNet/MNIST": {
        0.0: {"dense": 93.97},
        0.5: {"MP": 93.93, "WF-S": 93.92, "CBS-S": 93.91, "WF": 94.02, "CBS": 93.96},
        0.6: {"MP": 93.78, "WF-S": 93.75, "CBS-S": 93.85, "WF": 93.82, "CBS": 93.96},
        0.7: {"MP": 93.62, "WF-S": 93.48, "CBS-S": 93.75, "WF": 93.77, "CBS": 93.98},
        0.8: {"MP": 92.89, "WF-S": 93.13, "CBS-S": 93.59, "WF": 93.57, "CBS": 93.90},
        0.9: {"MP": 90.30, "WF-S": 90.77, "CBS-S": 92.37, "WF": 91.69, "CBS": 93.14},
        0.95: {"MP": 83.64, "WF-S": 83.16, "CBS-S": 88.24, "WF": 85.54, "CBS": 88.92},
        0.98: {"MP": 32.25, "WF-S": 34.55, "CBS-S": 66.64, "WF": 38.26, "CBS": 55.45},
    },
    "ResNet-20/CIFAR-10": {
        0.0: {"dense": 91.36},
        0.5: {"MP": 88.44, "WF-S": 88.06, "CBS-S": 89.32, "WF": 90.23, "CBS": 90.58},
        0.6: {"MP": 85.24, "WF-S": 84.95, "CBS-S": 86.48, "WF": 87.96, "CBS": 88.88},
        0.7: {"MP": 78.79, "WF-S": 78.09, "CBS-S": 79.55, "WF": 81.05, "CBS": 81.84},
        0.8: {"MP": 54.01, "WF-S": 52.05, "CBS-S": 61.30, "WF": 62.63, "CBS": 51.28},
        0.9: {"MP": 11.79, "WF-S": 11.44, "CBS-S": 16.83, "WF": 11.49, "CBS": 13.68},
    },
    "CIFARNet/CIFAR-10": {
        0.0: {"dense": 79.75},
        0.8: {"MP": 76.92, "WF-S": 77.24, "CBS-S": 77.82, "WF": 78.72, "CBS": 78.58},
        0.9: {"MP": 49.91, "WF-S": 52.66, "CBS-S": 62.09, "WF": 61.95, "CBS": 65.52},
        0.95: {"MP": 17.61, "WF-S": 14.81, "CBS-S": 32.63, "WF": 15.29, "CBS": 21.07},
    },
    "MobileNet/ImageNet": {
        0.0: {"dense": 72.0},
        0.5: {"MP": 62.61, "WF-S": 63.10, "CBS-S": 62.96, "WF": 68.91, "CBS": 70.21},
        0.6: {"MP": 41.94, "WF-S": 44.07, "CBS-S": 43.10, "WF": 60.90, "CBS": 66.37},
        0.7: {"MP": 6.78, "WF-S": 7.33, "CBS-S": 7.63, "WF": 29.36, "CBS": 55.11},
        0.8: {"MP": 0.11, "WF-S": 0.11, "CBS-S": 0.12, "WF": 0.24, "CBS": 16.38},
    },
}
"""Per cent correct without fine-tuning, mean of 5 seeds (Yu et al. 2022)."""


@dataclass(frozen=True)
class Settings:
    """What a network's surgeons are made with.

    Attributes:
      examples, joint_examples: of the Fisher; of the joint solver's.
      damping: of WoodFisher and CBS, as in the paper.
      dampings, scales: tried by the joint solvers.
      share_tries: losses the joint solver spends on how much each leaf loses.
      stages, tuning: of the multi-stage solver.
      draws, steps: of random partitions, and of the local search.
      judged: training examples that judge.
    """

    examples: int
    joint_examples: int
    damping: float
    dampings: tuple[float, ...]
    scales: tuple[float, ...]
    stage_dampings: tuple[float, ...]
    stage_scales: tuple[float, ...]
    share_tries: int
    stages: int
    tuning: int
    draws: int = 50
    steps: int = 50
    judged: int = 5000


class Surgeons:
    """Every method on one network; what is compiled is shared between seeds."""

    def __init__(self, apply: Apply, select: Selection, settings: Settings):
        self.apply, self.select, self.settings = apply, select, settings
        options: dict[str, Any] = {"examples": settings.examples, "judged": settings.judged}
        bend = jp.curvature.sketched_gauss_newton(
            apply, cross_entropy, root=jp.curvature.softmax_root
        )
        local = jp.surgeon.LocalModel
        self.empirical = local(apply, cross_entropy, damping=settings.damping, **options)
        self.curved = local(apply, cross_entropy, bend, **options)

    def build(self, method: str, seed: int) -> Pruner:
        """The Pruner of a method's name."""
        settings, select, surgeon = self.settings, self.select, jp.surgeon
        key = jax.random.key(seed)
        model, curved = replace(self.empirical, key=key), replace(self.curved, key=key)
        if method == "MP":
            return jp.one_shot(jp.saliency.magnitude(), select)
        if method == "WF-S":
            return jp.one_shot(surgeon.woodfisher_scores(model), select)
        if method == "WF":
            return surgeon.woodfisher(model, select)
        if method in ("CBS-S", "CBS", "CBS fast"):
            fast = method == "CBS fast"
            return surgeon.combinatorial_brain_surgeon(
                model, select, draws=settings.draws, steps=settings.steps,
                search="exchange" if fast else "paper", update=method != "CBS-S",
                scales=settings.scales if fast else (1.0,), key=key,
            )  # fmt: skip
        if method == "ExactOBS":
            return surgeon.exact_obs(self.apply, select=select)
        if method == "SparseGPT":
            return surgeon.sparse_gpt(self.apply, select=select)
        if method == "joint":
            return surgeon.joint_surgeon(
                replace(curved, examples=settings.joint_examples), select,
                effort=surgeon.Effort(rounds=4, pursuits=0, probes=64, blocks=4),
                dampings=settings.dampings, scales=settings.scales,
                share_tries=settings.share_tries, key=key,
            )  # fmt: skip
        return surgeon.multi_stage_surgeon(
            curved, select, stages=settings.stages, tuning=settings.tuning,
            dampings=settings.stage_dampings, scales=settings.stage_scales, key=key,
        )  # fmt: skip


def three_by_three(name: str, leaf: Params) -> bool:
    """The 18 convolutions inside the blocks of ResNet-20; not its first one, nor its classifier."""
    return name.endswith("kernel") and leaf.ndim == 4 and "Block" in name
