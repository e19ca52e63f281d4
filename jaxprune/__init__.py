"""jaxprune: functional pruning for JAX.

The flow: a saliency scores parameters (or whole units, found by `couple`), a selection turns scores
into a mask, a Pruner does both, Optax transformations keep the mask inside a jitted train step,
`shrink` removes units for real, and a report says what was done.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxprune import (
    checkpoint,
    coupling,
    curvature,
    quantize,
    reporting,
    saliency,
    schedule,
    select,
    structure,
    transforms,
    trees,
    types,
)
from jaxprune.coupling import Coupling, couple, shrunk_apply
from jaxprune.nnx_modules import shrink_module
from jaxprune.pooling import max_pool
from jaxprune.prune import iterative, one_shot, rewind
from jaxprune.reporting import report
from jaxprune.structure import check_shrunk, shrink
from jaxprune.transforms import (
    freeze_pruned,
    freeze_random,
    mask_of,
    prune_gradually,
    regrow,
    remove_units,
    straight_through,
    with_mask,
)
from jaxprune.trees import apply_mask
from jaxprune.types import Diagonal, Pruned, Pruner, Saliency, Selection, Stats

if TYPE_CHECKING:
    from jaxprune import surgeon

__version__ = "0.1.0"

__all__ = [
    "Coupling",
    "Diagonal",
    "Pruned",
    "Pruner",
    "Saliency",
    "Selection",
    "Stats",
    "apply_mask",
    "check_shrunk",
    "checkpoint",
    "couple",
    "coupling",
    "curvature",
    "freeze_pruned",
    "freeze_random",
    "iterative",
    "mask_of",
    "max_pool",
    "one_shot",
    "prune_gradually",
    "quantize",
    "regrow",
    "remove_units",
    "report",
    "reporting",
    "rewind",
    "saliency",
    "schedule",
    "select",
    "shrink",
    "shrink_module",
    "shrunk_apply",
    "straight_through",
    "structure",
    "surgeon",
    "transforms",
    "trees",
    "types",
    "with_mask",
]


def __getattr__(name: str) -> Any:
    """The surgeons are imported at first use: they are a quarter of the package's import time."""
    if name == "surgeon":
        return importlib.import_module("jaxprune.surgeon")
    raise AttributeError(f"module 'jaxprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    """What there is, with the module that is not imported yet.

    Example:
      >>> import jaxprune
      >>> "surgeon" in dir(jaxprune)
      True
    """
    return sorted({*globals(), *__all__})
