# The detection demo's student with OFD: three stages before a ReLU, through connectors, to the teacher's with margins.
_base_ = './kd_retinanet_r18-w32_retinanet_r18-w8_1xb8-digit-scenes-96x96.py'

model = dict(
    terms=dict(
        _delete_=True,
        loss_ofd=dict(
            loss=dict(type='lckd_mm.OFDLoss'),
            on=_base_.stages,
            connector=dict(type='lckd_mm.ConvBN'),
            teacher_connector=dict(type='lckd_mm.MarginReLU'),
            weight=1e-4,
        ),
    ),
)
default_hooks = dict(lipschitz=dict(term='loss_ofd'))  # whose connected maps it looks at, too
