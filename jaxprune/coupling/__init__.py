"""What lives together in a model, read off its jaxpr."""

from jaxprune.coupling.finding import couple
from jaxprune.coupling.groups import Coupling, Group, Member
from jaxprune.coupling.models import gated, ones, shrunk_apply

__all__ = ["Coupling", "Group", "Member", "couple", "gated", "ones", "shrunk_apply"]
