"""The contents of a split: as expected, and freed from the order in which they are stored."""

import hashlib

import numpy as np

from experiments.data.dataset import Split


def canonical(split: Split) -> tuple[Split, str]:
    """Sort the examples by their own sha256, and fingerprint the sorted whole.

    tensorflow_datasets shuffles as it writes, and shards may be listed in any order. After this
    sort the arrays, and every seeded choice made from them, are the same from every storage.

    Args:
        split: uint8 inputs [N, ...] or lines of text as bytes [N], integer targets [N].

    Returns:
        The split in canonical order with int32 targets, and the sha256 (hexadecimal) over the
        example shape and the sorted sha256 of the examples: equal for equal contents, whatever
        the order.
    """
    lines = split.inputs.dtype.kind == "S"
    inputs = np.ascontiguousarray(split.inputs, dtype=None if lines else np.uint8)
    targets = split.targets.astype(np.int32)
    labels = targets.astype("<i4")  # a fixed byte order, or the fingerprint would depend on it
    keys = [
        hashlib.sha256(label.tobytes() + example.tobytes()).digest()
        for label, example in zip(labels, inputs, strict=True)
    ]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    whole = hashlib.sha256(repr(inputs.shape[1:]).encode())
    for position in order:
        whole.update(keys[position])
    return Split(inputs[order], targets[order]), whole.hexdigest()


def verify(content: bytes, expected: str, *, what: str) -> None:
    """Refuse content whose sha256 is not the expected one.

    Raises:
        ValueError: with both sums.
    """
    got = hashlib.sha256(content).hexdigest()
    if got != expected:
        raise ValueError(
            f"{what} has the wrong sha256: expected {expected}, got {got} "
            f"({len(content)} bytes). It is not used; fetch it again."
        )
