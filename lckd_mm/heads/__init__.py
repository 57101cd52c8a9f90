"""Heads for detectors. mmdet is imported only when one is built, since the other hosts do not need it."""

from ..registry import MODELS


@MODELS.register_module(name='SSDHead')
def build_ssd_head(**config):
    """A :class:`~lckd_mm.heads.ssd_head.SSDHead` with these arguments."""
    from .ssd_head import SSDHead

    return SSDHead(**config)
