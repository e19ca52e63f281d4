"""Models of the experiments, in Flax."""

from experiments.models.densenet import DenseNet
from experiments.models.inception import SmallInception
from experiments.models.lenet5 import LeNet5
from experiments.models.lstm_lm import LSTMLM, LanguageModel
from experiments.models.mlp import MLP, lenet_300_100
from experiments.models.mlpnet import MLPNet
from experiments.models.mobilenet import MobileNetV1, mobilenet_cifar
from experiments.models.resnet import ResNet
from experiments.models.seq2seq import Seq2Seq, Translator
from experiments.models.wide_resnet import WideResNet
from experiments.models.wide_resnet_nnx import NNXWideResNet

__all__ = [
    "LSTMLM",
    "MLP",
    "DenseNet",
    "LanguageModel",
    "LeNet5",
    "MLPNet",
    "MobileNetV1",
    "NNXWideResNet",
    "ResNet",
    "Seq2Seq",
    "SmallInception",
    "Translator",
    "WideResNet",
    "lenet_300_100",
    "mobilenet_cifar",
]
