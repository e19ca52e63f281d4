"""From mails to a data set: one example for each text, and a test part that is always the same."""

import hashlib
from collections.abc import Iterable

import numpy as np

from experiments.data.dataset import RawSplits, Split
from experiments.data.mail_text import words
from experiments.data.word_counts import count_words

BUCKETS = 4096
CLASSES = ("ham", "spam")
TEST_FRACTION = 0.2


def mail_splits(mails: Iterable[tuple[bytes, int]]) -> RawSplits:
    """Count the words of mails, drop repetitions, and set a test part aside.

    Mails with equal counts are one example, whatever differs in their headers, markup, case,
    numbers or addresses. Counts that occur under two classes, and mails without a word, are no
    example. In each class the fifth of the examples (rounded) whose counts have the smallest
    sha256 is the test part: it depends on the contents only, and shares no text with the others.

    Args:
        mails: each with its class.

    Returns:
        uint8 inputs [N, BUCKETS] and int32 targets [N] of "train" and "test".
    """
    labels: dict[bytes, set[int]] = {}
    for mail, label in mails:
        counts = count_words(words(mail), BUCKETS)
        if counts.any():
            labels.setdefault(counts.tobytes(), set()).add(label)
    by_hash = {hashlib.sha256(counts).digest(): counts for counts in labels}
    train: list[tuple[bytes, int]] = []
    test: list[tuple[bytes, int]] = []
    for label in range(len(CLASSES)):
        of_class = [by_hash[key] for key in sorted(by_hash) if labels[by_hash[key]] == {label}]
        count = round(TEST_FRACTION * len(of_class))
        test += [(counts, label) for counts in of_class[:count]]
        train += [(counts, label) for counts in of_class[count:]]
    return {"train": _split(train), "test": _split(test)}


def _split(examples: list[tuple[bytes, int]]) -> Split:
    whole = b"".join(counts for counts, _ in examples)
    inputs = np.frombuffer(whole, dtype=np.uint8).reshape(-1, BUCKETS)
    return Split(inputs, np.array([label for _, label in examples], dtype=np.int32))
