"""What devices send each other, read off a compiled program."""

import math
import re

_OPERATIONS = (
    "all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute",
    "ragged-all-to-all", "reduce-scatter",
)  # fmt: skip
_LINE = re.compile(rf" = (.*?) ({'|'.join(_OPERATIONS)})(?:-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


def collectives(program):
    """`(operation, bytes)` of every collective in the text of a compiled program."""
    return [(found[2], _bytes(found[1])) for found in _LINE.finditer(program)]


def _bytes(shapes):
    """The size of one array, or of all arrays of a tuple, such as `(s32[8,4]{1,0}, pred[])`."""
    total = 0
    for kind, bits, dimensions in _ARRAY.findall(shapes):
        entries = math.prod(int(d) for d in dimensions.split(",") if d)
        total += entries * (1 if kind == "pred" else math.ceil(int(bits) / 8))
    return total
