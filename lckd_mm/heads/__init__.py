"""Heads for detectors. mmdet is imported when one is built and not before: the other hosts do without it."""

from ..registry import MODELS


@MODELS.register_module(name='SSDHead')
def build_ssd_head(**config):
    """A :class:`~lckd_mm.heads.ssd_head.SSDHead` with these arguments."""
    from .ssd_head import SSDHead

    return SSDHead(**config)
