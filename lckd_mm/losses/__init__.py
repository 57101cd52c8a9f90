"""Registered losses: hyper-parameters, and one call into :mod:`lckd_mm.functional`. The weight belongs to the term."""

from .lipschitz import LipschitzLoss
from .logits import KDLoss

__all__ = ['KDLoss', 'LipschitzLoss']
