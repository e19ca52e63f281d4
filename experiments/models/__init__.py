"""Models of the experiments, in Flax."""

from experiments.models.lenet5 import LeNet5
from experiments.models.mlp import MLP, lenet_300_100
from experiments.models.mlpnet import MLPNet
from experiments.models.resnet import ResNet

__all__ = ["MLP", "LeNet5", "MLPNet", "ResNet", "lenet_300_100"]
