# The demo's student with KD, and Lipschitz matching of its four stages as they are, without connectors.
_base_ = './kd_fcn_r18-w32_fcn_r18-w8_1xb8-digit-scenes-96x96.py'

model = dict(
    terms=dict(
        loss_lipschitz=dict(loss=dict(type='lckd_mm.LipschitzLoss', gap='log'), on=_base_.stages, weight=0.2),
    ),
)
