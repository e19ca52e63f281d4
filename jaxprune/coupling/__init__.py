"""What lives together in a model, read off its jaxpr."""

from jaxprune.coupling.finding import couple
from jaxprune.coupling.groups import Coupling, Group, Member
from jaxprune.coupling.models import gated, gated_apply, ones, shrunk_apply
from jaxprune.coupling.storing import from_json, to_json, with_model

__all__ = [
    "Coupling",
    "Group",
    "Member",
    "couple",
    "from_json",
    "gated",
    "gated_apply",
    "ones",
    "shrunk_apply",
    "to_json",
    "with_model",
]
