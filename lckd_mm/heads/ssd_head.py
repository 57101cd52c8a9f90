"""mmdet's SSD head, able to predict."""

from mmdet.models.dense_heads import SSDHead as HostSSDHead


class SSDHead(HostSSDHead):
    """mmdet's ``SSDHead``, whose ``predict`` works; arguments, training and state are the host's.

    mmdet 3.3.0 computes SSD's class loss without a loss module, but its ``predict`` asks ``loss_cls`` whether it has
    channels of its own, and so fails. Here ``loss_cls`` is there and is None, which has none.

    Source: Liu et al., SSD, ECCV 2016; the host's code. Deviation: none.
    """

    loss_cls = None
