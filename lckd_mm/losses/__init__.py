"""Registered losses: each holds hyper-parameters and a formula. The term holds the weight."""

from .adversarial import AdversarialLoss, GradientPenalty, LGANLoss, LSGANLoss
from .base import Loss
from .contrastive import CRDLoss, VIDLoss
from .dense import BCKDBoxLoss, BCKDLoss, LDLoss, ScoreWeightedLoss
from .detection import FGDLoss, RegionBoxLoss, RegionMaskLoss
from .exploration import ExploreLoss, ReconstructionLoss
from .features import (
    ABLoss,
    AFDLoss,
    ATLoss,
    CosineLoss,
    CWDLoss,
    FitNetsLoss,
    FSPLoss,
    FTLoss,
    MGDLoss,
    OFDLoss,
    PKDLoss,
)
from .jacobian import JacobianLoss
from .lipschitz import LipschitzLoss, LONDONLoss
from .logits import DKDLoss, KDLoss, WSLDLoss
from .partial import PartialKDLoss
from .queries import MaskQueryLoss, MatchedQueryLoss, QueryLoss
from .relations import DISTLoss, RKDLoss, SPLoss
from .review import ReviewKDLoss

__all__ = [
    'ABLoss',
    'AFDLoss',
    'ATLoss',
    'AdversarialLoss',
    'BCKDBoxLoss',
    'BCKDLoss',
    'CRDLoss',
    'CWDLoss',
    'CosineLoss',
    'DISTLoss',
    'DKDLoss',
    'ExploreLoss',
    'FGDLoss',
    'FSPLoss',
    'FTLoss',
    'FitNetsLoss',
    'GradientPenalty',
    'JacobianLoss',
    'KDLoss',
    'LDLoss',
    'LGANLoss',
    'LONDONLoss',
    'LSGANLoss',
    'LipschitzLoss',
    'Loss',
    'MGDLoss',
    'MaskQueryLoss',
    'MatchedQueryLoss',
    'OFDLoss',
    'PKDLoss',
    'PartialKDLoss',
    'QueryLoss',
    'RKDLoss',
    'ReconstructionLoss',
    'RegionBoxLoss',
    'RegionMaskLoss',
    'ReviewKDLoss',
    'SPLoss',
    'ScoreWeightedLoss',
    'VIDLoss',
    'WSLDLoss',
]
