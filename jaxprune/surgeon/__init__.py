"""Surgeons: which weights go TOGETHER, and how the others move to make up for it."""

from jaxprune.surgeon.joining import joint_surgeon
from jaxprune.surgeon.local_model import LocalModel
from jaxprune.surgeon.pursuit import Effort
from jaxprune.surgeon.restaging import multi_stage_surgeon

__all__ = ["Effort", "LocalModel", "joint_surgeon", "multi_stage_surgeon"]
