"""Which examples a step takes."""

from __future__ import annotations

import numpy as np


class Orders:
    """Which examples a step takes: every epoch another order, known from seed and epoch alone.

    Args:
      examples: how many there are.
      batch: how many a step takes.
      seed: of the orders.
    """

    def __init__(self, examples: int, batch: int, seed: int):
        if batch > examples:
            raise ValueError(f"A batch of {batch} is larger than the {examples} examples.")
        self.examples, self.batch, self.seed = examples, batch, seed
        self.per_epoch = examples // batch
        self._epoch, self._order = -1, np.arange(examples)

    def at(self, step: int) -> np.ndarray:
        """The places of a step's examples."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            random = np.random.default_rng((self.seed, epoch))
            self._epoch, self._order = epoch, random.permutation(self.examples)
        return self._order[place * self.batch : (place + 1) * self.batch]
