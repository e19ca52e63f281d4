"""Words as vectors of fixed length: hashed counts, and the weights that a network reads.

Word w counts in bucket crc32(w) mod B (the CRC-32 of zlib and gzip, unsigned). No vocabulary is
learnt, so nothing of the test part can reach the features.
"""

import math
import zlib
from collections import Counter
from collections.abc import Iterable

import numpy as np

MAX_COUNT = 255  # a count is stored in one byte; more of the same word tells nothing more


def bucket(word: bytes, buckets: int) -> int:
    """The place where a word counts, in [0, buckets).

    Examples:
        >>> hex(bucket(b"123456789", 4096))  # the check value of CRC-32 is 0xCBF43926
        '0x926'
    """
    return zlib.crc32(word) % buckets


def count_words(words: Iterable[bytes], buckets: int) -> np.ndarray:
    """How many of the words fall in each bucket, at most `MAX_COUNT`: uint8 [buckets]."""
    counts = np.zeros(buckets, dtype=np.int64)
    for word, count in Counter(words).items():
        counts[bucket(word, buckets)] += count
    return np.minimum(counts, MAX_COUNT).astype(np.uint8)


def weigh(counts: np.ndarray) -> np.ndarray:
    """Give count c the weight log(1 + c), then each row the Euclidean length 1.

    Args:
        counts: uint8 [N, B].

    Returns:
        float32 [N, B] in [0, 1]; a row without words stays 0. The sums are exactly rounded, so
        that no machine's order of summation shows.
    """
    logs = np.array([math.log1p(count) for count in range(MAX_COUNT + 1)])
    weights = np.zeros(counts.shape, dtype=np.float32)
    for row, found in zip(weights, counts, strict=True):
        places = np.flatnonzero(found)
        values = logs[found[places]]
        row[places] = values / math.sqrt(math.fsum(np.square(values).tolist()) or 1.0)
    return weights
