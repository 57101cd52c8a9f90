"""mmdet's SSD head with a working ``predict``."""

from mmdet.models.dense_heads import SSDHead as HostSSDHead


class SSDHead(HostSSDHead):
    """mmdet's ``SSDHead`` with a working ``predict``; arguments, training and state are unchanged.

    In mmdet 3.3.0 the SSD head has no ``loss_cls``, but ``predict`` reads it, to see whether it has custom channels,
    and fails. Here ``loss_cls`` exists and is None.

    Example:
        bbox_head=dict(_base_.model.bbox_head, type='lckd_mm.SSDHead')
    Source: Liu et al., SSD, ECCV 2016; the host's code. Deviation: none.
    """

    loss_cls = None
