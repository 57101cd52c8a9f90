"""Backbones from the papers' tables; every feature before a ReLU is the output of a named module."""

from .cifar_resnet import CifarResNet
from .mobilenet_v1 import MobileNetV1
from .pyramidnet import PyramidNet
from .wide_resnet import WideResNet

__all__ = ['CifarResNet', 'MobileNetV1', 'PyramidNet', 'WideResNet']
