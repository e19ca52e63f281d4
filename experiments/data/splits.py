"""Take a stratified part out of a list of labelled examples."""

import numpy as np


def hold_out(targets: np.ndarray, count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose `count` examples at random, each class in proportion to its size.

    Class k with n_k of the N examples gives floor(count n_k / N) of its examples; the examples
    still missing come one each from the classes with the largest remainders, so that the total
    is exact and no class is further than one from its share.

    Args:
        targets: [N] class numbers.
        count: how many to hold out, in [1, N - 1].
        seed: chooses which examples of each class, in [0, 2^32 - 1].

    Returns:
        The positions kept, [N - count], and the positions held out, [count], both ascending.

    Raises:
        ValueError: if `count` would leave one of the two parts empty, or the seed is outside
            its range.
    """
    total = len(targets)
    if not 0 < count < total:
        raise ValueError(
            f"Cannot hold out {count} of {total} examples: both parts need at least one. "
            "Choose another validation_fraction."
        )
    _, members = np.unique(targets, return_inverse=True)
    quotas = _largest_remainder(np.bincount(members), count)
    # The legacy generator: its stream is frozen, while that of `default_rng` may change with numpy.
    random = np.random.RandomState(seed)
    held = np.zeros(total, dtype=bool)
    for label, quota in enumerate(quotas):
        held[random.permutation(np.flatnonzero(members == label))[:quota]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _largest_remainder(sizes: np.ndarray, count: int) -> np.ndarray:
    # In integers: a float share such as 17.999999 would floor to the wrong number.
    quotas, remainders = np.divmod(sizes * count, sizes.sum())
    missing = count - quotas.sum()
    # The stable sort gives ties to the lower class, so the result does not depend on the platform.
    quotas[np.argsort(-remainders, kind="stable")[:missing]] += 1
    return quotas
