"""Lipschitz-guided knowledge distillation for mmpretrain, mmsegmentation and mmdetection models.

Importing this package imports no host library: ``lckd_mm.functional`` needs only torch, and the registry
(:mod:`lckd_mm.registry`) names a missing host library in one sentence.
"""

__version__ = '0.2.0'


def __getattr__(name: str):
    if name == 'distillation_config':  # it needs the host libraries
        from .recipes import distillation_config

        return distillation_config
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
