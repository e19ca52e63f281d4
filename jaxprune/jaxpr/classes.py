"""Labels of slices, united into classes that must live or die together."""

from __future__ import annotations

import numpy as np

FIXED = 0  # the label of everything that can never be removed
_NEVER = np.iinfo(np.int64).max


class Classes:
    """Union-find over whole arrays of labels: a network has tens of thousands, an axis is one call.

    A class is pinned by a reason (a number, given by the caller; the first one counts) or not at
    all, and knows whether a parameter's slice is in it. Pinned classes stay apart, so that each
    keeps its own reason.
    """

    def __init__(self) -> None:
        self._size = 1
        self._parent = np.zeros(1 << 12, np.int64)
        self._reason = np.full(1 << 12, _NEVER)
        self._weight = np.zeros(1 << 12, bool)
        self._reason[FIXED] = -1

    def __len__(self) -> int:
        return self._size

    def fresh(self, n: int, *, weight: bool = False) -> np.ndarray:
        """n new labels, each a class of its own; `weight`: slices of a parameter."""
        labels = np.arange(self._size, self._size + n)
        self._size += n
        if self._size > len(self._parent):
            room = 2 * self._size - len(self._parent)
            self._parent = np.concatenate([self._parent, np.zeros(room, np.int64)])
            self._reason = np.concatenate([self._reason, np.full(room, _NEVER)])
            self._weight = np.concatenate([self._weight, np.zeros(room, bool)])
        self._parent[labels] = labels
        self._weight[labels] = weight
        return labels

    def find(self, labels: np.ndarray) -> np.ndarray:
        """The representative of each label's class."""
        roots = self._parent[labels]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[labels] = roots
        return roots

    def unite(self, a: np.ndarray, b: np.ndarray, reason: int) -> None:
        """Let a[i] and b[i] live or die together; what meets FIXED is pinned for the reason."""
        if a is b:
            return
        a, b = self.find(a), self.find(b)
        apart = a != b
        if not apart.any():
            return
        a, b = a[apart], b[apart]
        fixed = (a == FIXED) | (b == FIXED)
        if fixed.any():
            self.pin(np.maximum(a, b)[fixed], reason)
            a, b = a[~fixed], b[~fixed]
        while a.size:
            low, high = np.minimum(a, b), np.maximum(a, b)
            np.minimum.at(self._parent, high, low)
            new = self.find(high)
            np.minimum.at(self._reason, new, self._reason[high])
            np.logical_or.at(self._weight, new, self._weight[high])
            a, b = self.find(a), self.find(b)
            apart = a != b
            a, b = a[apart], b[apart]

    def pin(self, labels: np.ndarray, reason: int) -> None:
        """Never remove these."""
        roots = self.find(labels)
        np.minimum.at(self._reason, roots, reason)

    def pinned(self, labels: np.ndarray) -> np.ndarray:
        """Which of them can never be removed."""
        return self._reason[self.find(labels)] != _NEVER

    def reasons(self, labels: np.ndarray) -> np.ndarray:
        """Why each is pinned: the reason's number, -1 for FIXED, a huge number for free ones."""
        return self._reason[self.find(labels)]

    def live(self, labels: np.ndarray) -> bool:
        """True if any of them could be removed, as far as is known now."""
        return bool((~self.pinned(labels)).any())

    def has_weight(self, labels: np.ndarray) -> bool:
        """True if a parameter's slice is in any of their classes that is not pinned."""
        roots = self.find(labels)
        return bool((self._weight[roots] & (self._reason[roots] == _NEVER)).any())
