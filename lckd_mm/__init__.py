"""Lipschitz-guided knowledge distillation for mmpretrain, mmsegmentation and mmdetection models.

Importing this package imports no host library: ``lckd_mm.functional`` needs only torch, and the registry
(:mod:`lckd_mm.registry`) names a missing host library in one sentence.
"""

__version__ = '0.1.0'
