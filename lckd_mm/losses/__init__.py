"""Registered losses: hyper-parameters, and one call into :mod:`lckd_mm.functional`. The weight belongs to the term."""

from .features import ABLoss, ATLoss, FitNetsLoss, FSPLoss, OFDLoss
from .lipschitz import LipschitzLoss
from .logits import DKDLoss, KDLoss
from .relations import RKDLoss

__all__ = ['ABLoss', 'ATLoss', 'DKDLoss', 'FSPLoss', 'FitNetsLoss', 'KDLoss', 'LipschitzLoss', 'OFDLoss', 'RKDLoss']
