# The detection demo's student with KD, and Lipschitz matching of stages and levels as they are, without connectors.
_base_ = './kd_retinanet_r18-w32_retinanet_r18-w8_1xb8-digit-scenes-96x96.py'

model = dict(
    terms=dict(
        loss_lipschitz=dict(loss=dict(type='lckd_mm.LipschitzLoss', gap='log'), on=_base_.stages, weight=0.1),
        loss_lipschitz_levels=dict(loss=dict(type='lckd_mm.LipschitzLoss', gap='log'), on=_base_.levels, weight=0.1),
    ),
)
