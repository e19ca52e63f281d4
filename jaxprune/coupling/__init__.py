"""What lives together in a model, read off its jaxpr."""

from jaxprune.coupling.finding import couple
from jaxprune.coupling.groups import Coupling, Group, Member
from jaxprune.coupling.models import gated, ones, shrunk_apply
from jaxprune.coupling.storing import from_json, to_json, with_model

__all__ = [
    "Coupling",
    "Group",
    "Member",
    "couple",
    "from_json",
    "gated",
    "ones",
    "shrunk_apply",
    "to_json",
    "with_model",
]
