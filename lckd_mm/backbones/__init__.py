"""Backbones of the papers' tables, in which every feature before a ReLU is the output of a named module."""

from .wide_resnet import WideResNet

__all__ = ['WideResNet']
