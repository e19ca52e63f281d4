"""Surgeons: which weights go TOGETHER, and how the others move to make up for it."""

from jaxprune.surgeon.combinatorial import combinatorial_brain_surgeon
from jaxprune.surgeon.inverse_scores import woodfisher, woodfisher_scores
from jaxprune.surgeon.joining import joint_surgeon
from jaxprune.surgeon.layers.calibration import input_hessians
from jaxprune.surgeon.layers.columnwise import sparse_gpt
from jaxprune.surgeon.layers.rowwise import exact_obs
from jaxprune.surgeon.local_model import LocalModel
from jaxprune.surgeon.one_by_one import optimal_brain_surgeon
from jaxprune.surgeon.pursuit import Effort
from jaxprune.surgeon.restaging import multi_stage_surgeon

__all__ = [
    "Effort",
    "LocalModel",
    "combinatorial_brain_surgeon",
    "exact_obs",
    "input_hessians",
    "joint_surgeon",
    "multi_stage_surgeon",
    "optimal_brain_surgeon",
    "sparse_gpt",
    "woodfisher",
    "woodfisher_scores",
]
