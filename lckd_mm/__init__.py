"""Lipschitz-guided knowledge distillation for mmpretrain, mmsegmentation and mmdetection models.

Importing this package imports no host library: ``lckd_mm.functional`` needs torch alone, and the registry
(:mod:`lckd_mm.registry`) says in one sentence what is missing when a host library is.
"""

__version__ = '0.1.0'
