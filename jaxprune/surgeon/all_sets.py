"""All sets of entries, where they are few enough that every one can be tried."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.surgeon.floors import leaf_numbers, least_kept
from jaxprune.surgeon.local_model import Site

MOST_SETS = 1000
_MOST_FREE = 30  # entries: of more, only a handful of sizes have so few sets


class Sets(NamedTuple):
    """Every set that a selection allows.

    Attributes:
      where: [free] the entries that may change places, into the flat vectors.
      rows: [sets, free] bool, which of them each set keeps.
    """

    where: np.ndarray
    rows: np.ndarray


def all_sets(site: Site, sparsity: Any, mask: jax.Array) -> Sets | None:
    """The sets of as many entries as a mask [d] keeps, floors kept.

    None where there are many, or entries of several parts.
    """
    where = np.flatnonzero(np.asarray(site.candidates))
    kept = int(np.asarray(mask)[where].sum())
    if where.size > _MOST_FREE or math.comb(where.size, kept) > MOST_SETS or not site.one_part():
        return None
    chosen = np.array(list(combinations(range(where.size), kept)), np.int64)
    rows = np.zeros((len(chosen), where.size), bool)
    np.put_along_axis(rows, chosen, True, axis=1)
    leaf, least = np.asarray(leaf_numbers(site))[where], np.asarray(least_kept(site, sparsity))
    numbers = np.arange(least.size)
    allowed = np.all(rows @ (leaf[:, None] == numbers).astype(int) >= least, axis=1)
    return Sets(where, rows[allowed])
