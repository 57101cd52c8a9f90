# The demo's student with LONDON: OFD, and Lipschitz matching of the same connected stages.
_base_ = './ofd_fcn_r18-w32_fcn_r18-w8_1xb8-digit-scenes-96x96.py'

model = dict(
    terms=dict(
        loss_lipschitz=dict(
            loss=dict(type='lckd_mm.LipschitzLoss', gap='log'),
            on=_base_.stages,
            connector='loss_ofd',
            weight=0.1,
        ),
    ),
)
