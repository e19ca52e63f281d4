"""Models of the experiments, in Flax."""

from experiments.models.inception import SmallInception
from experiments.models.lenet5 import LeNet5
from experiments.models.lstm_lm import LSTMLM, LanguageModel
from experiments.models.mlp import MLP, lenet_300_100
from experiments.models.mlpnet import MLPNet
from experiments.models.mobilenet import MobileNetV1, mobilenet_cifar
from experiments.models.resnet import ResNet
from experiments.models.seq2seq import Seq2Seq, Translator

__all__ = [
    "LSTMLM",
    "MLP",
    "LanguageModel",
    "LeNet5",
    "MLPNet",
    "MobileNetV1",
    "ResNet",
    "Seq2Seq",
    "SmallInception",
    "Translator",
    "lenet_300_100",
    "mobilenet_cifar",
]
