"""Fashion-MNIST: 70,000 photographs of clothes, 28 x 28 pixels, in 10 classes.

Source: H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking
machine learning algorithms, 2017.
"""

from pathlib import Path

from experiments.data.dataset import Parts
from experiments.data.idx import idx_image_set
from experiments.data.images import read_images
from experiments.data.packages import AptPackage

FASHION_MNIST = idx_image_set(
    name="fashion_mnist",
    builder="tensorflow_datasets.image_classification.mnist:FashionMNIST",
    num_classes=10,
    counts={"train": 60_000, "test": 10_000},
    files={
        "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    },
    sha256={
        "train-images-idx3-ubyte": (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
        ),
        "train-labels-idx1-ubyte": (
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
        ),
        "t10k-images-idx3-ubyte": (
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
        ),
        "t10k-labels-idx1-ubyte": (
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
        ),
    },
    fingerprints={
        "train": "4cff9c919300d62fabaa00fa2e6d347d4a95be16b71d092bb0cd3dad1a62b483",
        "test": "bf35de3361e4241a20e4b67a2de4aa9e6c00fcebedaa605d970e6c598f7a0420",
    },
    package=AptPackage("dataset-fashion-mnist", folder="usr/share/datasets/fashion-mnist"),
    zipped=True,
)


def read(data_dir: Path | None = None) -> Parts:
    """Read Fashion-MNIST from the first rung that has it; see `stored.read_stored`.

    Returns:
        60,000 training and 10,000 test examples; inputs float32 [N, 28, 28, 1] in [0, 1],
        targets int32 [N].

    Raises:
        DataUnavailable: no rung could give it, or `data_dir` cannot be written.
    """
    return read_images(FASHION_MNIST, data_dir)
